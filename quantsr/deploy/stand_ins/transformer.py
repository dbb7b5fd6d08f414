"""A randomly initialised QuantSR-T that stands in for a trained one in tests and timings. Imports
no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quantsr.deploy.packed.description import Header
from quantsr.deploy.packed.model import ConvLayer, FloatTensor, LinearLayer, Operand, PackedLayer, PackedModel
from quantsr.deploy.packed.unwritten import upsample_stages
from quantsr.deploy.shapes import OPERANDS
from quantsr.ranges import IntRange

_TAIL_FEATURES = 64
"""Channels of SwinIR's classical tail."""

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
    layers = {}
    for name, shape in _layer_shapes(options).items():
        trained = ".blocks." in name or (name.startswith("layers.") and bool(options["quantize_conv"]))
        rest = (
            (first_bits, 32) if name == "conv_first" else (head_tail_bits, 16 if head_tail_bits == 8 else 32)
        )
        bits = (bits_w, bits_a) if trained else rest
        layers[name] = _layer(rng, name, shape, bits, trained, options)
    if first_bits == 8:
        layers["conv_first"] = _reading_pixels(layers["conv_first"], header)
    floats = _float_tensors(rng, options, head_tail_bits)
    operands = _operands(rng, options) if options["quantize_attention"] and bits_a <= 8 else {}
    return PackedModel(header, layers, operands, floats)


def _swin_layers(options: Mapping[str, Any]) -> list[str]:
    counts = range(options["num_block"]), range(options["layers_per_block"])
    return [f"layers.{i}.blocks.{j}" for i in counts[0] for j in counts[1]]


def _layer_shapes(options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every conv and linear layer, in order."""
    dim, hidden = options["embed_dim"], int(options["embed_dim"] * options["mlp_ratio"])

    def closing(prefix: str) -> dict[str, tuple[int, ...]]:
        if options["resi_connection"] == "1conv":
            return {prefix: (dim, dim, 3, 3)}
        narrow = dim // 4
        return {
            f"{prefix}.0": (narrow, dim, 3, 3),
            f"{prefix}.2": (narrow, narrow, 1, 1),
            f"{prefix}.4": (dim, narrow, 3, 3),
        }

    shapes: dict[str, tuple[int, ...]] = {"conv_first": (dim, 3, 3, 3)}
    for i in range(options["num_block"]):
        for j in range(options["layers_per_block"]):
            prefix = f"layers.{i}.blocks.{j}"
            shapes |= {
                f"{prefix}.attn.qkv": (3 * dim, dim),
                f"{prefix}.attn.proj": (dim, dim),
                f"{prefix}.mlp.fc1": (hidden, dim),
                f"{prefix}.mlp.fc2": (dim, hidden),
            }
        shapes |= closing(f"layers.{i}.conv")
    shapes |= closing("conv_after_body")
    scale, feat = options["upscale"], _TAIL_FEATURES
    if options["upsampler"] == "pixelshuffledirect":
        return shapes | {"upsample.0": (3 * scale**2, dim, 3, 3)}
    return {
        **shapes,
        "conv_before_upsample.0": (feat, dim, 3, 3),
        **{name: (feat * f**2, feat, 3, 3) for name, f in upsample_stages(scale)},
        "conv_last": (3, feat, 3, 3),
    }


def _float_shapes(options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every LayerNorm tensor and table of relative position biases."""
    layers = _swin_layers(options)
    norms: list[str] = [
        "norm_first",
        *(f"{layer}.{n}" for layer in layers for n in ("norm1", "norm2")),
        "norm",
    ]
    size = ((2 * options["window_size"] - 1) ** 2, options["num_heads"])
    tables: dict[str, tuple[int, ...]] = {
        f"{layer}.attn.relative_position_bias_table": size for layer in layers
    }
    return {f"{n}.{p}": (options["embed_dim"],) for n in norms for p in ("weight", "bias")} | tables


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
    rng: np.random.Generator, options: Mapping[str, Any], head_tail_bits: int
) -> dict[str, FloatTensor]:
    floats = {}
    for name, shape in _float_shapes(options).items():
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
        bits = 32
        if name.endswith(".weight"):
            values = values + np.float32(0.5 if name == "norm_first.weight" else 1)
        if values.ndim > 1 and head_tail_bits < 32:
            values, bits = values.astype(np.float16).astype(np.float32), 16
        floats[name] = FloatTensor(name, values, bits)
    return floats


def _operands(rng: np.random.Generator, options: Mapping[str, Any]) -> dict[str, Operand]:
    operands = {}
    tokens, bits = options["window_size"] ** 2, options["nbits_a"]
    for layer in _swin_layers(options):
        for role in OPERANDS:
            channels = tokens if role == "mixture.left" else options["embed_dim"]
            name, signed = f"{layer}.attn.{role}", role != "mixture.left"
            spread = 0.6 if signed else 2 / tokens
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
        behind_shuffles = name == "conv_last" or (name.startswith("upsample.") and shape[1] == _TAIL_FEATURES)
        spread = 0.25 if behind_shuffles else _SPREADS.get(end, 1.0)
        limit = (2 if bits_a <= 8 else 16) * spread
        fields["act_step"] = np.array([limit / IntRange.of(bits_a, signed=True, wide=True).qmax], np.float32)
        if trained:
            fields["act_tau"] = rng.standard_normal(shape[1]).astype(np.float32) * np.float32(spread / 10)
        else:
            fields["act_equal"] = rng.uniform(0.5, 1, shape[1]).astype(np.float32)
    return kind(name, weight, bits_w=bits_w, bits_a=bits_a, **fields)
