"""Reference of the Winograd transforms in quantsr/deploy/native, number by number."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Form(NamedTuple):
    """Transposed transform matrices of inputs (b) and outputs (a), and that of weights (g)."""

    b: np.ndarray
    g: np.ndarray
    a: np.ndarray


SMALL = Form(
    np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
)
"""F(2, 3) of Lavin and Gray (CVPR 2016, section 4.1)."""

LARGE = Form(
    np.array(
        [
            [1, 0, 0, 0, -1, 0],
            [0, 1, 1, 1, 1, 0],
            [0, -1, 1, -1, 1, 0],
            [0, -1, -1, 1, 1, 0],
            [0, 1, -1, -1, 1, 0],
            [0, 2, 0, -2, 0, 0],
            [0, -1, 0, 0, 0, 1],
        ]
    ),
    np.array(
        [
            [1, 0, 0],
            [0.25, 0.25, 0.25],
            [0.25, -0.25, 0.25],
            [0.5, 0, -0.5],
            [0, -0.5, 0],
            [0.25, 0.25, -0.25],
            [0, 0, 1],
        ]
    ),
    np.array(
        [[1, 1, 1, 1, 0, 1, 0], [0, 1, -1, 0, 1, 1, 0], [0, 1, 1, -1, 0, -1, 0], [0, 1, -1, 0, -1, -1, 1]]
    ),
)
"""F(4, 3) at 0, 1, -1, infinity and modulo x^2 + 1 (as in Barabasz and Gregg, 2019)."""


def tile_of_outputs(tile: np.ndarray, weight: np.ndarray, form: Form) -> np.ndarray:
    """(I, t + 2, t + 2) inputs and (O, I, 3, 3) weights -> (O, t, t)."""
    side = len(form.a)
    result = np.zeros((len(weight), side, side))
    for o, kernels in enumerate(weight):
        products = np.zeros((len(form.g), len(form.g)))
        for d, g in zip(tile, kernels, strict=True):
            products += (form.b @ d @ form.b.T) * (form.g @ g @ form.g.T)
        result[o] = form.a @ products @ form.a.T
    return result


def plain_tile(tile: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The convolution as sums of nine products; shapes as `tile_of_outputs`."""
    side = tile.shape[1] - 2
    result = np.zeros((len(weight), side, side), tile.dtype)
    for o, y, x in np.ndindex(result.shape):
        result[o, y, x] = (tile[:, y : y + 3, x : x + 3] * weight[o]).sum()
    return result
