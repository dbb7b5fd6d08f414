"""MATLAB's ``imresize(img, scale, 'bicubic')`` for uint8 pictures, bit for bit, in numpy.

It makes the LR pictures of the super-resolution benchmarks, and it is their bicubic baseline.
"""

from __future__ import annotations

import math
from functools import lru_cache, reduce

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

#: Accumulators (float64) per block: few enough for the processor's cache, many enough to amortise
#: numpy's calls.
_BLOCK = 1 << 16


def cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -1/2, as in MATLAB; zero outside [-2, 2]."""
    a = np.abs(x)
    a2 = a * a
    a3 = a2 * a
    inner = (1.5 * a3 - 2.5 * a2 + 1) * (a <= 1)
    return inner + (-0.5 * a3 + 2.5 * a2 - 4 * a + 2) * ((a > 1) & (a <= 2))


@lru_cache(maxsize=64)
def contributions(length: int, scale: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """For each output position the first input position and the weights of its neighbourhood.

    Args:
        length: number of input samples along the axis.
        scale: output samples per input sample. Below 1 the kernel is stretched by 1/scale
            (antialiasing).

    Returns:
        left: ``(ceil(length * scale),)``, position of the first tap; may lie outside
            ``0..length-1``, where padding is symmetric (the edge sample is repeated).
        weights: ``(ceil(length * scale), taps)``, each row of sum 1.
    """
    shrink = min(scale, 1.0)
    width = 4 / shrink
    out = np.arange(1, math.ceil(length * scale) + 1, dtype=np.float64)
    centre = out / scale + 0.5 * (1 - 1 / scale)  # MATLAB counts from 1
    left = np.floor(centre - width / 2)
    taps = math.ceil(width) + 2
    offset = centre[:, None] - (left[:, None] + np.arange(taps))
    weights = shrink * cubic(shrink * offset)
    # summed in order: the order of numpy's own sum is unspecified
    weights /= reduce(np.add, weights.T)[:, None]
    used = np.flatnonzero(np.any(weights != 0, axis=0))
    weights = np.ascontiguousarray(weights[:, used[0] : used[-1] + 1])
    return (left - 1 + used[0]).astype(np.intp), weights


def _resize_rows(rows: U8, scale: float) -> U8:
    """Resizes axis 0 of ``(n, m)`` to ``(ceil(n * scale), m)`` and rounds to uint8, halves up."""
    length, width = rows.shape
    left, weights = contributions(length, scale)
    count, taps = weights.shape
    symmetric = np.concatenate([np.arange(length), np.arange(length)[::-1]])
    result = np.empty((count, width), np.uint8)
    block = min(count, max(1, _BLOCK // width))
    sums, term = np.empty((2, block, width), np.float64)
    for start in range(0, count, block):
        stop = min(start + block, count)
        first = left[start]
        needed = np.arange(first, left[stop - 1] + taps) % (2 * length)
        source = rows[symmetric[needed]].astype(np.float64)
        at = left[start:stop] - first
        step = int(at[1]) if len(at) > 1 else 1
        even = step > 0 and np.array_equal(at, np.arange(len(at)) * step)
        total, product = sums[: stop - start], term[: stop - start]
        total.fill(0)
        for tap in range(taps):  # in order: ties at scale 1/3 depend on the order of summation
            picked = source[tap : tap + (len(at) - 1) * step + 1 : step] if even else source[at + tap]
            np.multiply(picked, weights[start:stop, tap, None], out=product)
            total += product
        total += 0.5  # MATLAB rounds halves away from zero; negative sums are clipped
        np.clip(total, 0, 255, out=total)
        result[start:stop] = total  # truncation, which equals floor for sums >= 0
    return result


def imresize_uint8(img: U8, scale: float) -> U8:
    """Resizes a picture as MATLAB's ``imresize`` does, antialiased bicubic, rounding after each
    dimension.

    Args:
        img: ``(H, W, C)`` or ``(H, W)`` uint8.
        scale: output size over input size, both dimensions; e.g. ``1 / 4`` or ``4``.

    Returns:
        ``(ceil(H * scale), ceil(W * scale), C)`` or without C, uint8. Rows are resized first, then
        columns, each rounded to uint8, which is what MATLAB does when both have the same scale.

    Raises:
        ValueError: the picture is not uint8, has no pixels, or the scale is not positive.
    """
    if img.dtype != np.uint8 or img.ndim not in (2, 3) or 0 in img.shape:
        raise ValueError(f"img must be uint8 of shape (H, W) or (H, W, C), got {img.dtype} {img.shape}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive, got {scale}")
    if scale == 1:
        return img.copy()
    height, width = img.shape[:2]
    rest = img.shape[2:]
    scale = float(scale)
    low = _resize_rows(img.reshape(height, -1), scale)  # (H', W*C)
    low = low.reshape(low.shape[0], width, *rest)
    transposed = np.ascontiguousarray(low.swapaxes(0, 1))  # (W, H', C)
    low = _resize_rows(transposed.reshape(width, -1), scale)  # (W', H'*C)
    low = low.reshape(low.shape[0], transposed.shape[1], *rest)
    return np.ascontiguousarray(low.swapaxes(0, 1))


def mod_crop(img: U8, multiple: int) -> U8:
    """The top left part of ``(H, W, ...)`` whose height and width are multiples of ``multiple``; a
    view."""
    height, width = img.shape[:2]
    return img[: height - height % multiple, : width - width % multiple]
