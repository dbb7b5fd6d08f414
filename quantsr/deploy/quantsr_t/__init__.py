"""QuantSR-T in deployment: its structure, its folding, and the network written once over the
operations of each engine. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from quantsr.deploy.architecture import Cut, LayerCost, Parts, Reach
from quantsr.deploy.model import Float, PackedModel
from quantsr.deploy.quantsr_c import multiply_output
from quantsr.deploy.quantsr_t.structure import Structure, used_units
from quantsr.errors import InputError

OVERLAP = 32
"""Low-resolution pixels that a tile reads beyond what it keeps: whole windows, at least. The
receptive field is the whole picture, so this is a choice; docs/numerics.md has the measured
effect."""
MAX_TILE_AREA = 1 << 16


class QuantSRT:
    """See `architecture.Architecture`, whose docstrings hold where there is none."""

    name = "QuantSR_T"
    mostly_products = False

    def expected(self, model: PackedModel) -> Parts:
        structure, units = Structure.of(model.header), used_units(model.header)
        return Parts(
            structure.layer_shapes(units), structure.operand_channels(units), structure.float_shapes(units)
        )

    def cut(self, model: PackedModel, kept: tuple[int, ...], gaps: Float) -> Cut:
        """What a dropped RSTB did is folded into the conv that ends the RSTB before it, or into the
        first LayerNorm."""
        structure = Structure.of(model.header)
        if structure.counts_layers:
            raise InputError(
                "depth: the units of this network are Swin layers, which cannot be taken out of a packed file; export all depths, "
                "or one depth as .onnx or .xml"
            )
        new_index = {f"layers.{old}.": f"layers.{new}." for new, old in enumerate(kept)}

        def renamed(parts: Any) -> dict[str, Any]:
            found = {}
            for name, part in parts.items():
                old = ".".join(name.split(".")[:2]) + "." if name.startswith("layers.") else ""
                if old and old not in new_index:
                    continue
                new = name.replace(old, new_index[old], 1) if old else name
                found[new] = replace(part, name=new)
            return found

        layers, floats = renamed(model.layers), renamed(model.floats)
        for new in range(len(kept)):
            last = structure.closing(f"layers.{new}.conv")[-1].name
            layers[last] = multiply_output(layers[last], float(gaps[new + 1]))
        for name in ("norm_first.weight", "norm_first.bias"):
            values = (floats[name].values * np.float64(gaps[0])).astype(np.float32)
            floats[name] = replace(floats[name], values=values)
        shortcuts = tuple(
            float(np.float32(model.header.shortcuts[old] * float(gaps[new + 1])))
            for new, old in enumerate(kept)
        )
        return Cut(layers, shortcuts, renamed(model.operands), floats)

    def reach(self, model: PackedModel, depth: int) -> Reach:
        window = Structure.of(model.header).window
        return Reach(-(-OVERLAP // window) * window, window, MAX_TILE_AREA)

    def costs(self, model: PackedModel, depth: int, size: tuple[int, int]) -> list[LayerCost]:
        """On the padded picture: convs and linear layers, and both products of each window
        attention."""
        structure = Structure.of(model.header)
        units = set(model.header.blocks_kept(depth))
        pixels = int(np.prod([-(-n // structure.window) * structure.window for n in size]))
        shuffles = {place.name: place.shuffle for place in structure.tail()}
        enlarged, costs = 1, []
        for name in structure.layer_shapes(units):
            layer = model.layers[name]
            macs = layer.weight.size * pixels * enlarged**2
            costs.append(LayerCost(name, layer.kind, macs, layer.bits_w, layer.bits_a))
            enlarged *= shuffles.get(name, 1)
            if name.endswith(".qkv"):
                for product in ("scores", "mixture"):
                    operands = f"{name.removesuffix('qkv')}{product}"
                    left, right = (model.operands.get(f"{operands}.{side}") for side in ("left", "right"))
                    bits = (32 if o is None else o.bits for o in (right, left))
                    costs.append(
                        LayerCost(operands, "product", structure.tokens * structure.dim * pixels, *bits)
                    )
        return costs
