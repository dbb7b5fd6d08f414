"""Colours of fully transparent pixels, which must not affect visible ones."""

from __future__ import annotations

import numpy as np
import pytest

from quantsr.pictures.transparency import fill_hidden, on_white

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_hidden_colours_become_the_nearest_visible_one(dtype: type) -> None:
    """By a search over all pixels: the colour is that of a pixel at (nearly) the least distance."""
    top = np.iinfo(dtype).max
    rgb = RNG.integers(0, top, (14, 17, 3), dtype)
    alpha = np.where(RNG.random((14, 17)) < 0.1, top, 0).astype(dtype)
    filled = fill_hidden(rgb, alpha)
    places = np.argwhere(alpha)
    for y in range(14):
        for x in range(17):
            distances = np.hypot(*(places - (y, x)).T)
            near = places[distances <= distances.min() * 1.05 + 1e-6]
            assert filled[y, x].tolist() in [rgb[a, b].tolist() for a, b in near]


def test_visible_colours_are_unchanged() -> None:
    rgb = RNG.integers(0, 256, (6, 7, 3), np.uint8)
    alpha = RNG.integers(0, 2, (6, 7), np.uint8)
    np.testing.assert_array_equal(fill_hidden(rgb, alpha)[alpha > 0], rgb[alpha > 0])
    for same in (None, np.zeros_like(alpha), np.full_like(alpha, 1)):
        assert fill_hidden(rgb, same) is rgb


def test_an_alpha_that_rounds_to_0_counts_as_0() -> None:
    rgb = np.array([[[9, 9, 9], [1, 2, 3]]], np.uint16)
    filled = fill_hidden(rgb, np.array([[128, 65535]], np.uint16))
    np.testing.assert_array_equal(filled[0, 0], rgb[0, 1])
    assert fill_hidden(rgb, np.array([[129, 65535]], np.uint16)) is rgb


def test_colours_are_composed_over_white() -> None:
    rgb = np.array([[[0, 100, 255]] * 3], np.uint8)
    alpha = np.array([[0, 255, 51]], np.uint8)
    np.testing.assert_array_equal(on_white(rgb, alpha)[0], [[255] * 3, [0, 100, 255], [204, 224, 255]])
