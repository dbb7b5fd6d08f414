"""Weights to integers, kernel by kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rounded_with_sums(weight: NDArray[Any]) -> NDArray[Any]:
    """Integers for (O, I, kh, kw), as floats, less than 1 off, whose sum over every kernel is the
    nearest integer to its sum as well.

    What neighbouring pixels share is most of what a layer reads, and the sum is what a kernel makes
    of it; errors of the kernel's weights would add up there. So where the sum is off by n, the n
    weights that were rounded farthest in that direction are rounded the other way (the kernel-wise
    part of SQuant, Guo et al., ICLR 2022).
    """
    integers = np.rint(weight)
    error = (integers - weight).reshape(*weight.shape[:2], -1)  # (O, I, n)
    excess = np.rint(error.sum(2, keepdims=True))
    rank = np.argsort(np.argsort(-error * np.sign(excess), axis=2, kind="stable"), axis=2, kind="stable")
    integers -= (np.sign(excess) * (rank < np.abs(excess))).reshape(weight.shape)
    return integers
