"""QuantSR-C in deployment: its structure, and where its folding, reference and graphs are. Imports
no torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantsr.deploy import tiling
from quantsr.deploy.architecture import Cut, LayerCost, Parts, Reach
from quantsr.deploy.collapse import RADIUS
from quantsr.deploy.model import Float, PackedLayer, PackedModel, tail_stages
from quantsr.errors import InputError


class QuantSRC:
    """See `architecture.Architecture`, whose docstrings hold where there is none."""

    name = "QuantSR_C"
    mostly_products = True

    def expected(self, model: PackedModel) -> Parts:
        """Every layer has the width of conv_first."""
        header = model.header
        if "conv_first" not in model.layers:
            raise ValueError("layer conv_first: is missing")
        feat = model.layers["conv_first"].out_channels
        try:
            *stages, (last, shuffle) = tail_stages(header.arch, header.scale)
            used = sorted({i for depth in header.depths for i in header.blocks_kept(depth)})
        except InputError as error:
            raise ValueError(str(error)) from error
        square = (feat, feat, 3, 3)
        layers = {
            "conv_first": (feat, 3, 3, 3),
            **{f"body.{i}.{conv}": square for i in used for conv in ("conv1", "conv2")},
            "conv_after_body": square,
            **{name: (feat * factor**2, feat, 3, 3) for name, factor in stages},
            last: (3 * shuffle**2, feat, 3, 3),
        }
        return Parts(layers, {}, {})

    def cut(self, model: PackedModel, kept: tuple[int, ...], gaps: Float) -> Cut:
        """What a dropped block did is folded into the kept block before it (`s`, conv2) or, at the
        beginning, behind it (input step, tau, conv1, `s`)."""
        layers: dict[str, PackedLayer] = {"conv_first": model.layers["conv_first"]}
        shortcuts = []
        for new, old in enumerate(kept):
            before, after = (float(gaps[0]) if new == 0 else 1.0), float(gaps[new + 1])
            conv1, conv2 = (
                replace(model.layers[f"body.{old}.{c}"], name=f"body.{new}.{c}") for c in ("conv1", "conv2")
            )
            layers[conv1.name] = multiply_weight(_multiply_input(conv1, before), before)
            layers[conv2.name] = multiply_output(conv2, after)
            shortcuts.append(float(np.float32(model.header.shortcuts[old] * before * after)))
        tail = {
            n: layer for n, layer in model.layers.items() if n != "conv_first" and not n.startswith("body.")
        }
        return Cut({**layers, **tail}, tuple(shortcuts), {}, {})

    def reach(self, model: PackedModel, depth: int) -> Reach:
        """The receptive field: one pixel per 3x3 conv of head, kept blocks and body end, and the
        tail's."""
        tail = RADIUS if len(tail_stages(model.header.arch, model.header.scale)) > 1 else 1
        return Reach(2 + 2 * len(model.header.blocks_kept(depth)) + tail, 1, tiling.MAX_TILE_AREA)

    def costs(self, model: PackedModel, depth: int, size: tuple[int, int]) -> list[LayerCost]:
        """The convs, upsampler and `conv_last` at their own sizes."""
        kept = set(model.header.blocks_kept(depth))
        enlarged = 1
        factors = dict(tail_stages(model.header.arch, model.header.scale))
        costs = []
        for name, layer in model.layers.items():
            if name.startswith("body.") and int(name.split(".")[1]) not in kept:
                continue
            pixels = size[0] * size[1] * enlarged**2
            costs.append(LayerCost(name, layer.kind, layer.weight.size * pixels, layer.bits_w, layer.bits_a))
            enlarged *= factors.get(name, 1)
        return costs


def multiply_weight(layer: PackedLayer, factor: float) -> PackedLayer:
    """The layer with its weight multiplied by `factor` > 0; its codes stay the same."""
    if factor == 1:
        return layer
    if layer.weight_step is None:
        return replace(layer, weight=(layer.weight * np.float64(factor)).astype(np.float32))
    return replace(layer, weight_step=(layer.weight_step.astype(np.float64) * factor).astype(np.float32))


def multiply_output(layer: PackedLayer, factor: float) -> PackedLayer:
    """The layer with its result multiplied by `factor` > 0; its codes stay the same."""
    return replace(multiply_weight(layer, factor), bias=(layer.bias * np.float64(factor)).astype(np.float32))


def _multiply_input(layer: PackedLayer, factor: float) -> PackedLayer:
    """The layer for an input that has not yet been multiplied by `factor`; its codes stay the
    same."""
    if layer.act_step is None or factor == 1:
        return layer
    step = (layer.act_step.astype(np.float64) / factor).astype(np.float32)
    tau = None if layer.act_tau is None else (layer.act_tau.astype(np.float64) / factor).astype(np.float32)
    return replace(layer, act_step=step, act_tau=tau)
