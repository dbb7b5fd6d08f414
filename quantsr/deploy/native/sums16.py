"""Sums of products of bytes in 16 bits, for AVX2 without VNNI, whose multiplication of bytes gives
nothing wider.

`vpmaddubsw` multiplies unsigned bytes by signed ones and adds two products, saturating to 16 bits.
Adding such pairs takes half as many instructions in 16 bits as in 32, and wraps around without
harm as long as the last sum fits. So inputs are taken in groups of steps, a step being 4 inputs in
two lanes of 16 bits, and the sums of a group are widened together. Exact are groups in which, for
every output and whatever the inputs are,

1. no two products exceed 16 bits, which would saturate, and
2. the sum over a lane does not, after what the inputs' offsets have added is taken off again: a
   group's sums start from minus the offset times the sum of its weights.

Weights of a transform that have a common factor go without it, and the sums are multiplied by it
when they are widened. The bounds follow from a layer's own weights (docs/reference/speed.md has
what that brings for the shipped networks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.native import structures
from quantsr.deploy.native.arrays import G2, G4, Arrays, transformed

STEP = 4
"""Inputs that are multiplied at once, in two lanes."""

_LANES = 2
_LOW, _HIGH = -(2**15), 2**15 - 1

_LARGE_WEIGHT = np.array([4, 1, 1, 2, 2, 1, 4])
"""What all weights of a line of `arrays.G4` have in common."""
_LARGE_INPUT = np.array([1, 1, 1, 1, 1, 2, 1])
"""What transformed inputs of large tiles have in common, line by line."""
_LARGE_TERMS = np.array([2, 4, 4, 4, 4, 2, 2])
"""How many inputs one of those is the sum or difference of, without that factor."""
_SMALL_WEIGHT = np.array([2, 1, 1, 2])
_SMALL_TERMS = np.array([2, 2, 2, 2])


@dataclass(frozen=True)
class Part:
    """Weights that meet the same kind of inputs: those at one position of a transform, or of one
    row of a kernel."""

    weight: NDArray[np.int64]
    """(I, P), without `factor`."""
    values: tuple[int, int]
    """Least and largest value of an input."""
    offset: int
    """Added to the inputs where they are stored, as unsigned bytes."""
    factor: int = 1
    """What the sums are multiplied by."""


def tile_parts(weight: NDArray[Any], codes: tuple[int, int], tile: int) -> list[Part]:
    """Of a kernel (P, I, 3, 3) of whole numbers in tiles: one part for each position."""
    low, high = codes
    if tile == structures.LARGE_TILE:
        matrix, in_weight, in_input, terms = G4, _LARGE_WEIGHT, _LARGE_INPUT, _LARGE_TERMS
    else:
        matrix, in_weight, in_input, terms = G2, _SMALL_WEIGHT, np.ones(4, np.int64), _SMALL_TERMS
    side = len(matrix)
    sums, mixed = tile_offsets(codes, tile)
    parts = []
    for position, of_position in enumerate(transformed(weight.astype(np.int64), matrix)):
        y, x = divmod(position, side)
        count = int(terms[y] * terms[x])
        of_weight = int(in_weight[y] * in_weight[x])
        factor = of_weight * int(in_input[y] * in_input[x])
        values, offset = (-(count * (high - low) // 2), count * (high - low) // 2), mixed
        if position == side + 1:
            values, offset = (count * low, count * high), sums
        parts.append(Part(of_position // of_weight, values, offset, factor))
    return parts


def row_parts(rows: Sequence[NDArray[Any]], codes: tuple[int, int]) -> list[Part]:
    """Of the rows (k * C, P) of a kernel whose inputs are stored as codes less the lowest."""
    return [Part(row.astype(np.int64), codes, -codes[0]) for row in rows]


def tile_offsets(codes: tuple[int, int], tile: int) -> tuple[int, int]:
    """What makes transformed inputs unsigned: at position (1, 1), all of whose terms are added, and
    at the others."""
    terms = 16 if tile == structures.LARGE_TILE else 4
    return -terms * codes[0], terms // 2 * (codes[1] - codes[0])


def fit(parts: Sequence[Part]) -> bool:
    """Whether groups of a single step are exact, wherever each input lies: inputs and weights fit
    in bytes, and any two products in 16 bits."""
    return all(_fits(part) for part in parts)


def _fits(part: Part) -> bool:
    weight, (low, high) = part.weight, part.values
    if low + part.offset < 0 or high + part.offset > np.iinfo(np.uint8).max:
        return False
    if weight.min(initial=0) < np.iinfo(np.int8).min or weight.max(initial=0) > np.iinfo(np.int8).max:
        return False
    stored = _extremes(weight, low + part.offset, high + part.offset)
    return all(
        _within(-_two_largest(least), _two_largest(most))
        for least, most in (stored, _extremes(weight, low, high))
    )


def _two_largest(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """(P,) the sum of the two largest sizes of values (I, P) for each output."""
    size = np.abs(values)
    count = len(size) - min(_LANES, len(size))
    total: NDArray[np.int64] = np.partition(size, count, axis=0)[count:].sum(0)
    return total


def _extremes(weight: NDArray[np.int64], low: int, high: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The least product of each weight with an input in low..high and 0, and the largest."""
    low, high = min(low, 0), max(high, 0)
    return np.minimum(weight * low, weight * high), np.maximum(weight * low, weight * high)


def _within(least: NDArray[np.int64], most: NDArray[np.int64]) -> bool:
    return bool(least.min(initial=0) >= _LOW and most.max(initial=0) <= _HIGH)


def steps_together(part: Part) -> int:
    """The most steps in a group, all groups but the last being equal, with which sums are exact.

    Of as many groups the shortest ones are taken: then the last is not much shorter. Raises
    ValueError for weights that do not `fit`.
    """
    inputs, outputs = part.weight.shape
    steps = inputs // STEP
    lanes = [
        products.reshape(steps, _LANES, STEP // _LANES, outputs).sum(2)
        for products in _extremes(part.weight, *part.values)
    ]
    for groups in range(1, steps + 1):
        length = -(-steps // groups)
        starts = np.arange(0, steps, length)
        if _within(*(np.add.reduceat(products, starts) for products in lanes)):
            return length
    raise ValueError("two products do not fit in 16 bits")


def fields(arrays: Arrays, parts: Sequence[Part], *, one_position: bool = False) -> dict[str, Any]:
    """Of a convolution with `in_groups`, those that differ from others'. `one_position`: the parts
    are rows of a kernel, which are added up."""
    lengths = [steps_together(part) for part in parts]
    if one_position:
        lengths = [min(lengths)] * len(parts)
    groups = [(length, part.factor) for length, part in zip(lengths, parts, strict=True)]
    return {
        "weight": arrays.aligned(laid_out(parts, lengths)),
        "start": arrays.pointer(groups[:1] if one_position else groups, np.int32),
        "in_groups": 1,
    }


def laid_out(parts: Sequence[Part], lengths: Sequence[int]) -> NDArray[np.int8]:
    """Weights as a convolution with `in_groups` has them: for each part and each group of so many
    steps what its sums start from, [P][2] of 16 bits modulo 2^16, and its weights [steps][P][4]."""
    pieces = []
    for part, length in zip(parts, lengths, strict=True):
        inputs, outputs = part.weight.shape
        steps = part.weight.reshape(inputs // STEP, STEP, outputs).transpose(0, 2, 1)  # (steps, P, 4)
        for first in range(0, len(steps), length):
            group = steps[first : first + length]
            lanes = group.reshape(-1, outputs, _LANES, STEP // _LANES).sum((0, 3))  # (P, 2)
            start = (-part.offset * lanes).astype(np.int16, casting="unsafe")
            pieces += [start.ravel().view(np.int8), group.astype(np.int8).ravel()]
    return np.concatenate(pieces)
