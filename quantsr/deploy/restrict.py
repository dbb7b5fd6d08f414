"""Cutting a network down to one of its depths: the file then holds only the blocks that run. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quantsr.deploy.model import Header, PackedModel, QuantizedLayer
from quantsr.errors import InputError


def restrict(model: PackedModel, depth: int) -> PackedModel:
    """The network of `depth` blocks as one of its own, with the depths below it.

    Blocks that never run are dropped, the others renumbered. What a dropped block did, multiply by its shortcut, is folded into the kept block before
    it (`s`, conv2) or, at the beginning, behind it (input step, tau, conv1, `s`), which is exact but for the rounding of those constants.

    Raises InputError for an unknown depth, or shortcuts whose product is not positive.
    """
    header = model.header
    kept = header.blocks_kept(depth)
    if len(kept) == header.num_block:
        return model
    shortcuts = np.asarray(header.shortcuts, np.float64)
    gaps = [
        float(np.prod(shortcuts[a + 1 : b])) for a, b in itertools.pairwise((-1, *kept, header.num_block))
    ]
    if min(gaps) <= 0:
        raise InputError(
            f"depth: the shortcuts dropped at depth {depth} are not positive; export the full depth instead"
        )
    layers: dict[str, QuantizedLayer] = {}
    kept_shortcuts = []
    for new, old in enumerate(kept):
        before, after = (gaps[0] if new == 0 else 1.0), gaps[new + 1]
        conv1, conv2 = (
            replace(model.layers[f"body.{old}.{c}"], name=f"body.{new}.{c}") for c in ("conv1", "conv2")
        )
        layers[conv1.name] = _scale_weight(_scale_input(conv1, before), before)
        layers[conv2.name] = replace(
            _scale_weight(conv2, after), bias=(conv2.bias * np.float64(after)).astype(np.float32)
        )
        kept_shortcuts.append(float(np.float32(shortcuts[old] * before * after)))
    head = {"conv_first": model.layers["conv_first"]}
    tail = {n: layer for n, layer in model.layers.items() if n != "conv_first" and not n.startswith("body.")}
    return PackedModel(_restricted_header(header, kept, depth, kept_shortcuts), {**head, **layers, **tail})


def _restricted_header(header: Header, kept: tuple[int, ...], depth: int, shortcuts: list[float]) -> Header:
    number = {old: new for new, old in enumerate(kept)}
    assert header.ranking is not None  # else only the full depth exists
    # Under the released rule a depth of d keeps d + 1 blocks; the cut network counts what it has.
    depths = tuple(len(header.blocks_kept(d)) for d in header.depths if d <= depth)
    arch: Mapping[str, Any] = {
        **header.arch,
        "num_block": len(kept),
        "depths": list(depths),
        "depth_rule": "exact",
    }
    return replace(
        header,
        arch=arch,
        depths=depths,
        num_block=len(kept),
        shortcuts=tuple(shortcuts),
        ranking=tuple(number[i] for i in header.ranking if i in number),
    )


def _scale_input(layer: QuantizedLayer, factor: float) -> QuantizedLayer:
    """The layer for an input that has not yet been multiplied by `factor`; its codes stay the same."""
    if layer.act_step is None or factor == 1:
        return layer
    step = (layer.act_step.astype(np.float64) / factor).astype(np.float32)
    tau = None if layer.act_tau is None else (layer.act_tau.astype(np.float64) / factor).astype(np.float32)
    return replace(layer, act_step=step, act_tau=tau)


def _scale_weight(layer: QuantizedLayer, factor: float) -> QuantizedLayer:
    """The layer with its weight multiplied by `factor` > 0; its codes stay the same."""
    if factor == 1:
        return layer
    if layer.weight_step is None:
        return replace(layer, weight=(layer.weight * np.float64(factor)).astype(np.float32))
    return replace(layer, weight_step=(layer.weight_step.astype(np.float64) * factor).astype(np.float32))
