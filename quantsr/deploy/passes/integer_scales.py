"""Layers that give codes, with a bias that is an integer: as integer kernels take it. Imports no
torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import LARGEST_CODE, FoldedConv

PAIR_LIMIT = 2**15 - 1
"""Processors without VNNI add two products of bytes in 16 bits, and saturate beyond this."""

_LARGEST_WEIGHT = 127
_NEAR = 3  # biases tried on each side of the nearest
_ROOM = 1e-4  # relative width of a range of scales, with which no other bias is tried


@dataclass(frozen=True, eq=False)
class IntegerConv:
    """`code = clip(rint((conv(x, weight) + bias[o]) * scale[o]))`, sum and bias in integers, their
    product in float32."""

    weight: NDArray[np.int8]
    """(O, I, kh, kw), those of the layer times a factor for each output."""
    bias: NDArray[np.int32]
    """(O,)"""
    scale: NDArray[np.float32]
    """(O,)"""


def bytes_fit(conv: FoldedConv, factor: int = 1) -> bool:
    """Whether the sum of any two products of a byte (the codes, the least of them stored as 0) and
    `factor` times a weight fits into 16 bits."""
    if not conv.integer or conv.codes_in is None or conv.zero_point is not None:
        return False
    largest = conv.codes_in[1] - min(conv.codes_in[0], 0)
    weight = factor * int(np.abs(conv.weight.astype(np.int64)).max())
    return (
        largest <= LARGEST_CODE
        and weight <= _LARGEST_WEIGHT + (factor == 1)
        and 2 * largest * weight <= PAIR_LIMIT
    )


def integer_conv(conv: FoldedConv) -> IntegerConv | None:
    """The same codes of every possible sum, with an integer bias; None where there is no such bias
    and scale, or where products do not fit (`bytes_fit`).

    A code k is reached from a smallest sum T[k] on. `(T[k] * f + bias) * scale` must lie above
    k - 1/2 and `((T[k] - 1) * f + bias) * scale` below. Factors f of the weight, with which the
    bias has finer steps, and biases next to the layer's are tried; where several leave scales, an
    output takes those that leave the widest range, and the middle of it.
    """
    if conv.codes_out is None or conv.codes_out[1] - min(conv.codes_out[0], 0) > LARGEST_CODE:
        return None
    if not bytes_fit(conv) or (conv.multiplier <= 0).any():
        return None
    lowest, highest = _reach(conv)
    first = _first_sums(conv, lowest, highest)
    room, factors, biases, scales = np.zeros((4, len(first)))
    for factor in range(1, _LARGEST_WEIGHT + 1):
        if (room > _ROOM).all() or not bytes_fit(conv, factor):
            break
        near = np.rint(factor * conv.bias.astype(np.float64) / conv.multiplier)
        for bias in near + np.arange(-_NEAR, _NEAR + 1)[:, None]:
            low, high = _scales(conv, first, factor, bias)
            width = 1 - np.divide(low, high, out=np.ones_like(high), where=low < high)
            wider = width > room
            factors[wider], biases[wider], scales[wider] = factor, bias[wider], ((low + high) / 2)[wider]
            room[wider] = width[wider]
    if (room == 0).any() or (np.abs(biases) >= 2**31).any():
        return None
    weight = conv.weight * factors.reshape(-1, *[1] * (conv.weight.ndim - 1))
    found = IntegerConv(weight.astype(np.int8), biases.astype(np.int32), scales.astype(np.float32))
    # Codes never fall with the sum: it is enough to look at both ends and where codes begin.
    begins = np.where(np.isfinite(first), first, lowest[:, None] + 1)
    sums = np.concatenate([begins, begins - 1, lowest[:, None], highest[:, None]], 1).astype(np.int64)
    integers = sums * factors.astype(np.int64)[:, None] + found.bias[:, None]
    codes = np.clip(np.rint(integers.astype(np.float32) * found.scale[:, None]), *conv.codes_out)
    if conv.low is not None:
        codes = np.maximum(codes, conv.low[:, None])
    return found if (codes == codes_of_sums(conv, sums)).all() else None


def codes_of_sums(conv: FoldedConv, sums: NDArray[np.int64]) -> NDArray[np.float32]:
    """The codes that the layer gives of sums (O, n)."""
    assert conv.codes_out is not None
    y = sums.astype(np.float32) * conv.multiplier[:, None] + conv.bias[:, None]
    if conv.low is not None:
        y = np.maximum(y, conv.low[:, None])
    return np.clip(np.rint(y), *conv.codes_out)


def _reach(conv: FoldedConv) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(O,) smallest and largest sum that any codes can give."""
    assert conv.codes_in is not None
    weight = conv.weight.reshape(len(conv.weight), -1).astype(np.int64)
    low, high = min(conv.codes_in[0], 0), max(conv.codes_in[1], 0)  # 0 is the padding
    positive, negative = np.maximum(weight, 0).sum(1), np.minimum(weight, 0).sum(1)
    return low * positive + high * negative, high * positive + low * negative


def _first_sums(
    conv: FoldedConv, lowest: NDArray[np.int64], highest: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(O, K) smallest sum with each code but the lowest; infinite where all sums or none have
    it."""
    assert conv.codes_out is not None
    codes = np.arange(conv.codes_out[0] + 1, conv.codes_out[1] + 1)
    least, most = lowest[:, None] + 0 * codes, highest[:, None] + 0 * codes
    reached = codes_of_sums(conv, most) >= codes
    always = codes_of_sums(conv, least) >= codes
    while (most - least > 1).any():  # bisection: `most` has the code, `least` has not
        middle = (least + most) // 2
        has = codes_of_sums(conv, middle) >= codes
        least, most = np.where(has, least, middle), np.where(has, middle, most)
    return np.where(reached & ~always, most, np.inf)


def _scales(
    conv: FoldedConv, first: NDArray[np.float64], factor: int, bias: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(O,) the scales between which every code begins at its sum."""
    assert conv.codes_out is not None
    edges = np.arange(conv.codes_out[0] + 1, conv.codes_out[1] + 1) - 0.5
    counts = np.isfinite(first)
    at = np.where(counts, first, 0) * factor + bias[:, None]  # (O, K)
    before = at - factor
    with np.errstate(divide="ignore", invalid="ignore"):
        # at * scale > edge and before * scale < edge
        low = np.where(edges > 0, np.where(at > 0, edges / at, np.inf), 0.0)
        low = np.maximum(low, np.where(edges < 0, np.where(before < 0, edges / before, np.inf), 0.0))
        high = np.where((edges > 0) & (before > 0), edges / before, np.inf)
        high = np.minimum(high, np.where((edges < 0) & (at < 0), edges / at, np.inf))
    low = np.where(counts, low, 0).max(1)
    high = np.where(counts, high, np.inf).min(1)
    plain = conv.multiplier.astype(np.float64) / factor
    unbounded = ~np.isfinite(high)
    return low, np.where(unbounded, np.maximum(2 * low, 2 * plain), high)
