"""F(2x2, 3x3) of Lavin and Gray (CVPR 2016, section 4.1), number by number: twin of the transforms in quantsr/deploy/native."""

from __future__ import annotations

import numpy as np

B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
"""B^T"""
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
"""A^T"""


def tile_of_outputs(tile: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(I, 4, 4) inputs and (O, I, 3, 3) weights -> (O, 2, 2)."""
    result = np.zeros((len(weight), 2, 2))
    for o, kernels in enumerate(weight):
        products = np.zeros((4, 4))
        for d, g in zip(tile, kernels, strict=True):
            products += (B @ d @ B.T) * (G @ g @ G.T)
        result[o] = A @ products @ A.T
    return result


def plain_tile(tile: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same as four sums of nine products."""
    result = np.zeros((len(weight), 2, 2), tile.dtype)
    for o, y, x in np.ndindex(result.shape):
        result[o, y, x] = (tile[:, y : y + 3, x : x + 3] * weight[o]).sum()
    return result
