"""The compiled kernels and the structures they read, which are those of `network.h`. They are compiled when quantsr is installed, where there is a compiler."""

from __future__ import annotations

import ctypes
import logging
from ctypes import POINTER, c_double, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from zlib import crc32

log = logging.getLogger(__name__)

ISAS = {"plain": 1, "avx2": 2, "avx512_vnni": 3}
"""Instruction sets that the kernels are written for."""

BYTES, WORDS, FLOATS = 0, 1, 2
"""Kinds of a convolution's inputs and weights."""

TILE, LARGE_TILE = 2, 4
"""Outputs along one side of a tile: of F(2x2, 3x3), and of F(4x4, 3x3) in blocks of few bits."""

LARGEST_WORD = 8191
"""Of 16-bit inputs: four of them add up to 16 bits."""

_FOLDER = Path(__file__).parent

F32 = POINTER(c_float)


class Conv(ctypes.Structure):
    _fields_ = (
        ("weight", c_void_p),
        ("start", POINTER(c_int32)),
        ("scale", F32),
        ("bias", F32),
        ("kind", c_int32),
        ("blocks", c_int32),
        ("outputs", c_int32),
        ("tile", c_int32),
        ("offset_sums", c_int32),
        ("offset_mixed", c_int32),
    )


class Quantizer(ctypes.Structure):
    _fields_ = (("tau", F32), ("factor", c_float * 2), ("low", c_float), ("high", c_float))


class Block(ctypes.Structure):
    _fields_ = (
        ("input", Quantizer),
        ("conv1", Conv),
        ("conv2", Conv),
        ("low", F32),
        ("high", c_float),
        ("shortcut", c_float),
        ("gaps", c_int32),
        ("gap", F32),
    )


class Ring(ctypes.Structure):
    _fields_ = (("weight", F32 * 9), ("bias", F32 * 9))


class Codes(ctypes.Structure):
    _fields_ = (("scale", F32), ("shift", F32), ("low", c_float), ("high", c_float))


class Norm(ctypes.Structure):
    _fields_ = (("weight", F32), ("bias", F32), ("low", c_float), ("high", c_float))


class Linear(ctypes.Structure):
    _fields_ = (
        ("weight", POINTER(c_int8)),
        ("start", POINTER(c_int32)),
        ("scale", F32),
        ("bias", F32),
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("rounds", c_int32),
        ("low", c_float),
        ("high", c_float),
    )


class SwinLayer(ctypes.Structure):
    _fields_ = (
        ("norm1", Norm),
        ("norm2", Norm),
        ("q", Linear),
        ("k", Linear),
        ("v", Linear),
        ("proj", Linear),
        ("fc1", Linear),
        ("fc2", Linear),
        ("bias", F32),
        ("score_scale", c_float),
        ("probabilities", Codes),
        ("mix", Codes),
        ("gelu", Codes),
        ("shift", c_int32),
        ("middle_scale", c_float),
        ("input_scale", c_float),
    )


class Rstb(ctypes.Structure):
    _fields_ = (
        ("start_scale", c_float),
        ("stream_scale", c_float),
        ("layers", c_int32),
        ("layer", POINTER(SwinLayer)),
        ("codes", Codes),
        ("closing", Conv),
        ("factor", F32),
    )


class Swin(ctypes.Structure):
    _fields_ = (
        ("dim", c_int32),
        ("heads", c_int32),
        ("hidden", c_int32),
        ("window", c_int32),
        ("groups", c_int32),
        ("group", POINTER(Rstb)),
        ("first", Norm),
        ("last", Norm),
        ("mask", F32),
    )


class Network(ctypes.Structure):
    _fields_ = (
        ("channels", c_int32),
        ("blocks", c_int32),
        ("gaps", c_int32),
        ("factor", c_int32),
        ("head", POINTER(c_double)),
        ("head_bias", F32),
        ("mean", F32),
        ("range", c_float),
        ("gap", F32),
        ("body", POINTER(Block)),
        ("after_body", Conv),
        ("tail", Conv),
        ("after_body_factor", F32),
        ("tail_factor", F32),
        ("ring", Ring),
        ("swin", POINTER(Swin)),
    )


class Picture(ctypes.Structure):
    _fields_ = (
        ("image", c_void_p),
        ("out", c_void_p),
        ("height", c_int32),
        ("width", c_int32),
        ("is_float", c_int32),
        ("threads", c_int32),
    )


@cache
def load() -> ctypes.CDLL | None:
    """The library; None where it was not compiled, or from other sources than those beside it."""
    for suffix in EXTENSION_SUFFIXES:
        file = _FOLDER / f"kernels{suffix}"
        if file.is_file():
            try:
                library = ctypes.CDLL(str(file))
            except OSError:  # of another machine
                continue
            if not _is_current(library):
                log.warning(
                    "%s: left out, compiled from other sources than those beside it; compile it anew with: "
                    "pip install --no-build-isolation --no-deps -e .",
                    file,
                )
                continue
            library.quantsr_memory.restype = c_size_t
            library.quantsr_memory.argtypes = [POINTER(Network), POINTER(Picture)]
            library.quantsr_run.argtypes = [POINTER(Network), POINTER(Picture), c_int32, c_void_p]
            return library
    return None


def _is_current(library: ctypes.CDLL) -> bool:
    """Whether the kernels are those of the C sources in this folder, or there are none (an installed package).

    Kernels that an editable installation left behind could read other structures, and give garbage in silence.
    """
    sources = sorted(path for path in _FOLDER.iterdir() if path.suffix in (".c", ".h", ".inc"))
    if not sources:
        return True
    try:
        library.quantsr_abi.restype = c_uint32
        return library.quantsr_abi() == crc32(b"".join(path.read_bytes() for path in sources))
    except AttributeError:  # from before there was a checksum
        return False


def best_isa() -> str | None:
    """The best of `ISAS` that this processor has; None without the library."""
    library = load()
    if library is None:
        return None
    best = library.quantsr_best_isa()
    return next(name for name, number in ISAS.items() if number == best)
