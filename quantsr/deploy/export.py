"""``quantsr export``: a trained network as a packed file, an ONNX graph or an OpenVINO IR, with a table of how well it matches."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantsr.deploy import packing
from quantsr.deploy.files import failures_named
from quantsr.deploy.model import PackedModel
from quantsr.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from quantsr.engine.evaluate import EvalSet, Upscale

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".onnx", ".xml")
_CALIBRATION_PICTURES, _CALIBRATION_SIDE = 32, 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``quantsr export``."""
    parser.add_argument(
        "-m",
        "--model",
        required=True,
        metavar="CKPT",
        help="checkpoint, packed network, or name of a run or of a network that comes with quantsr",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="file ending in .safetensors, .onnx or .xml"
    )
    parser.add_argument(
        "-opt",
        "--opt",
        metavar="FILE",
        help="option file, for checkpoints that do not say how their network is built",
    )
    parser.add_argument(
        "--depth",
        type=int,
        metavar="N",
        help="depth to keep (default: all; smaller depths stay in a packed file)",
    )
    parser.add_argument(
        "--head-tail-bits",
        type=int,
        choices=(8, 16, 32),
        help="bits of the weights of the convolutions that training left in float (default: 8, with 16-bit inputs calibrated on pictures)",
    )
    parser.add_argument(
        "--first-bits",
        type=int,
        choices=(8, 16, 32),
        help="bits of conv_first's weight (default: 32; 8 saves 5 kB and lets more pixels differ)",
    )
    parser.add_argument(
        "--calib", metavar="DIR", help="pictures to calibrate the 16-bit inputs on (default: datasets/mini)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="pictures for the parity table (default: three of scikit-image)"
    )
    parser.add_argument(
        "--int4", action="store_true", help="ONNX: weights of up to 4 bits as int4 tensors (opset 21)"
    )
    parser.add_argument("--no-parity", action="store_true", help="do not compare the engines")


def run(args: argparse.Namespace) -> int:
    """Export and print size and parity. Raises InputError for what cannot be exported."""
    output = Path(args.output).expanduser()
    if output.suffix not in SUFFIXES:
        raise InputError(f"{output}: cannot be exported to; name a file ending in {', '.join(SUFFIXES)}")
    if args.int4 and output.suffix != ".onnx":
        raise InputError("--int4: only ONNX files have int4 tensors; packed files are smaller still")
    model, network = read(args)
    depth = model.depth_or_default(args.depth)
    written, exported = write(model, output, depth=depth, int4=args.int4)
    print(
        f"{output}: {sum(path.stat().st_size for path in written):,} bytes, depth {depth}, scale x{model.header.scale}"
    )
    if args.no_parity:
        return 0
    from quantsr.deploy import parity

    sets = [evaluation_set(args.data, model.header.scale)]
    engines = [*parity.engines_at_hand(model, depth), *exported_engine(output, exported)]
    print(parity.table(parity.parity(model, sets, depth=depth, network=network, engines=engines)))
    return 0


def read(args: argparse.Namespace) -> tuple[PackedModel, nn.Module]:
    """The converted network of a checkpoint, run or packed file, and the network it shall match (of a packed file: its own module)."""
    from quantsr.deploy.convert import convert
    from quantsr.deploy.module import to_module
    from quantsr.loading import load, resolve

    source = resolve(args.model)
    if source.suffix == ".safetensors":
        model = packing.load(source)
        if args.head_tail_bits not in (None, model.header.head_tail_bits):
            raise InputError(
                f"{source}: has a head and tail of {model.header.head_tail_bits} bits already; export from the checkpoint to change that"
            )
        for option in ("first_bits", "calib", "opt"):
            if getattr(args, option) is not None:
                raise InputError(
                    f"--{option.replace('_', '-')}: {source} is converted already; leave it out, or export from the checkpoint"
                )
        return model, to_module(model, source)
    network = load(source) if args.opt is None else _from_options(source, args.opt)
    bits: int = args.head_tail_bits or 8
    model = convert(
        network,
        head_tail_bits=bits,
        calib=calibration_pictures(args.calib, int(getattr(network, "upscale", 4))) if bits == 8 else [],
        first_bits=args.first_bits or 32,
        provenance=_provenance(source, args.calib, bits),
    )
    return model, network


def write(
    model: PackedModel, output: Path, *, depth: int, int4: bool = False
) -> tuple[list[Path], PackedModel]:
    """Write `model` at `depth` in the format of the file's name; returns the files, and the network they hold as read back.

    Raises InputError where the file has no folder or no possible name, WorkError where writing fails.
    """
    if output.suffix == ".safetensors":
        from quantsr.deploy.restrict import restrict

        packing.save(restrict(model, depth), output)
        return [output], packing.load(output)
    from quantsr.deploy import onnx_graph

    graph = onnx_graph.build(model, depth, int4=int4)
    if output.suffix == ".onnx":
        onnx_graph.save(graph, output)
        return [output], model
    return _write_ir(graph.SerializeToString(), output), model


def exported_engine(output: Path, model: PackedModel) -> list[tuple[str, Upscale]]:
    """The exported file itself, run by what can read it; nothing where that is not installed."""
    if output.suffix == ".safetensors":
        from quantsr.deploy import integer

        return [(f"{output.name} (integer)", integer.reference(model))]
    if output.suffix == ".onnx":
        try:
            import onnxruntime
        except ImportError:
            logger.info(
                "parity leaves the ONNX file out: onnxruntime is not installed; pip install onnxruntime"
            )
            return []
        session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return [
            (f"{output.name} (onnxruntime)", lambda picture: session.run(None, {name: picture[None]})[0][0])
        ]
    from quantsr.deploy.openvino_core import core

    compiled = core().compile_model(core().read_model(output), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [(f"{output.name} (openvino)", lambda picture: np.array(compiled(picture[None])[0][0]))]


def calibration_pictures(folder: str | None, scale: int) -> list[np.ndarray]:
    """Low-resolution uint8 (h, w, 3) pictures: the middle of each picture of `folder`, shrunk by `scale` as training does.

    Raises InputError where there are none.
    """
    from quantsr.data.images import list_images, read_rgb
    from quantsr.data.mini import mini_folder
    from quantsr.data.resize import imresize_uint8

    paths = list_images(Path(folder).expanduser() if folder else mini_folder())
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
    """Pictures for the parity table: three of scikit-image, those of `folder`, or its HR and LR_bicubic/X<scale> where it has them."""
    from quantsr.data import build_eval_dataset
    from quantsr.engine.evaluate import EvalSet

    if folder is None:
        options: dict[str, Any] = {"name": "skimage", "type": "SkimageDataset"}
    else:
        root = Path(folder).expanduser()
        options = {"name": root.name, "type": "PairedImageDataset", "dataroot_gt": str(root)}
        lq = root / "LR_bicubic" / f"X{scale}"
        if (root / "HR").is_dir():
            options["dataroot_gt"] = str(root / "HR")
            if lq.is_dir():
                options |= {"dataroot_lq": str(lq), "filename_tmpl": f"{{}}x{scale}"}
    return EvalSet(options["name"], scale, build_eval_dataset(options, scale))


def _from_options(source: Path, opt: str) -> nn.Module:
    """The network of an option file with the parameters of a checkpoint (the released ones do not describe themselves)."""
    from quantsr.config import load_options
    from quantsr.engine import build

    network = build.build_for_options(load_options(opt, is_train=False))
    build.load_checkpoint(network, str(source), None)
    build.ensure_ranking(network, str(source))
    return network.eval()


def _provenance(source: Path, calib: str | None, bits: int) -> dict[str, Any]:
    from quantsr import __version__
    from quantsr.engine import checkpoint

    ours = checkpoint.metadata(checkpoint.load(source), source) or {}
    options = ours.get("options") or {}
    datasets = options.get("datasets") or {}
    train = (datasets.get("train") or {}).get("name")
    facts = {
        "quantsr": __version__,
        "checkpoint": source.name,
        "run": options.get("name"),
        "iteration": ours.get("iteration"),
        "trained_on": train,
        "trained_with": ours.get("version"),
        "calibrated_on": (Path(calib).name if calib else "datasets/mini") if bits == 8 else None,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _write_ir(graph: bytes, output: Path) -> list[Path]:
    """OpenVINO IR of an ONNX graph: `output` and its .bin beside it, each renamed into place when complete."""
    import openvino

    from quantsr.deploy.openvino_core import core

    model = core().read_model(graph)
    binary = output.with_suffix(".bin")
    with (
        failures_named(output),
        tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder,
    ):
        temporary = Path(folder) / output.name
        try:
            # Multipliers must stay float32: float16 ones would move the codes.
            openvino.save_model(model, temporary, compress_to_fp16=False)
        except RuntimeError as error:  # so it says that the disk is full
            raise OSError(" ".join(f"OpenVINO: {error}".split())) from error
        os.replace(temporary.with_suffix(".bin"), binary)
        os.replace(temporary, output)
    return [output, binary]
