"""Convolutions of sweeps: which form each takes, and its weights in the order of the kernels."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import FoldedConv
from quantsr.deploy.native import structures, sums16
from quantsr.deploy.native.arrays import G2, G4, WIDE, Arrays, nested, transformed, wide_step
from quantsr.deploy.native.library import WITH_BYTE_PRODUCTS
from quantsr.deploy.native.match import Unsupported
from quantsr.deploy.native.sweeps import Channels
from quantsr.deploy.packed.model import PackedLayer

_SIZES = (1, 3, 5)
_BYTE, _SIGNED, _WORD, _SUM = 255, 127, 2**15 - 1, 2**31 - 1


@dataclass(frozen=True)
class Form:
    """How codes are stored for a convolution, and how it reads them."""

    form: int
    """IN_TILES or IN_TAPS."""
    kind: int
    """BYTES or WORDS."""
    offset: int = 0
    """Taken off the codes where they are stored."""
    tile: int = structures.TILE
    in_groups: bool = False
    """Whether products of bytes are added in 16 bits (`sums16`)."""


def kernel(conv: FoldedConv) -> NDArray[Any]:
    """(O, I, k, k); of a linear layer k is 1. Raises Unsupported for sizes that there are no
    kernels for."""
    if conv.groups > 1:
        raise Unsupported(f"{conv.name} has {conv.groups} groups")
    weight = conv.weight.reshape(*conv.weight.shape, 1, 1) if conv.weight.ndim == 2 else conv.weight
    if weight.shape[2] != weight.shape[3] or weight.shape[2] not in _SIZES:
        raise Unsupported(f"{conv.name} has a kernel of {weight.shape[2]} x {weight.shape[3]}")
    return weight


def form_of(conv: FoldedConv, isa: str) -> Form:
    """The fastest form in which every sum of this convolution of codes is exact. Raises
    Unsupported where there is none."""
    assert conv.codes_in is not None
    weight, (low, high) = kernel(conv), conv.codes_in
    size = weight.shape[2]
    bound = int(np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(1).max()) * max(-low, high)
    pairs = isa == "avx2"
    if size == 3:
        for tile, terms, matrix in ((structures.LARGE_TILE, 16, G4), (structures.TILE, 4, G2)):
            if (
                terms * (high - low) <= _BYTE
                and _is_signed_byte(weight, matrix)
                and bound * terms <= _SUM
                and (not pairs or sums16.fit(sums16.tile_parts(weight, (low, high), tile)))
            ):
                return Form(structures.IN_TILES, structures.BYTES, tile=tile, in_groups=pairs)
    span = int(np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(1).max()) * (high - low)
    bytes_fit = high - low <= _BYTE and span <= _SUM
    if bytes_fit and pairs:
        bytes_fit = sums16.fit(sums16.row_parts(tap_parts(weight), (low, high)))
    if bytes_fit and (isa in WITH_BYTE_PRODUCTS or size != 3):
        return Form(structures.IN_TAPS, structures.BYTES, offset=low, in_groups=pairs)
    if size == 3 and 4 * max(-low, high) <= _WORD and 4 * bound <= _SUM and _peak(weight, G2) <= _WORD:
        return Form(structures.IN_TILES, structures.WORDS)
    if max(-low, high) <= _WORD and bound <= _SUM:
        return Form(structures.IN_TAPS, structures.WORDS)
    raise Unsupported(f"{conv.name} has too many bits or inputs for sums of 32 bits")


def wide_form(layer: PackedLayer) -> Form | None:
    """The form in which products of 16 bits add a layer's weights times 14 bits of its inputs
    exactly; None where there is none."""
    if wide_step(layer) is None or not layer.integer or layer.weight.ndim != 4:
        return None
    in_tiles = layer.weight.shape[2:] == (3, 3)
    sums = np.abs(layer.weight.astype(np.int64)).sum((1, 2, 3))
    if (4 if in_tiles else 1) * structures.LARGEST_WORD * int(sums.max()) > _SUM:
        return None
    return Form(structures.IN_TILES if in_tiles else structures.IN_TAPS, structures.WORDS)


def wide_conv(layer: PackedLayer, conv: FoldedConv) -> tuple[FoldedConv, NDArray[np.float64]]:
    """A layer, which was folded in float as `conv`, on its own integer weights and on inputs of 14
    bits; and their step (C,)."""
    step = wide_step(layer)
    assert step is not None
    assert layer.weight_step is not None
    assert layer.act_step is not None
    unit = WIDE * float(layer.act_step[0]) * layer.weight_step.astype(np.float64)
    multiplier = (unit * conv.multiplier).astype(np.float32)  # of conv: factors merged into it
    limits = (-structures.LARGEST_WORD, structures.LARGEST_WORD)
    return FoldedConv(conv.name, layer.weight, multiplier, conv.bias, limits), step


def _is_signed_byte(weight: NDArray[Any], matrix: NDArray[Any]) -> bool:
    changed = transformed(weight.astype(np.int64), matrix)
    return bool(changed.min(initial=0) >= -_SIGNED - 1 and changed.max(initial=0) <= _SIGNED)


def _peak(weight: NDArray[Any], matrix: NDArray[Any]) -> int:
    return int(np.abs(transformed(weight.astype(np.int64), matrix)).max(initial=0))


def spread_weight(conv: FoldedConv, inputs: Channels, width: int, outputs: Channels, total: int) -> Any:
    """The kernel (total, width, k, k), its inputs and outputs where they lie, and 0 elsewhere."""
    weight = kernel(conv)
    whole = np.zeros((total, width, *weight.shape[2:]), weight.dtype)
    whole[np.ix_(outputs, inputs)] = weight
    return whole


def spread(values: Any, outputs: Channels, total: int) -> NDArray[Any]:
    """(total,) with the values (O,) where the outputs lie."""
    whole = np.zeros(total, np.asarray(values).dtype)
    whole[outputs] = values
    return whole


def integer_conv(
    arrays: Arrays, conv: FoldedConv, weight: Any, outputs: Channels, form: Form
) -> structures.Conv:
    """A convolution of codes with a `weight` (P, C, k, k) whose outputs lie at `outputs`."""
    assert conv.codes_in is not None
    total = len(weight)
    scale, bias = (spread(values, outputs, total) for values in (conv.multiplier, conv.bias))
    start = None
    offsets: dict[str, int] = {}
    if form.in_groups:
        address, start, scale, offsets = _in_groups(arrays, conv.codes_in, weight, scale, form)
    elif form.form == structures.IN_TAPS:
        address = arrays.weight(tap_parts(weight), np.int8 if form.kind == structures.BYTES else np.int16)
        if form.kind == structures.BYTES:
            start = arrays.pointer(form.offset * weight.astype(np.int64).sum((1, 2, 3)), np.int32)
    elif form.kind == structures.WORDS:
        address = arrays.weight(nested(weight.astype(np.int64), 1, G2), np.int16)
        scale = scale * np.float32(0.25)
    else:
        terms, matrix = (16, G4) if form.tile == structures.LARGE_TILE else (4, G2)
        positions = transformed(weight.astype(np.int64), matrix)
        sums, mixed = sums16.tile_offsets(conv.codes_in, form.tile)
        offset = np.full(len(positions), mixed)
        offset[len(matrix) + 1] = sums
        address = arrays.weight(list(positions), np.int8)
        start = arrays.pointer(-offset.reshape(-1, 1) * positions.sum(1), np.int32)
        scale = scale * np.float32(1 / terms)
        offsets = {"offset_sums": sums, "offset_mixed": mixed}
    return structures.Conv(
        weight=address,
        start=start,
        scale=arrays.pointer(scale),
        bias=arrays.pointer(bias),
        kind=form.kind,
        blocks=1,
        outputs=total,
        tile=form.tile,
        **offsets,
    )


def _in_groups(
    arrays: Arrays, codes: tuple[int, int], weight: NDArray[Any], scale: NDArray[Any], form: Form
) -> tuple[int, Any, NDArray[Any], dict[str, int]]:
    """Weights, `start`, scale and further fields of a convolution whose products of bytes are added
    in 16 bits."""
    if form.form == structures.IN_TAPS:
        found = sums16.fields(arrays, sums16.row_parts(tap_parts(weight), codes), one_position=True)
    else:
        found = sums16.fields(arrays, sums16.tile_parts(weight, codes, form.tile))
        sums, mixed = sums16.tile_offsets(codes, form.tile)
        found |= {"offset_sums": sums, "offset_mixed": mixed}
        scale = scale * np.float32(1 / (16 if form.tile == structures.LARGE_TILE else 4))
    return found.pop("weight"), found.pop("start"), scale, found


def float_conv(
    arrays: Arrays, conv: FoldedConv, weight: Any, outputs: Channels, form: int, inputs: int
) -> structures.Conv:
    """A convolution of float32: IN_DOUBLES as the reference has it, reading `inputs` channels, else
    in float32."""
    total = len(weight)
    scale, bias = (spread(values, outputs, total) for values in (conv.multiplier, conv.bias))
    if form == structures.IN_DOUBLES:
        laid_out = weight[:, :inputs].astype(np.float64).transpose(2, 3, 1, 0)
        address = ctypes.cast(arrays.pointer(laid_out, np.float64), ctypes.c_void_p).value
    elif form == structures.IN_TAPS:
        address = arrays.weight(tap_parts(weight.astype(np.float32)), np.float32)
    else:
        scaled = weight.astype(np.float64) * scale.astype(np.float64).reshape(-1, 1, 1, 1)
        address = arrays.weight(nested(scaled, 1, G2 / 2), np.float32)
    return structures.Conv(
        weight=address,
        scale=arrays.pointer(scale),
        bias=arrays.pointer(bias),
        kind=structures.FLOATS,
        blocks=1,
        outputs=total,
    )


def tap_parts(weight: Any) -> list[Any]:
    """(P, C, k, k) as one part for each row of the kernel, (k * C, P)."""
    rows = weight.transpose(2, 3, 1, 0)  # (k, k, C, P)
    return list(rows.reshape(len(rows), -1, len(weight)))
