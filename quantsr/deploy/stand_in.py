"""Randomly initialised networks that stand in for trained ones in tests and timings. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from quantsr.deploy.model import (
    ConvLayer,
    Float,
    Header,
    PackedModel,
    QuantizedLayer,
    code_range,
    tail_stages,
)


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
    """A QuantSR-C with random weights and plausible steps, taus and shortcuts, for tests and timings (numpy only).

    Its features stay within a few hundred, as in a trained network with img_range 255, and its output is a picture, not noise:
    values span the byte range without saturating everywhere.
    """
    rng = np.random.default_rng(seed)
    if depths is None:
        depths = tuple(dict.fromkeys(max(1, num_block // d) for d in (1, 2, 4)))
    layers: dict[str, QuantizedLayer] = {}

    def add(
        name: str,
        out: int,
        inp: int,
        *,
        gain: float,
        spread: float,
        bits: tuple[int, int],
        signed: bool = True,
    ) -> None:
        weight = (rng.standard_normal((out, inp, 3, 3)) * gain / math.sqrt(9 * inp)).astype(np.float32)
        layers[name] = _random_layer(
            rng, name, weight, spread=spread, bits=bits, signed=signed, per_channel=per_channel
        )

    tail = (head_tail_bits, 16 if head_tail_bits == 8 else 32)
    first_bits = first_bits or head_tail_bits
    add("conv_first", num_feat, 3, gain=1.0, spread=50.0, bits=(first_bits, 8 if first_bits == 8 else 32))
    if first_bits == 8:
        layers["conv_first"] = replace(
            layers["conv_first"],
            act_step=np.ones(1, np.float32),
            act_tau=np.array((114.444, 111.4605, 103.02), np.float32),
            act_signed=False,
            act_zero_point=np.array((114, 111, 103), np.int32),
            act_equal=None,
        )
    for i in range(num_block):
        add(f"body.{i}.conv1", num_feat, num_feat, gain=1.0, spread=60.0, bits=(bits_w, bits_a))
        add(f"body.{i}.conv2", num_feat, num_feat, gain=0.4, spread=40.0, bits=(bits_w, bits_a), signed=False)
    add("conv_after_body", num_feat, num_feat, gain=0.7, spread=70.0, bits=tail)
    *stages, (last, shuffle) = tail_stages({"upsampler": upsampler}, scale)
    for name, factor in stages:
        add(name, num_feat * factor**2, num_feat, gain=1.0, spread=80.0, bits=tail)
    add(last, 3 * shuffle**2, num_feat, gain=0.8, spread=80.0, bits=tail)
    header = Header(
        arch={
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
        },
        scale=scale,
        depths=depths,
        num_block=num_block,
        shortcuts=tuple(float(np.float32(s)) for s in rng.uniform(0.9, 1.05, num_block)),
        ranking=tuple(int(i) for i in rng.permutation(num_block)),
        head_tail_bits=head_tail_bits,
        provenance={"note": "random weights"},
    )
    return PackedModel(header, layers)


def _random_layer(
    rng: np.random.Generator,
    name: str,
    weight: Float,
    *,
    spread: float,
    bits: tuple[int, int],
    signed: bool,
    per_channel: bool,
) -> ConvLayer:
    """Quantize `weight` with RLQ's initial step (8 bits: the largest value per channel); inputs are taken to spread by `spread`."""
    bits_w, bits_a = bits
    out, inp = int(weight.shape[0]), int(weight.shape[1])
    layer = ConvLayer(name, weight, rng.standard_normal(out).astype(np.float32), bits_w=bits_w)
    if bits_w == 16:
        layer = replace(layer, weight=weight.astype(np.float16).astype(np.float32))
    elif bits_w <= 8:
        qmin, qmax = code_range(bits_w, signed=True)
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
        act_step=np.array([(2 if bits_a <= 8 else 32) * spread / code_range(bits_a, signed)[1]], np.float32),
        act_tau=rng.standard_normal(inp).astype(np.float32) if bits_a < 8 else None,
        act_signed=signed,
        act_equal=rng.uniform(0.5, 1, inp).astype(np.float32)
        if bits_w == 8 and not name.startswith("body.")
        else None,
    )
