"""Folding and the integer reference against the network's definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantsr.deploy import integer
from quantsr.deploy.fold import _requantized, fold
from quantsr.deploy.model import ConvLayer, PackedModel, code_range
from quantsr.errors import InputError
from quantsr.quant import IntRange
from tests.deploy.conftest import dyadic_model, small_model
from tests.reference import integer as reference


@pytest.mark.parametrize("head_tail_bits", [8, 32])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_folded_network_is_the_definition_exactly(picture, scale, head_tail_bits):
    # Every constant is dyadic: neither side rounds, so a difference would be an error in the folding.
    model = dyadic_model(scale=scale, head_tail_bits=head_tail_bits)
    for depth in model.header.depths:
        expected = reference.run(model, picture, depth)
        assert expected.std() > 5
        np.testing.assert_array_equal(integer.run(model, picture, depth), expected)


@pytest.mark.parametrize(("bits_w", "bits_a"), [(2, 2), (3, 5), (4, 4), (8, 8), (4, 32), (32, 4), (32, 32)])
def test_every_bit_width_folds_exactly(picture, bits_w, bits_a):
    model = dyadic_model(bits_w=bits_w, bits_a=bits_a)
    np.testing.assert_array_equal(integer.run(model, picture, 2), reference.run(model, picture, 2))


def test_res_scale_and_img_range_fold(picture):
    model = dyadic_model()
    first = replace(
        model.layers["conv_first"],
        act_step=np.array([1 / 255], np.float32),
        act_tau=model.layers["conv_first"].act_tau / np.float32(255),
    )
    header = replace(model.header, res_scale=0.25, img_range=1.0)
    scaled = PackedModel(header, {**model.layers, "conv_first": first})
    assert fold(scaled).pixels_are_codes
    # 1/255 is not dyadic: a code may fall to the other side of a tie, and nothing more.
    difference = integer.run(scaled, picture).astype(int) - reference.run(scaled, picture, 4)
    assert np.abs(difference).max() <= 1
    assert (difference == 0).mean() > 0.99


@settings(max_examples=200, deadline=None)
@given(
    total=st.integers(-4000, 4000),
    bias=st.integers(-64, 64),
    tau=st.integers(-200, 200),
    bits=st.integers(2, 8),
    signed=st.booleans(),
    shift=st.integers(-2, 3),
)
def test_requantization_with_relu_is_the_unfolded_one(total, bias, tau, bits, signed, shift):
    # One channel, one tap: S = total. Powers of two, so that both sides are exact, ties included.
    step, weight_step, next_step = 0.5, 0.25, 2.0**shift
    layer = _one_weight(bits_a=8, step=step, weight_step=weight_step, bias=bias / 8)
    reader = _one_weight(bits_a=bits, step=next_step, weight_step=1.0, bias=0.0, tau=tau / 16, signed=signed)
    folded = _requantized(layer, reader, relu=True)
    got = float(np.float32(total) * folded.scale[0] + folded.bias[0])
    if folded.low is not None:
        got = max(got, float(folded.low[0]))
    got = np.clip(np.rint(got), *folded.codes_out)
    value = max(total * step * weight_step + bias / 8, 0)
    assert got == np.clip(np.rint((value + tau / 16) / next_step), *reader.act_range)


def _one_weight(*, bits_a, step, weight_step, bias, tau=0.0, signed=True):
    return ConvLayer(
        "layer",
        np.ones((1, 1, 1, 1), np.int8),
        np.array([bias], np.float32),
        bits_w=8,
        weight_step=np.array([weight_step], np.float32),
        bits_a=bits_a,
        act_step=np.array([step], np.float32),
        act_tau=np.array([tau], np.float32),
        act_signed=signed,
    )


def test_sums_are_exact_at_the_float32_limit():
    # 8-bit codes over 64 channels: sums near 2**24 are still those of int64.
    rng = np.random.default_rng(0)
    model = small_model(num_feat=64, num_block=1, bits_w=8, bits_a=8)
    layer = fold(model, 1).blocks[0].conv2
    layer = replace(layer, weight=rng.integers(-128, 128, layer.weight.shape).astype(np.int8))
    codes = rng.integers(200, 256, (1, 64, 6, 5))
    got = integer.integer_sums(torch.from_numpy(codes.astype(np.float32)), layer)
    padded = np.pad(codes[0], ((0, 0), (1, 1), (1, 1)))
    expected = sum(
        np.tensordot(layer.weight[:, :, dy, dx].astype(np.int64), padded[:, dy : dy + 6, dx : dx + 5], 1)
        for dy in range(3)
        for dx in range(3)
    )
    np.testing.assert_array_equal(got[0].numpy(), expected.astype(np.float32))


def test_strips_do_not_change_the_sums(monkeypatch, picture):
    model = small_model()
    whole = integer.run(model, picture)
    monkeypatch.setattr(integer, "_STRIP_VALUES", 1)
    np.testing.assert_array_equal(integer.run(model, picture), whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2)])
def test_tiny_pictures(size):
    image = np.full((*size, 3), 90, np.uint8)
    assert integer.run(small_model(), image).shape == (2 * size[0], 2 * size[1], 3)


def test_code_range_is_the_one_of_training():
    for bits in range(2, 9):
        for signed in (False, True):
            limits = IntRange.of(bits, signed)
            assert code_range(bits, signed) == (limits.qmin, limits.qmax)
    with pytest.raises(ValueError, match=r"2\.\.8"):
        code_range(1, signed=True)


def test_depths_keep_the_first_of_the_ranking():
    header = replace(small_model().header, ranking=(2, 0, 3, 1))
    assert header.blocks_kept(2) == (0, 2)
    released = replace(header, arch={**header.arch, "depth_rule": "released"})
    assert released.blocks_kept(2) == (0, 2, 3)
    assert released.blocks_kept(4) == (0, 1, 2, 3)
    with pytest.raises(InputError, match=r"choose one of \[4, 2, 1\]"):
        header.blocks_kept(3)
    with pytest.raises(InputError, match="never ranked"):
        replace(header, ranking=None).blocks_kept(2)


def test_shortcuts_that_end_the_picture_are_refused():
    model = small_model()
    shortcuts = [1.0] * 4
    shortcuts[0] = 0.0
    header = replace(model.header, shortcuts=tuple(shortcuts), ranking=(1, 2, 3, 0))
    with pytest.raises(InputError, match="multiply to 0"):
        fold(PackedModel(header, model.layers), 2)
