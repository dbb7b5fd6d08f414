"""A randomly initialised QuantSR-T that stands in for a trained one in tests and timings. Imports
no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quantsr.deploy.model import (
    ConvLayer,
    FloatTensor,
    Header,
    LinearLayer,
    Operand,
    PackedLayer,
    PackedModel,
)
from quantsr.deploy.quantsr_t.structure import TAIL_FEATURES, Structure
from quantsr.ranges import IntRange

_GAINS = {"conv_first": 1.0, "proj": 0.5, "fc2": 0.5, "conv": 0.5, "qkv": 1.5, "0": 0.25}
"""Gain of a layer's weight over what keeps the size of its input, by the end of its name."""
_SPREADS = {"proj": 0.6, "fc2": 0.6}
"""Spread of a layer's input, likewise; 1 behind LayerNorm."""


def random_model(
    *,
    embed_dim: int = 60,
    num_block: int = 4,
    layers_per_block: int = 6,
    num_heads: int = 6,
    window_size: int = 8,
    scale: int = 4,
    bits_w: int = 4,
    bits_a: int = 4,
    head_tail_bits: int = 8,
    first_bits: int = 32,
    depths: tuple[int, ...] | None = None,
    seed: int = 0,
    **arch: Any,
) -> PackedModel:
    """A QuantSR-T with random weights and plausible steps, taus and shortcuts (numpy only); `arch`
    are further arguments of the network.

    Its features stay near 1, as in a trained network with img_range 1, and its output is a picture,
    not noise.
    """
    rng = np.random.default_rng(seed)
    options = {
        "type": "QuantSR_T",
        "num_in_ch": 3,
        "num_out_ch": 3,
        "embed_dim": embed_dim,
        "num_block": num_block,
        "layers_per_block": layers_per_block,
        "num_heads": num_heads,
        "window_size": window_size,
        "mlp_ratio": 2.0,
        "upscale": scale,
        "img_range": 1.0,
        "rgb_mean": [0.4488, 0.4371, 0.4040],
        "upsampler": "pixelshuffledirect",
        "resi_connection": "1conv",
        "nbits_w": bits_w,
        "nbits_a": bits_a,
        "quantizer": "RLQ",
        "weight_granularity": "tensor",
        "quantize_attention": False,
        "quantize_conv": False,
        "dqa_unit": "rstb",
        **arch,
    }
    header = _header(rng, options, depths, head_tail_bits)
    structure = Structure.of(header)
    everything = set(range(header.num_block))
    layers = {}
    for name, shape in structure.layer_shapes(everything).items():
        trained = ".blocks." in name or (name.startswith("layers.") and bool(options["quantize_conv"]))
        rest = (
            (first_bits, 32) if name == "conv_first" else (head_tail_bits, 16 if head_tail_bits == 8 else 32)
        )
        bits = (bits_w, bits_a) if trained else rest
        layers[name] = _layer(rng, name, shape, bits, trained, options)
    if first_bits == 8:
        layers["conv_first"] = _reading_pixels(layers["conv_first"], header)
    floats = _float_tensors(rng, structure, everything, head_tail_bits)
    return PackedModel(header, layers, _operands(rng, structure, everything, bits_a), floats)


def _header(
    rng: np.random.Generator,
    options: Mapping[str, Any],
    depths: tuple[int, ...] | None,
    head_tail_bits: int,
) -> Header:
    units = options["num_block"] * (options["layers_per_block"] if options["dqa_unit"] == "layer" else 1)
    depths = depths or tuple(dict.fromkeys(max(1, units // d) for d in (1, 2, 4)))
    return Header(
        arch={**options, "depths": list(depths)},
        scale=options["upscale"],
        depths=depths,
        num_block=units,
        shortcuts=tuple(float(np.float32(s)) for s in rng.uniform(0.9, 1.05, units)),
        ranking=tuple(int(i) for i in rng.permutation(units)),
        img_range=1.0,
        head_tail_bits=head_tail_bits,
        provenance={"note": "random weights"},
    )


def _reading_pixels(conv_first: PackedLayer, header: Header) -> PackedLayer:
    """With the pixels as its 8-bit codes, as `convert` makes them."""
    mean = np.asarray(header.arch["rgb_mean"], np.float32)
    return replace(
        conv_first,
        bits_a=8,
        act_step=np.array([1 / 255], np.float32),
        act_tau=mean,
        act_signed=False,
        act_zero_point=np.rint(255 * mean).astype(np.int32),
    )


def _float_tensors(
    rng: np.random.Generator, structure: Structure, units: set[int], head_tail_bits: int
) -> dict[str, FloatTensor]:
    floats = {}
    for name, shape in structure.float_shapes(units).items():
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
        bits = 32
        if name.endswith(".weight"):
            values = values + np.float32(0.5 if name == "norm_first.weight" else 1)
        if values.ndim > 1 and head_tail_bits < 32:
            values, bits = values.astype(np.float16).astype(np.float32), 16
        floats[name] = FloatTensor(name, values, bits)
    return floats


def _operands(
    rng: np.random.Generator, structure: Structure, units: set[int], bits: int
) -> dict[str, Operand]:
    operands = {}
    for name, channels in structure.operand_channels(units).items():
        signed = not name.endswith("mixture.left")
        spread = 0.6 if signed else 2 / structure.tokens
        tau = rng.standard_normal(channels).astype(np.float32) * np.float32(spread / 10)
        step = np.array([2 * spread / IntRange.of(bits, signed).qmax], np.float32)
        operands[name] = Operand(name, channels, bits, step, tau, signed)
    return operands


def _layer(
    rng: np.random.Generator,
    name: str,
    shape: tuple[int, ...],
    bits: tuple[int, int],
    trained: bool,
    options: Mapping[str, Any],
) -> PackedLayer:
    end = name.rpartition(".")[2]
    out, inputs = shape[0], int(np.prod(shape[1:]))
    weight = (rng.standard_normal(shape) * _GAINS.get(end, 0.7) / math.sqrt(inputs)).astype(np.float32)
    kind = LinearLayer if len(shape) == 2 else ConvLayer
    fields: dict[str, Any] = {"bias": rng.standard_normal(out).astype(np.float32) * np.float32(0.05)}
    bits_w, bits_a = bits
    if bits_w <= 8:
        size = np.abs(weight).reshape(out, -1)
        qmin, qmax = IntRange.of(bits_w, signed=True).bounds
        if trained:
            per_channel = options["weight_granularity"] == "channel"
            mean = size.mean(1) if per_channel else size.mean(keepdims=True).ravel()
            step = (2 * mean / math.sqrt(qmax)).astype(np.float32)
        else:
            step = (size.max(1) / qmax).astype(np.float32)
        codes = np.rint(weight / step.reshape(-1, *[1] * (weight.ndim - 1)))
        weight, fields["weight_step"] = np.clip(codes, qmin, qmax).astype(np.int8), step
    elif bits_w == 16:
        weight = weight.astype(np.float16).astype(np.float32)
    if bits_a <= 16:
        behind_shuffles = name == "conv_last" or (name.startswith("upsample.") and shape[1] == TAIL_FEATURES)
        spread = 0.25 if behind_shuffles else _SPREADS.get(end, 1.0)
        limit = (2 if bits_a <= 8 else 16) * spread
        fields["act_step"] = np.array([limit / IntRange.of(bits_a, signed=True, wide=True).qmax], np.float32)
        if trained:
            fields["act_tau"] = rng.standard_normal(shape[1]).astype(np.float32) * np.float32(spread / 10)
        else:
            fields["act_equal"] = rng.uniform(0.5, 1, shape[1]).astype(np.float32)
    return kind(name, weight, bits_w=bits_w, bits_a=bits_a, **fields)
