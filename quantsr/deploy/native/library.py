"""The compiled kernels, and the structures they read (`structures.py`). They are compiled when
quantsr is installed, where there is a compiler."""

from __future__ import annotations

import ctypes
import logging
from ctypes import POINTER, c_char_p, c_int32, c_size_t, c_void_p
from functools import cache
from pathlib import Path

from quantsr.deploy.native.structures import STRUCTURES, Network, PictureBuffers

log = logging.getLogger(__name__)

ABI = 5
"""The number of the interface between `structures.py` and the kernels: `QUANTSR_ABI` of
`network.h`. Add one to both whenever a structure, the meaning of a field or an entry point
changes."""

ISAS = {
    "plain": 1,
    "avx2": 2,
    "avx_vnni": 8,
    "avx512_vnni": 3,
    "amx": 4,
    "neon": 5,
    "neon_dotprod": 6,
    "neon_i8mm": 7,
}
"""Instruction sets that the kernels are written for, and their numbers in them; of those that a
processor has, the last in this order is the fastest."""

WITH_BYTE_PRODUCTS = frozenset({"avx_vnni", "avx512_vnni", "amx", "neon_dotprod", "neon_i8mm"})
"""Those with an instruction that adds four products of bytes in 32 bits."""

_FOLDER = Path(__file__).parent
_NAME = "kernels.so"

Layout = dict[tuple[str, str | None], tuple[int, int]]
"""Offset and size in bytes by the names of a structure and of its field, None being the whole."""


class _LayoutEntry(ctypes.Structure):
    _fields_ = (
        ("structure", c_char_p),  # None behind the last
        ("field", c_char_p),
        ("offset", c_int32),
        ("size", c_int32),
    )


@cache
def load() -> ctypes.CDLL | None:
    """The library; None where it was not compiled, or with other structures or entry points than
    those of `structures.py`."""
    file = _FOLDER / _NAME
    if not file.is_file():
        return None
    try:
        library = ctypes.CDLL(str(file))
    except OSError:  # of another machine
        return None
    if not is_current(library):
        log.warning(
            "%s: left out, compiled from another version of quantsr; compile it anew with: "
            "pip install --no-build-isolation --no-deps -e .",
            file,
        )
        return None
    library.quantsr_memory.restype = c_size_t
    library.quantsr_memory.argtypes = [POINTER(Network), POINTER(PictureBuffers)]
    library.quantsr_run.argtypes = [POINTER(Network), POINTER(PictureBuffers), c_int32, c_void_p]
    return library


def is_current(library: ctypes.CDLL) -> bool:
    """Whether compiled kernels have this file's structures and entry points. Those that an editable
    installation left behind could read other structures, and silently give wrong pictures."""
    try:
        return library.quantsr_abi() == ABI and compiled_layout(library) == layout()
    except AttributeError:  # from before there was an ABI number or a layout
        return False


def compiled_layout(library: ctypes.CDLL) -> Layout:
    """The layout of the structures that the library was compiled with."""
    library.quantsr_layout.restype = POINTER(_LayoutEntry)
    layout: Layout = {}
    for entry in library.quantsr_layout():
        if entry.structure is None:
            break
        field = None if entry.field is None else entry.field.decode()
        layout[entry.structure.decode(), field] = (entry.offset, entry.size)
    return layout


def layout() -> Layout:
    """The layout of the structures of this file."""
    layout: Layout = {}
    for structure in STRUCTURES:
        layout[structure.__name__, None] = (0, ctypes.sizeof(structure))
        for name, *_ in structure._fields_:
            field = getattr(structure, name)
            layout[structure.__name__, name] = (field.offset, field.size)
    return layout


def isas() -> list[str]:
    """Those of `ISAS` that this processor has; none without the library."""
    library = load()
    return [] if library is None else [name for name, i in ISAS.items() if library.quantsr_isas() >> i & 1]


def best_isa() -> str | None:
    """The best of `ISAS` that this processor has; None without the library."""
    return next(reversed(isas()), None)
