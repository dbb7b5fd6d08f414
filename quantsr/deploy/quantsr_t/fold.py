"""Folding of a converted QuantSR-T: steps, taus, shortcuts and LayerNorm's factors become one
multiplication and one addition per layer.

The result, a `folded.FoldedSwin`, is what all engines run. Each identity is exact in real numbers;
constants are computed in float64 and rounded once to float32.

A quantizer `clip(rint((x + tau) / v))` is `clip(rint(x * multiplier + shift))` with multiplier 1/v
and shift tau/v. Behind LayerNorm it is merged into its weight and bias, so that normalizing gives
values in units of codes; q, k and v of quantized attention come from qkv in units of codes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.fold import FoldedConv, fold_head
from quantsr.deploy.model import Float, Operand, PackedLayer, PackedModel
from quantsr.deploy.quantsr_t.folded import (
    Attention,
    ConvStage,
    FoldedLinear,
    FoldedSwin,
    FoldedSwinLayer,
    Norm,
    Quantize,
    Rstb,
)
from quantsr.deploy.quantsr_t.structure import ConvPlace, Structure

Float64 = NDArray[np.float64]


def fold(model: PackedModel, depth: int | None = None) -> FoldedSwin:
    """Fold `model` at `depth` (default: its deepest). Raises InputError for an unknown depth."""
    header, structure = model.header, Structure.of(model.header)
    units = header.blocks_kept(model.depth_or_default(depth))
    shortcuts = np.asarray(header.shortcuts, np.float64)
    plan = structure.plan(units)
    first, stream_multipliers, branch_multipliers = 1.0, np.ones(len(plan)), np.ones(len(plan))
    if not structure.counts_layers:
        first, gaps = _gaps(shortcuts, units)
        stream_multipliers, branch_multipliers = shortcuts[list(units)] * gaps, gaps
    after = _stages(model, structure.closing("conv_after_body"))
    blocks = []
    for n, (i, layers) in enumerate(plan):
        start, factors = 1.0, [(1.0, 1.0)] * len(layers)  # (s, p) of each layer
        if structure.counts_layers:
            own = shortcuts[i * structure.layers : (i + 1) * structure.layers]
            start, gaps = _gaps(own, layers)
            factors = list(zip(own[list(layers)], gaps, strict=True))
        swin = tuple(
            _swin_layer(model, structure, i, j, s, p) for j, (s, p) in zip(layers, factors, strict=True)
        )
        closing = _stages(model, structure.closing(f"layers.{i}.conv"), float(branch_multipliers[n]))
        blocks.append(Rstb(np.float32(start), swin, closing, np.float32(stream_multipliers[n])))
    return FoldedSwin(
        head=fold_head(header, model.layers["conv_first"]),
        img_range=np.float32(header.img_range),
        mean=np.asarray(header.rgb_mean, np.float32),
        window=structure.window,
        norm_first=_norm(model, "norm_first", None, factor=first),
        blocks=tuple(blocks),
        norm=_norm(model, "norm", model.layers[after[0].conv.name]),
        closing=(replace(after[0], quantize=None), *after[1:]),  # the norm quantizes
        tail=_tail(model, structure),
        scale=header.scale,
    )


def _gaps(shortcuts: Float64, kept: Sequence[int]) -> tuple[float, Float64]:
    """Products of the shortcuts of skipped units: before the first kept one, and behind each."""
    ends = [*kept, len(shortcuts)]
    behind = [float(np.prod(shortcuts[a + 1 : b])) for a, b in itertools.pairwise(ends)]
    return float(np.prod(shortcuts[: ends[0]])), np.asarray(behind, np.float64)


def _swin_layer(
    model: PackedModel, structure: Structure, i: int, j: int, s: float, p: float
) -> FoldedSwinLayer:
    prefix = f"layers.{i}.blocks.{j}"
    layers = model.layers
    fc1, fc2 = layers[f"{prefix}.mlp.fc1"], layers[f"{prefix}.mlp.fc2"]
    return FoldedSwinLayer(
        norm1=_norm(model, f"{prefix}.norm1", layers[f"{prefix}.attn.qkv"]),
        attention=_attention(model, structure, f"{prefix}.attn"),
        norm2=_norm(model, f"{prefix}.norm2", fc1),
        fc1=_linear(fc1),
        gelu=_quantize(fc2),
        fc2=_linear(fc2, factor=p),
        shift=structure.window // 2 * (j % 2),
        middle_multiplier=np.float32(p),
        input_multiplier=np.float32(p * (s - 1)),
    )


def _attention(model: PackedModel, structure: Structure, prefix: str) -> Attention:
    qkv, proj = model.layers[f"{prefix}.qkv"], model.layers[f"{prefix}.proj"]
    by_role = {role: model.operands.get(f"{prefix}.{role}") for role in _ROLES}
    root = (structure.dim // structure.heads) ** -0.5
    steps = {role: 1.0 if o is None else float(o.step[0]) for role, o in by_role.items()}
    scores, mixed = by_role["scores.left"], by_role["mixture.left"]
    # With float operands the factor 1 / sqrt(d) goes into q, as in training.
    factors = (root if scores is None else 1.0, 1.0, 1.0)
    q, k, v = (
        _part_of_qkv(qkv, part, structure.dim, by_role[role], factor)
        for part, (role, factor) in enumerate(
            zip(("scores.left", "scores.right", "mixture.right"), factors, strict=True)
        )
    )
    score_multiplier = 1.0 if scores is None else steps["scores.left"] * steps["scores.right"] * root
    mix_multiplier = steps["mixture.left"] * steps["mixture.right"]
    proj_input = _quantize(proj, factor=mix_multiplier)
    table = model.floats[f"{prefix}.relative_position_bias_table"].values
    return Attention(
        name=prefix,
        heads=structure.heads,
        q=q,
        k=k,
        v=v,
        score_multiplier=np.float32(score_multiplier),
        bias=table[relative_positions(structure.window)].transpose(2, 0, 1).copy(),  # (h, N, N)
        probabilities=None if mixed is None else _quantize_operand(mixed),
        mix=np.float32(mix_multiplier) if proj_input is None else proj_input,
        proj=_linear(proj),
    )


_ROLES = ("scores.left", "scores.right", "mixture.left", "mixture.right")


def _part_of_qkv(
    layer: PackedLayer, part: int, dim: int, operand: Operand | None, factor: float
) -> FoldedLinear:
    """The third of qkv that gives q, k or v: in units of the operand's codes where there is one,
    else times `factor`."""
    rows = slice(part * dim, (part + 1) * dim)
    step = layer.weight_step
    third = replace(
        layer,
        name=f"{layer.name}.{'qkv'[part]}",
        weight=layer.weight[rows],
        bias=layer.bias[rows],
        weight_step=step if step is None or step.size == 1 else step[rows],
    )
    if operand is None:
        return _linear(third, factor=factor)
    tau = np.zeros(dim) if operand.tau is None else operand.tau.astype(np.float64)
    unit = 1 / float(operand.step[0])
    return _linear(third, factor=unit, shift=tau * unit, codes_out=operand.range)


def _linear(
    layer: PackedLayer,
    *,
    factor: float = 1.0,
    shift: Float64 | float = 0.0,
    codes_out: tuple[int, int] | None = None,
) -> FoldedLinear:
    multiplier, bias = _multiplier_and_bias(layer, factor)
    return FoldedLinear(
        layer.name,
        _weight(layer),
        multiplier,
        (bias + shift).astype(np.float32),
        layer.act_range if layer.bits_a <= 8 else None,
        codes_out=codes_out,
    )


def _stages(
    model: PackedModel, places: Sequence[ConvPlace], factor: float = 1.0, shift: Float64 | float = 0.0
) -> tuple[ConvStage, ...]:
    """Convs one after the other; the last one's result times `factor` plus `shift`."""
    stages = []
    for place in places:
        layer, last = model.layers[place.name], place is places[-1]
        multiplier, bias = _multiplier_and_bias(layer, factor if last else 1.0)
        conv = FoldedConv(
            layer.name,
            _weight(layer),
            multiplier,
            (bias + (shift if last else 0.0)).astype(np.float32),
            layer.act_range if layer.bits_a <= 16 else None,
        )
        stages.append(ConvStage(_quantize(layer), conv, place.slope, place.shuffle))
    return tuple(stages)


def _tail(model: PackedModel, structure: Structure) -> tuple[ConvStage, ...]:
    header, places = model.header, structure.tail()
    mean = 255.0 * np.asarray(header.rgb_mean, np.float64)
    if not structure.classical:
        mean = np.repeat(mean, structure.scale**2)  # channel c is outputs c*s*s .. c*s*s + s*s - 1
    return _stages(model, places, 255.0 / header.img_range, mean)


def _norm(model: PackedModel, name: str, reader: PackedLayer | None, factor: float = 1.0) -> Norm:
    """LayerNorm for a reader; `factor` for what follows it."""
    weight = model.floats[f"{name}.weight"].values.astype(np.float64) * factor
    bias = model.floats[f"{name}.bias"].values.astype(np.float64) * factor
    if reader is None or reader.act_step is None:
        return Norm(name, weight.astype(np.float32), bias.astype(np.float32))
    step = reader.act_step.astype(np.float64) * reader.equal()
    bias = (bias + reader.tau()) / step
    return Norm(
        f"{reader.name}.input",
        (weight / step).astype(np.float32),
        bias.astype(np.float32),
        reader.act_range,
    )


def _quantize(layer: PackedLayer, factor: float = 1.0) -> Quantize | None:
    """The quantizer of a layer's input, which comes as `input / factor`; None where it reads
    floats."""
    if layer.act_step is None:
        return None
    # (I,), equal numbers where not equalized
    step = layer.act_step.astype(np.float64) * layer.equal()
    multiplier = factor / (
        step if layer.act_equal is not None else layer.act_step.astype(np.float64).reshape(())
    )
    shift = layer.tau() / step
    return Quantize(
        f"{layer.name}.input", np.asarray(multiplier, np.float32), shift.astype(np.float32), layer.act_range
    )


def _quantize_operand(operand: Operand) -> Quantize:
    step = float(operand.step[0])
    tau = np.zeros(operand.channels) if operand.tau is None else operand.tau.astype(np.float64)
    return Quantize(
        operand.name, np.asarray(1 / step, np.float32), (tau / step).astype(np.float32), operand.range
    )


def _multiplier_and_bias(layer: PackedLayer, factor: float) -> tuple[Float, Float64]:
    """(O,) real value of one unit of the sum, and bias, both times `factor`."""
    multiplier = np.full(layer.out_channels, factor)
    for step in (layer.weight_step, layer.act_step):
        if step is not None:
            multiplier = multiplier * step.astype(np.float64)
    return multiplier.astype(np.float32), layer.bias.astype(np.float64) * factor


def _weight(layer: PackedLayer) -> Any:
    return layer.weight.astype(np.float16) if layer.bits_w == 16 else layer.weight


def relative_positions(window: int) -> NDArray[np.int64]:
    """For each pair of tokens of a window the row of its table of relative positions, (N, N)."""
    y, x = np.divmod(np.arange(window**2), window)
    rows, columns = (axis[:, None] - axis[None, :] + window - 1 for axis in (y, x))
    return rows * (2 * window - 1) + columns
