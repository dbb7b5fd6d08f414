"""`NativeEngine`: the kernels behind the interface of `engines.base.Engine`."""

from __future__ import annotations

import ctypes
import math
import threading
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantsr import cpu
from quantsr.deploy import windows
from quantsr.deploy.engines.base import OneByOne
from quantsr.deploy.native import library, structures
from quantsr.deploy.native.arrays import Program
from quantsr.deploy.native.match import Unsupported, has_windows
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.errors import InputError

Images = NDArray[Any]

_MAKERS = {"ConvProgram": "program", "SwinProgram": "swin_program", "sweep_program": "sweep_program"}
"""What makes a program and its module, which is imported when it is used: upscaling one picture is
a short process."""

_ALIGNMENT = 64
_MAX_THREADS = 64


class NativeEngine(OneByOne):
    """A network of residual blocks of few bits or of Swin layers (`match.py`), or of any other
    operations that there are kernels for (`sweep_steps.py`); all threads work on one picture. Calls
    from several threads wait for each other."""

    name = "native"
    takes_float = True

    def __init__(
        self, model: PackedModel, depth: int, *, threads: int | None = None, isa: str | None = None
    ) -> None:
        """`isa` is one of `library.ISAS`; default: the best that this processor has. Raises
        InputError for a network that it cannot run."""
        best = library.best_isa()
        if best is None:
            raise InputError(
                "engine native: its kernels were not compiled; install a C compiler (apt-get install gcc) and quantsr anew"
            )
        isa = isa or best
        if isa not in library.isas():
            raise InputError(f"isa: {isa!r} is not one that this processor has ({best} is its best)")
        try:
            self._program: Program = _laid_out(model, depth, isa)
        except Unsupported as error:
            raise InputError(
                f"engine native: cannot run this network, {error}; use --engine openvino"
            ) from None
        self._isa = library.ISAS[isa]
        self._threads = min(threads or cpu.cores(), _MAX_THREADS)
        self._scale = self._program.network.factor
        self._memory = np.empty(0, np.uint8)
        self._lock = threading.Lock()

    @property
    def in_sweeps(self) -> bool:
        """Whether the network has neither of the shapes that are fused as a whole."""
        return bool(self._program.network.program) and not self._program.network.swin

    def run(self, images: Images) -> Images:
        """See `runtimes.Engine.run`; (N, h, w, 3) uint8 or float32, picture by picture."""
        return self._run(images, None)

    def codes(self, image: Images) -> dict[str, NDArray[np.int16]]:
        """The codes that the layers of the blocks read on a picture (h, w, 3), by their names.

        Returns: of a QuantSR-C (C, h, w); of a QuantSR-T (tokens, C) of the padded picture, window
        by window as the layer has them.
        """
        height, width = (
            -(-size // self._program.multiple) * self._program.multiple for size in image.shape[:2]
        )
        maps = self._program.code_maps(height, width)
        copies = {name: np.zeros(math.prod(codes.shape), np.uint8) for name, codes in maps.items()}
        self._run(
            image[None], (ctypes.c_void_p * len(copies))(*(copy.ctypes.data for copy in copies.values()))
        )
        return {name: maps[name].codes(copy) for name, copy in copies.items()}

    def _run(self, images: Images, codes: Any) -> Images:
        """`run`; `codes` are the addresses that copies of the codes go to."""
        kernels = library.load()
        assert kernels is not None
        kept_height, kept_width = images.shape[1:3]
        if self._program.multiple > 1:
            rows, columns = (windows.reflected(size, self._program.multiple) for size in images.shape[1:3])
            images = images[:, rows[:, None], columns]
        images = np.ascontiguousarray(images)
        count, height, width, _ = images.shape
        results = np.empty((count, height * self._scale, width * self._scale, 3), images.dtype)
        with self._lock:
            network = self._program.for_size(height, width)
            for image, result in zip(images, results, strict=True):
                picture = structures.PictureBuffers(
                    image=image.ctypes.data,
                    out=result.ctypes.data,
                    height=height,
                    width=width,
                    is_float=images.dtype != np.uint8,
                    threads=self._threads,
                    codes=codes,
                )
                address = self._memory_of(kernels.quantsr_memory(network, picture))
                if kernels.quantsr_run(network, picture, self._isa, address):
                    raise AssertionError("the kernels refuse their arguments")
        return results[:, : kept_height * self._scale, : kept_width * self._scale]

    def _memory_of(self, size: int) -> int:
        """An aligned address with that much memory, kept between calls."""
        if len(self._memory) < size + _ALIGNMENT:
            self._memory = np.empty(size + _ALIGNMENT, np.uint8)
        return -(-self._memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT


def _laid_out(model: PackedModel, depth: int, isa: str) -> Program:
    """The network in the shape that is fastest: one of the two that are fused as a whole, else as
    sweeps. Raises Unsupported."""
    program = fold(model, depth, wide_inputs=False)
    if has_windows(program):
        return _made("SwinProgram", program, model, isa)
    try:
        return _made("ConvProgram", program, model, isa)
    except Unsupported:
        return _made("sweep_program", model, depth, isa)


def _made(maker: str, *args: Any) -> Program:
    module = import_module(f"quantsr.deploy.native.{_MAKERS[maker]}")
    made: Program = getattr(module, maker)(*args)
    return made
