"""ncnn: int8 convolutions on x86 and ARM, and Vulkan."""

from __future__ import annotations

import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Literal

import ncnn
import numpy as np

from quantsr import cpu
from quantsr.deploy.engines import ncnn_model
from quantsr.deploy.engines.base import Images, OneByOne
from quantsr.deploy.engines.ncnn_graph import INPUT, OUTPUT
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.collapse import MIN_SIZE
from quantsr.errors import InputError

_HALF = ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage")


class NcnnEngine(OneByOne):
    """ncnn in integers and float32, on the CPU unless Vulkan is asked for."""

    takes_float = True

    def __init__(
        self, model: PackedModel, depth: int, *, threads: int | None = None, vulkan: bool = False
    ) -> None:
        """Raises InputError with `vulkan` where there is no device, and for operations that ncnn
        does not have."""
        if vulkan and ncnn.get_gpu_count() < 1:
            raise InputError("ncnn: found no Vulkan device; install its driver, or run without vulkan")
        self.name = "ncnn:vulkan" if vulkan else "ncnn"
        self._model, self._depth, self._vulkan = model, depth, vulkan
        self._threads = threads or cpu.cores()
        self._large = self._net("collapsed")

    @cached_property
    def _small(self) -> ncnn.Net:
        """For pictures that are too small for the collapsed tail."""
        return self._net("layers")

    def _net(self, tail: Literal["collapsed", "layers"]) -> ncnn.Net:
        return load(
            ncnn_model.build(self._model, self._depth, tail=tail, white=255), self._threads, self._vulkan
        )

    def run(self, images: Images) -> Images:
        """See `Engine.run`; (N, h, w, 3) uint8 or float32."""
        net = self._large if min(images.shape[1:3]) >= MIN_SIZE else self._small
        return np.stack([upscale(net, image, white=255) for image in images])


def upscale(net: ncnn.Net, image: Images, *, white: float = 1.0) -> Images:
    """(h, w, 3) uint8, or float32 in 0..255, to (h*s, w*s, 3) of the same type, by a network whose
    results are in 0..`white`."""
    picture = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / np.float32(255)  # (3, h, w)
    extractor = net.create_extractor()
    extractor.input(INPUT, ncnn.Mat(picture).clone())  # NumPy's memory is not aligned as ncnn's
    status, result = extractor.extract(OUTPUT)
    if status:
        raise RuntimeError(f"ncnn: failed with status {status}, which mostly means too little memory")
    values = np.array(result).transpose(1, 2, 0) * np.float32(255 / white)  # (h*s, w*s, 3)
    values = np.clip(values, 0, 255)
    return np.rint(values).astype(np.uint8) if image.dtype == np.uint8 else np.ascontiguousarray(values)


def load(model: ncnn_model.NcnnModel, threads: int, vulkan: bool = False) -> ncnn.Net:
    """The network, ready to run."""
    # the binding reads weights from files only
    with tempfile.TemporaryDirectory(prefix="quantsr.") as folder:
        path = Path(folder) / "net.param"
        ncnn_model.save(model, path)
        return read(path, threads, vulkan)


def read(path: Path, threads: int, vulkan: bool = False) -> ncnn.Net:
    """The network of a .param file with the .bin file beside it, in integers and float32."""
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = vulkan
    for name in _HALF:
        if hasattr(net.opt, f"use_{name}"):  # older versions have fewer
            setattr(net.opt, f"use_{name}", False)
    status = net.load_param(os.fspath(path)) or net.load_model(os.fspath(path.with_suffix(".bin")))
    if status:
        raise RuntimeError(f"{path}: ncnn cannot load it (status {status})")
    return net
