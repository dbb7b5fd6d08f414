"""Reference of `quantsr.deploy.passes.collapse`: a linear tail by layers in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.passes.collapse import Stage


def conv(
    x: NDArray[np.float64], weight: NDArray[np.float64], bias: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Zero-padded 3x3 conv, (I, H, W) -> (O, H, W), tap by tap."""
    outputs, _, k, _ = weight.shape
    _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    y = np.zeros((outputs, height, width)) + bias[:, None, None]
    for dy in range(k):
        for dx in range(k):
            y += np.einsum("oi,ihw->ohw", weight[:, :, dy, dx], padded[:, dy : dy + height, dx : dx + width])
    return y


def pixel_shuffle(x: NDArray[np.float64], r: int) -> NDArray[np.float64]:
    c, h, w = x.shape
    y = np.zeros((c // (r * r), h * r, w * r))
    for k in range(c):
        y[k // (r * r), (k % (r * r)) // r :: r, k % r :: r] = x[k]
    return y


def run(tail: Sequence[Stage], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C, H, W) features -> (3, H*s, W*s) pixel values."""
    for stage in tail:
        layer = stage.conv
        weight = layer.weight.astype(np.float64) * layer.multiplier.astype(np.float64)[:, None, None, None]
        x = pixel_shuffle(conv(x, weight, layer.bias.astype(np.float64)), stage.shuffle)
    return x
