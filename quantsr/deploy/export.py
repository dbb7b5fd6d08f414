"""A converted network as a packed file, an ONNX graph, an OpenVINO IR or ncnn's files, and the
pictures that conversion needs."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from quantsr import cpu
from quantsr.data.evaluation import build_eval_dataset
from quantsr.data.images import read_rgb
from quantsr.data.mini import mini_folder
from quantsr.data.resize import imresize_uint8
from quantsr.deploy.engines import ncnn_model, onnx_model, reference
from quantsr.deploy.engines.openvino_core import core
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.packed.restrict import restrict
from quantsr.engine.evaluate import EvalSet, Upscale
from quantsr.errors import InputError
from quantsr.files import failures_named
from quantsr.paths import expanded
from quantsr.pictures.listing import list_images
from quantsr.temporary import folder_beside, remove_leftovers

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".onnx", ".xml", ".param")
_SAME_WEIGHTS = {".xml": ".param", ".param": ".xml"}  # formats with a .bin file beside theirs
_CALIBRATION_PICTURES, _CALIBRATION_SIDE = 32, 128


def write(
    model: PackedModel, output: Path, *, depth: int, int4: bool = False, fp16: bool = False, qdq: bool = False
) -> tuple[list[Path], PackedModel]:
    """Write `model` at `depth` in the format of the file's name; returns the files, and the network
    they hold as read back.

    Raises InputError where the file has no folder or no possible name, another format's weights
    would be overwritten, or its format lacks an operation of the network, WorkError where writing
    fails.
    """
    other = output.with_suffix(_SAME_WEIGHTS.get(output.suffix, output.suffix))
    if other != output and other.exists():
        raise InputError(
            f"{output}: its weights, {output.with_suffix('.bin').name}, are those of {other.name}; choose another name"
        )
    remove_leftovers(output.parent, below=False)
    if output.suffix == ".safetensors":
        packing.save(restrict(model, depth), output)
        return [output], packing.load(output)
    if output.suffix == ".param":
        return ncnn_model.save(ncnn_model.build(model, depth, half=fp16), output), model
    graph = onnx_model.build_qdq(model, depth) if qdq else onnx_model.build(model, depth, int4=int4)
    if output.suffix == ".onnx":
        onnx_model.save(graph, output)
        return [output], model
    return _write_ir(graph.SerializeToString(), output), model


def exported_engine(output: Path, model: PackedModel) -> list[tuple[str, Upscale]]:
    """The exported file itself, run by what can read it; nothing where that is not installed."""
    if output.suffix == ".safetensors":
        return [(f"{output.name} (integer)", reference.reference(model))]
    if output.suffix == ".onnx":
        try:
            import onnxruntime
        except ImportError:
            logger.info(
                "parity leaves the ONNX file out: onnxruntime is not installed; pip install onnxruntime"
            )
            return []
        session = onnxruntime.InferenceSession(
            str(output),
            providers=["CPUExecutionProvider"],
            # It rounds the biases inside convolutions (of --qdq) to units of their sums.
            disabled_optimizers=["WeightBiasQuantization"],
        )
        name = session.get_inputs()[0].name
        return [
            (f"{output.name} (onnxruntime)", lambda picture: session.run(None, {name: picture[None]})[0][0])
        ]
    if output.suffix == ".param":
        try:
            from quantsr.deploy.engines import ncnn
        except ImportError:
            logger.info("parity leaves the ncnn files out: ncnn is not installed; pip install ncnn")
            return []
        net = ncnn.read(output, threads=cpu.cores())
        return [(f"{output.name} (ncnn)", lambda picture: ncnn.upscale(net, picture))]
    compiled = core().compile_model(core().read_model(output), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [(f"{output.name} (openvino)", lambda picture: np.array(compiled(picture[None])[0][0]))]


def calibration_pictures(folder: str | None, scale: int) -> list[np.ndarray]:
    """Low-resolution uint8 (h, w, 3) pictures: the middle of each picture of `folder`, shrunk by
    `scale` as training does.

    Raises InputError where there are none.
    """
    paths = list_images(expanded(folder) if folder else mini_folder())
    side = _CALIBRATION_SIDE * scale
    pictures = []
    for path in paths[:: max(1, len(paths) // _CALIBRATION_PICTURES)][:_CALIBRATION_PICTURES]:
        picture = read_rgb(path)
        height, width = (min(side, n - n % scale) for n in picture.shape[:2])
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        middle = picture[top : top + height, left : left + width]
        if middle.size:
            pictures.append(imresize_uint8(np.ascontiguousarray(middle), 1 / scale))
    if not pictures:
        raise InputError(f"{folder}: its pictures are smaller than the scale; give larger ones")
    return pictures


def evaluation_set(folder: str | None, scale: int) -> EvalSet:
    """Pictures for the parity table: three of scikit-image, those of `folder`, or its HR and
    LR_bicubic/X<scale> where it has them."""
    if folder is None:
        options: dict[str, Any] = {"name": "skimage", "type": "SkimageDataset"}
    else:
        root = expanded(folder)
        options = {"name": root.name, "type": "PairedImageDataset", "dataroot_gt": str(root)}
        lq = root / "LR_bicubic" / f"X{scale}"
        if (root / "HR").is_dir():
            options["dataroot_gt"] = str(root / "HR")
            if lq.is_dir():
                options |= {"dataroot_lq": str(lq), "filename_tmpl": f"{{}}x{scale}"}
    return EvalSet(options["name"], scale, build_eval_dataset(options, scale))


def _write_ir(graph: bytes, output: Path) -> list[Path]:
    """OpenVINO IR of an ONNX graph: `output` and its .bin beside it, each renamed into place when
    complete.

    An earlier `output` is removed first: it would not fit the new .bin.
    """
    model = core().read_model(graph)
    binary = output.with_suffix(".bin")
    with (
        failures_named(output),
        folder_beside(output, make_parent=False) as folder,
    ):
        temporary = folder / "network.xml"
        try:
            # Multipliers must stay float32: float16 ones would move the codes.
            openvino.save_model(model, temporary, compress_to_fp16=False)
        except RuntimeError as error:  # so it says that the disk is full
            raise OSError(" ".join(f"OpenVINO: {error}".split())) from error
        output.unlink(missing_ok=True)
        os.replace(temporary.with_suffix(".bin"), binary)
        os.replace(temporary, output)
    return [output, binary]
