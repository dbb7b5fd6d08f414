"""Randomly initialised networks that stand in for trained ones in tests and timings. Imports no
torch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from quantsr.deploy.packed.description import Header
from quantsr.deploy.packed.model import ConvLayer, PackedLayer, PackedModel
from quantsr.deploy.packed.unwritten import tail_stages
from quantsr.ranges import IntRange


def random_model(
    *,
    num_feat: int = 64,
    num_block: int = 16,
    scale: int = 4,
    bits_w: int = 4,
    bits_a: int = 4,
    head_tail_bits: int = 8,
    first_bits: int | None = None,
    depths: tuple[int, ...] | None = None,
    per_channel: bool = False,
    upsampler: str = "pixelshuffle",
    seed: int = 0,
) -> PackedModel:
    """A QuantSR-C with random weights and plausible steps, taus and shortcuts, for tests and
    timings (numpy only).

    Its features stay within a few hundred, as in a trained network with img_range 255, and its
    output is a picture, not noise: values span the byte range without saturating everywhere.
    """
    rng = np.random.default_rng(seed)
    if depths is None:
        depths = tuple(dict.fromkeys(max(1, num_block // d) for d in (1, 2, 4)))
    first_bits = first_bits or head_tail_bits
    places = [
        _Place("conv_first", (num_feat, 3), 1.0, 50.0, (first_bits, 8 if first_bits == 8 else 32)),
        *_body(num_feat, num_block, (bits_w, bits_a)),
        *_outer(num_feat, scale, upsampler, (head_tail_bits, 16 if head_tail_bits == 8 else 32)),
    ]
    layers = {place.name: _random_layer(rng, place, per_channel) for place in places}
    if first_bits == 8:
        layers["conv_first"] = _reading_pixels(layers["conv_first"])
    arch = {
        "type": "QuantSR_C",
        "num_in_ch": 3,
        "num_out_ch": 3,
        "num_feat": num_feat,
        "num_block": num_block,
        "upscale": scale,
        "upsampler": upsampler,
        "res_scale": 1.0,
        "img_range": 255.0,
        "rgb_mean": [0.4488, 0.4371, 0.4040],
        "nbits_w": bits_w,
        "nbits_a": bits_a,
        "quantizer": "RLQ",
        "weight_granularity": "channel" if per_channel else "tensor",
        "depths": list(depths),
        "depth_rule": "exact",
    }
    header = Header(
        arch=arch,
        scale=scale,
        depths=depths,
        num_block=num_block,
        shortcuts=tuple(float(np.float32(s)) for s in rng.uniform(0.9, 1.05, num_block)),
        ranking=tuple(int(i) for i in rng.permutation(num_block)),
        head_tail_bits=head_tail_bits,
        provenance={"note": "random weights"},
    )
    return PackedModel(header, layers)


class _Place(NamedTuple):
    """A 3x3 conv, and how large its weight and its input are."""

    name: str
    channels: tuple[int, int]
    """(O, I)"""
    gain: float
    """Of its weight, over what keeps the size of its input."""
    spread: float
    """Of its input."""
    bits: tuple[int, int]
    """Of weight and input."""
    signed: bool = True


def _body(num_feat: int, num_block: int, bits: tuple[int, int]) -> list[_Place]:
    square = (num_feat, num_feat)
    return [
        place
        for i in range(num_block)
        for place in (
            _Place(f"body.{i}.conv1", square, 1.0, 60.0, bits),
            _Place(f"body.{i}.conv2", square, 0.4, 40.0, bits, signed=False),
        )
    ]


def _outer(num_feat: int, scale: int, upsampler: str, bits: tuple[int, int]) -> list[_Place]:
    """What follows the blocks."""
    *stages, (last, shuffle) = tail_stages({"upsampler": upsampler}, scale)
    return [
        _Place("conv_after_body", (num_feat, num_feat), 0.7, 70.0, bits),
        *(_Place(name, (num_feat * factor**2, num_feat), 1.0, 80.0, bits) for name, factor in stages),
        _Place(last, (3 * shuffle**2, num_feat), 0.8, 80.0, bits),
    ]


def _reading_pixels(conv_first: PackedLayer) -> PackedLayer:
    """With the pixels as its 8-bit codes."""
    return replace(
        conv_first,
        act_step=np.ones(1, np.float32),
        act_tau=np.array((114.444, 111.4605, 103.02), np.float32),
        act_signed=False,
        act_zero_point=np.array((114, 111, 103), np.int32),
        act_equal=None,
    )


def _random_layer(rng: np.random.Generator, place: _Place, per_channel: bool) -> PackedLayer:
    """Quantized with RLQ's initial step (8 bits: the largest value per channel)."""
    bits_w, bits_a = place.bits
    out, inp = place.channels
    weight = (rng.standard_normal((out, inp, 3, 3)) * place.gain / math.sqrt(9 * inp)).astype(np.float32)
    layer = ConvLayer(place.name, weight, rng.standard_normal(out).astype(np.float32), bits_w=bits_w)
    if bits_w == 16:
        layer = replace(layer, weight=weight.astype(np.float16).astype(np.float32))
    elif bits_w <= 8:
        qmin, qmax = IntRange.of(bits_w, signed=True).bounds
        size = np.abs(weight).reshape(out, -1)
        if bits_w == 8:
            step = (size.max(1) / qmax).astype(np.float32)
        else:
            mean = size.mean(1) if per_channel else size.mean(keepdims=True).ravel()
            step = (2 * mean / math.sqrt(qmax)).astype(np.float32)
        codes = np.clip(np.rint(weight / step.reshape(-1, 1, 1, 1)), qmin, qmax).astype(np.int8)
        layer = replace(layer, weight=codes, weight_step=step)
    if bits_a > 16:
        return layer
    return replace(
        layer,
        bits_a=bits_a,
        act_step=np.array(
            [(2 if bits_a <= 8 else 32) * place.spread / IntRange.of(bits_a, place.signed, wide=True).qmax],
            np.float32,
        ),
        act_tau=rng.standard_normal(inp).astype(np.float32) if bits_a < 8 else None,
        act_signed=place.signed,
        act_equal=rng.uniform(0.5, 1, inp).astype(np.float32)
        if bits_w == 8 and not place.name.startswith("body.")
        else None,
    )
