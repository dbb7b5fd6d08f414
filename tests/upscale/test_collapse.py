"""The nine collapsed kernels give what the tail gives layer by layer, at every pixel."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.collapse import MIN_SIZE, Stage, collapse
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.tail import linear_tail
from quantsr.deploy.stand_ins.convolutional import random_model
from tests.reference import linear_tail as by_layers


def tail_of(model: PackedModel) -> tuple[Stage, ...]:
    tail = linear_tail(fold(model))
    assert tail is not None
    return tail.stages


def _by_kernels(kernels: dict, x: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    """Each low-resolution pixel by its own kernel. (C, H, W) -> (3, H*s, W*s)"""
    _, height, width = x.shape
    out = np.zeros((3, height * scale, width * scale))
    for y in range(height):
        for column in range(width):
            kernel = kernels[_position(y, height), _position(column, width)]
            window = x[:, _window(y, height), _window(column, width)]
            padded = np.zeros((len(x), *kernel.weight.shape[2:]))
            top = 2 - y if _position(y, height) == "inner" and y < 2 else 0
            left = 2 - column if _position(column, width) == "inner" and column < 2 else 0
            padded[:, top : top + window.shape[1], left : left + window.shape[2]] = window
            values = np.einsum("pchw,chw->p", kernel.weight.astype(np.float64), padded) + kernel.bias
            block = values.reshape(scale, scale, 3).transpose(2, 0, 1)
            out[:, y * scale : (y + 1) * scale, column * scale : (column + 1) * scale] = block
    return out


def _position(index: int, length: int) -> str:
    return "first" if index == 0 else "last" if index == length - 1 else "inner"


def _window(index: int, length: int) -> slice:
    return slice(max(0, index - 2), min(length, index + 3))


@pytest.mark.parametrize("size", [(MIN_SIZE, MIN_SIZE), (4, 7), (6, 5)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_against_layer_by_layer(scale: int, size: tuple[int, int]) -> None:
    tail = tail_of(random_model(num_feat=4, num_block=1, scale=scale, depths=(1,)))
    x = np.random.default_rng(0).normal(0, 30, (4, *size))
    expected = by_layers.run(tail, x)
    np.testing.assert_allclose(_by_kernels(collapse(tail), x, scale), expected, atol=1e-3)


def test_border_kernels_differ_from_inner_ones() -> None:
    """Zero padding between the layers shows at the border: one kernel for all pixels would not
    do."""
    tail = tail_of(random_model(num_feat=4, num_block=1, depths=(1,)))
    kernels = collapse(tail)
    inside = kernels["inner", "inner"].weight[:, :, 2:, :]  # rows from the pixel downwards
    assert np.abs(inside - kernels["first", "inner"].weight).max() > 1e-3
