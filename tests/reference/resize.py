"""Reference of ``quantsr.data.resize``: MATLAB's bicubic imresize pixel by pixel."""

from __future__ import annotations

import math

import numpy as np


def kernel(x: float) -> float:
    """Keys' cubic kernel, a = -1/2."""
    x = abs(x)
    if x <= 1:
        return 1.5 * (x * x * x) - 2.5 * (x * x) + 1
    if x <= 2:
        return -0.5 * (x * x * x) + 2.5 * (x * x) - 4 * x + 2
    return 0.0


def resize_line(line: list[int], scale: float) -> list[int]:
    """One line of uint8 values, resized and rounded, halves away from zero."""
    n = len(line)
    shrink = min(1.0, scale)
    result = []
    for i in range(1, math.ceil(n * scale) + 1):
        centre = i / scale + 0.5 * (1 - 1 / scale)
        first = math.floor(centre - 2 / shrink)
        last = first + math.ceil(4 / shrink) + 1
        weights = [shrink * kernel(shrink * (centre - j)) for j in range(first, last + 1)]
        value = weight_sum = 0.0
        for weight in weights:  # not sum(), which compensates from Python 3.12 on
            weight_sum += weight
        for j, weight in zip(range(first, last + 1), weights, strict=True):
            k = (j - 1) % (2 * n)  # symmetric padding: the line, then the reversed line, ...
            value += weight / weight_sum * line[k if k < n else 2 * n - 1 - k]
        rounded = math.floor(abs(value) + 0.5)
        result.append(0 if value < 0 else min(255, rounded))
    return result


def imresize_uint8(img: np.ndarray, scale: float) -> np.ndarray:
    """``(H, W, C)`` uint8: each column of each channel, then each row of the rounded result."""
    planes = []
    for c in range(img.shape[2]):
        columns = [resize_line([int(v) for v in img[:, x, c]], scale) for x in range(img.shape[1])]
        rows = np.array(columns, np.uint8).T
        planes.append([resize_line([int(v) for v in row], scale) for row in rows])
    return np.array(planes, np.uint8).transpose(1, 2, 0)
