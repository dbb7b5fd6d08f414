"""Convolutions that read the picture. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantsr.deploy.folded import FirstConv
from quantsr.deploy.packed.model import Float, PackedLayer
from quantsr.deploy.passes import constants

_HIGH_INPUT = 256.0  # largest integer that the input is split into
_FINER = 256.0  # units of the middle part in one of the high part, of inputs and weights alike


def first_conv(packed: PackedLayer, mean: Sequence[float], img_range: float) -> FirstConv:
    """The convolution. Where its codes are so close to the pixels that they are the pixels, it
    reads those."""
    packed = packed.without_groups()
    conv = constants.layer(packed, exact=True)
    rounded = (np.float32(img_range), np.asarray(mean, np.float32))
    if packed.bits_a > constants.CODE_BITS:
        return FirstConv(conv, *rounded)
    step, tau = constants.step_and_tau(packed)
    unit = img_range / 255.0
    pixel_multiplier = unit / float(step[0])
    pixel_shift = (tau - 255.0 * np.asarray(mean, np.float64) * unit) / step
    # Far from half way to another code.
    if abs(pixel_multiplier - 1) * 255 + np.abs(pixel_shift).max() < 0.01:
        return FirstConv(conv, *rounded)
    quantize = constants.quantize(packed, exact=True)
    assert isinstance(quantize, constants.Quantize)
    return FirstConv(conv, *rounded, quantize)


@dataclass(frozen=True, eq=False)
class SplitHead:
    """A float convolution of the picture as three that give its exact sums, rounded once, in
    whatever order their products are added.

    The input is taken apart as x = h + m + l, h and m multiples of 1 / `unit` and of 1 / `finer`,
    the weights likewise; then

        a = conv(h, high)    b = conv([h, m], middle)    c = conv([h, m, l], low)    s = a + b
        y = s + (((a - s) + b) + c)

    float32 adds the products of `a` and of `b` without rounding, (a - s) + b is what rounding took
    from `s`, and `c` is a 2 ** 16th of `a`, so that its own rounding hardly ever reaches the result
    (of the x4 network, in 1 of 8,000 values).
    """

    unit: np.float32
    finer: np.float32
    """Powers of two."""
    high: Float
    """(O, I, kh, kw)"""
    middle: Float
    """(O, 2 * I, kh, kw)"""
    low: Float
    """(O, 3 * I, kh, kw)"""


def split_head(first: FirstConv) -> SplitHead:
    """Split the float weight of `first.head`; each part of the input is `(pixel / 255 - mean) *
    img_range`."""
    weight = first.head.weight.astype(np.float32)
    largest = float(first.img_range) * max(
        float(np.abs(first.mean).max()), float(np.abs(1 - first.mean).max())
    )
    unit = np.exp2(np.floor(np.log2(_HIGH_INPUT / largest)))
    room = 2.0**24 / (_HIGH_INPUT * weight[0].size)
    peaks = np.maximum(np.abs(weight).reshape(len(weight), -1).max(1), np.float32(1e-30)).astype(np.float64)
    units = np.exp2(np.floor(np.log2(room / peaks))).reshape(-1, 1, 1, 1)
    high = (np.rint(weight * units) / units).astype(np.float32)
    rest = weight - high
    middle = (np.rint(rest * (units * _FINER)) / (units * _FINER)).astype(np.float32)
    return SplitHead(
        unit=np.float32(unit),
        finer=np.float32(unit * _FINER),
        high=high,
        middle=np.concatenate([middle, high], 1),
        low=np.concatenate([rest - middle, rest, weight], 1),
    )
