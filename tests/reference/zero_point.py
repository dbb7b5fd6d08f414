"""Reference layers with a zero point: one number at a time, on values.

An activation's code is ``q = clip(round((a + tau) / s) + z, Qn, Qp)``, its value ``s (q - z)``. A
convolution pads with the code ``z``, which stands for 0.
"""

from __future__ import annotations

import numpy as np


def code(a: float, tau: float, s: float, z: int, low: int, high: int) -> int:
    """The code of ``a``; rounded half to even, before the zero point is added."""
    return min(max(round((a + tau) / s) + z, low), high)


def convolution(
    codes: np.ndarray, weight: np.ndarray, bias: np.ndarray, s: float, z: int, s_w: float
) -> np.ndarray:
    """(I, H, W) codes and (O, I, k, k) weight codes to (O, H, W), stride 1, padding ``k // 2``."""
    out, inp, size, _ = weight.shape
    height, width = codes.shape[1:]
    result = np.zeros((out, height, width))
    for o in range(out):
        for y in range(height):
            for x in range(width):
                total = 0
                for c in range(inp):
                    for i in range(size):
                        for j in range(size):
                            row, column = y + i - size // 2, x + j - size // 2
                            inside = 0 <= row < height and 0 <= column < width
                            q = int(codes[c, row, column]) if inside else z
                            total += int(weight[o, c, i, j]) * (q - z)
                result[o, y, x] = s * s_w * total + bias[o]
    return result


def linear(
    codes: np.ndarray, weight: np.ndarray, bias: np.ndarray, s: float, z: int, s_w: float
) -> np.ndarray:
    """(M, I) codes and (O, I) weight codes to (M, O)."""
    result = np.zeros((len(codes), len(weight)))
    for m, row in enumerate(codes):
        for o, column in enumerate(weight):
            total = sum(int(w) * (int(q) - z) for q, w in zip(row, column, strict=True))
            result[m, o] = s * s_w * total + bias[o]
    return result
