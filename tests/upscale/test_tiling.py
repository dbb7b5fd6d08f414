"""Tiles cover the picture once, keep only what their halo allows, and change no bit of the
result."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantsr import Upscaler
from quantsr.deploy.stand_ins.convolutional import random_model
from quantsr.deploy.upscale import tiling
from quantsr.errors import InputError


@given(length=st.integers(1, 400), halo=st.integers(0, 20), keep=st.integers(1, 50))
def test_spans_cover_once_with_whole_halos(length: int, halo: int, keep: int) -> None:
    size = keep + 2 * halo
    spans = tiling.spans(length, size, halo)
    assert spans[0].keep_start == 0
    assert spans[-1].keep_stop == length
    assert all(a.keep_stop == b.keep_start for a, b in itertools.pairwise(spans))
    for span in spans:
        assert span.keep_start < span.keep_stop
        assert span.start >= 0
        assert span.start + span.size <= length
        assert span.start == 0 or span.keep_start - span.start >= halo
        assert span.start + span.size == length or span.start + span.size - span.keep_stop >= halo
    assert len({span.size for span in spans}) == 1


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), halo=st.integers(0, 40))
@settings(max_examples=60)
def test_plan_keeps_its_area(height: int, width: int, halo: int) -> None:
    plan = tiling.plan(height, width, halo, max_area=200_000)
    assert plan.tile[0] * plan.tile[1] <= 200_000
    assert plan.rows[-1].keep_stop == height
    assert plan.columns[-1].keep_stop == width
    assert plan.area >= height * width
    if height * width <= 200_000:
        assert plan.count == 1


def test_large_pictures_are_cut_with_little_overlap() -> None:
    plan = tiling.plan(10_000, 10_000, 36)
    assert plan.area < 1.5 * 10_000**2


def test_tile_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="tile: must be at least 1"):
        tiling.plan(10, 10, 3, tile=0)


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
@pytest.mark.parametrize("head_tail_bits", [8, 32])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_tiled_equals_whole_bit_for_bit(head_tail_bits: int, scale: int, upsampler: str, picture) -> None:
    model = random_model(
        num_feat=16,
        num_block=2,
        scale=scale,
        depths=(2, 1),
        head_tail_bits=head_tail_bits,
        upsampler=upsampler,
    )
    image = picture(47, 61)
    whole = Upscaler(model, "openvino")(image)
    for tile in (9, 20, 33):
        np.testing.assert_array_equal(Upscaler(model, "openvino", tile=tile)(image), whole)


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
def test_a_halo_one_pixel_short_shows(upsampler: str, picture) -> None:
    """The receptive field is exact: nothing smaller gives the same picture."""
    model = random_model(num_feat=16, num_block=2, scale=2, depths=(2,), upsampler=upsampler)
    image = picture(64, 64)
    whole = Upscaler(model, "openvino")(image)
    upscaler = Upscaler(model, "openvino", tile=16)
    upscaler.halo -= 1
    assert (upscaler(image) != whole).any()
