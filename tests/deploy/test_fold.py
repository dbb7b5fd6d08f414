"""Folding and the integer reference against the network's definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.folded import FirstConv
from quantsr.deploy.packed.model import ConvLayer, PackedModel
from quantsr.deploy.passes.constants import requantized
from quantsr.deploy.passes.first import split_head
from quantsr.deploy.passes.fold import fold
from quantsr.errors import InputError
from quantsr.quant import IntRange
from tests.deploy.conftest import dyadic_model, small_model
from tests.reference import program as reference


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
@pytest.mark.parametrize("head_tail_bits", [8, 32])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_folded_network_is_the_definition_exactly(picture, scale, head_tail_bits, upsampler):
    # Every constant is dyadic: neither side rounds, so a difference would be an error in the
    # folding.
    model = dyadic_model(scale=scale, head_tail_bits=head_tail_bits, upsampler=upsampler)
    for depth in model.header.depths:
        expected = reference.run(model, picture, depth)
        assert expected.std() > 5
        np.testing.assert_array_equal(integer_reference.run(model, picture, depth), expected)


@pytest.mark.parametrize(("bits_w", "bits_a"), [(2, 2), (3, 5), (4, 4), (8, 8), (4, 32), (32, 4), (32, 32)])
def test_every_bit_width_folds_exactly(picture, bits_w, bits_a):
    model = dyadic_model(bits_w=bits_w, bits_a=bits_a)
    difference = np.abs(
        integer_reference.run(model, picture, 2).astype(int) - reference.run(model, picture, 2)
    )
    if bits_a <= 8:
        assert difference.max() == 0
    else:  # products of float inputs outgrow float32's 24 bits
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 0.01


def test_res_scale_and_img_range_fold(picture):
    model = dyadic_model()
    first = replace(
        model.layers["conv_first"],
        act_step=np.array([1 / 255], np.float32),
        act_tau=model.layers["conv_first"].act_tau / np.float32(255),
    )
    header = replace(model.header, res_scale=0.25, img_range=1.0)
    scaled = PackedModel(header, {**model.layers, "conv_first": first})
    assert first_conv(scaled).pixels_are_codes
    # 1/255 is not dyadic: a code may fall to the other side of a tie, and nothing more.
    difference = integer_reference.run(scaled, picture).astype(int) - reference.run(scaled, picture, 4)
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
    folded = requantized(layer, reader, relu=True, shuffle=1)
    got = float(np.float32(total) * folded.multiplier[0] + folded.bias[0])
    if folded.low is not None:
        got = max(got, float(folded.low[0]))
    got = np.clip(np.rint(got), *folded.codes_out)
    value = max(total * step * weight_step + bias / 8, 0)
    assert got == np.clip(np.rint((value + tau / 16) / next_step), *reader.act_range)


def first_conv(model: PackedModel) -> FirstConv:
    op = fold(model).steps[0].op
    assert isinstance(op, FirstConv)
    return op


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
    (layer,) = (conv for conv in fold(model, 1).convs() if conv.name == "body.0.conv2")
    layer = replace(layer, weight=rng.integers(-128, 128, layer.weight.shape).astype(np.int8))
    codes = rng.integers(200, 256, (1, 64, 6, 5))
    got = integer_reference.sums(torch.from_numpy(codes.astype(np.float32)), layer)
    padded = np.pad(codes[0], ((0, 0), (1, 1), (1, 1)))
    expected = sum(
        np.tensordot(layer.weight[:, :, dy, dx].astype(np.int64), padded[:, dy : dy + 6, dx : dx + 5], 1)
        for dy in range(3)
        for dx in range(3)
    )
    np.testing.assert_array_equal(got[0].numpy(), expected.astype(np.float32))


def test_strips_do_not_change_the_sums(monkeypatch, picture):
    model = small_model()
    whole = integer_reference.run(model, picture)
    monkeypatch.setattr(integer_reference, "_STRIP_VALUES", 1)
    np.testing.assert_array_equal(integer_reference.run(model, picture), whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2)])
def test_tiny_pictures(size):
    image = np.full((*size, 3), 90, np.uint8)
    assert integer_reference.run(small_model(), image).shape == (2 * size[0], 2 * size[1], 3)


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


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("signed", [True, False])
def test_the_staircase_gives_trainings_codes_with_room_to_spare(bits, signed):
    # Training's float32 operations, one by one, for every sum there can be; the folded code even
    # when its value is off by many last bits.
    rng = np.random.default_rng(bits)
    outputs, step2 = 64, np.array([0.7310031], np.float32)
    codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (outputs, 16, 3, 3)).astype(np.int8)
    layer = ConvLayer(
        "conv1",
        codes,
        rng.normal(0, 2, outputs).astype(np.float32),
        bits_w=bits,
        weight_step=rng.uniform(0.01, 0.02, outputs).astype(np.float32),
        bits_a=bits,
        act_step=np.array([1.2345678], np.float32),
    )
    tau = rng.normal(0, 1, outputs).astype(np.float32)
    reader = replace(layer, name="conv2", act_step=step2, act_tau=tau, act_signed=signed)
    folded = requantized(layer, reader, relu=True, shuffle=1)
    assert folded.codes_out == IntRange.of(bits, signed).bounds
    sums = torch.arange(-folded.sum_bound, folded.sum_bound + 1, dtype=torch.float32)  # (n,)
    multiplier, bias, shift = (
        torch.from_numpy(np.ravel(part))[:, None]
        for part in (layer.act_step * layer.weight_step, layer.bias, tau)
    )
    u = ((sums * multiplier + bias).relu() + shift) / torch.from_numpy(step2)
    expected = u.clamp(*folded.codes_out).round()  # (O, n)
    low = torch.full((outputs, 1), float(folded.codes_out[0]))
    low = low if folded.low is None else torch.from_numpy(folded.low)[:, None]
    values = sums.double() * torch.from_numpy(folded.multiplier).double()[:, None]
    for off in (-1e-5, 0.0, 1e-5):
        got = (values + torch.from_numpy(folded.bias).double()[:, None] + off).float()
        got = torch.maximum(got, low).round().clamp(*folded.codes_out)
        assert torch.equal(got, expected)


def test_the_head_in_three_parts_is_the_head():
    """All products of the first two parts are integers times one number for each output, and
    float32 holds their sums."""
    first = first_conv(small_model(num_feat=16, head_tail_bits=32))
    split = split_head(first)
    weight = first.head.weight
    high, (middle, high_again), rest = split.high, np.split(split.middle, 2, 1), np.split(split.low, 3, 1)
    np.testing.assert_array_equal(high, high_again)
    np.testing.assert_array_equal(high + middle + rest[0], weight)
    np.testing.assert_array_equal(high + rest[1], weight)
    np.testing.assert_array_equal(rest[2], weight)

    def integers(kernel):
        rows = np.rint(kernel.reshape(len(kernel), -1).astype(np.float64) * 2.0**40).astype(np.int64)
        return rows // np.gcd.reduce(rows, 1)[:, None]

    largest = 256 * float(split.unit)
    assert split.finer == split.unit * 256
    assert (largest * np.abs(integers(high)).sum(1) < 2**24).all()
    both = integers(np.concatenate([high, middle], 1)).reshape(16, 2, -1)
    products = 128 * np.abs(both[:, 0]) / 256 + largest * np.abs(both[:, 1])
    assert (products.sum(1) < 2**24).all()
    assert np.abs(rest[0]).max() < np.abs(weight).max() / 2**16
