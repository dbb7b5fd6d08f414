"""Counts of the storage and the operations of a network, with their formulas. Imports no torch.

These are plain counts. They do not reproduce the papers' reductions in operations: we found no
selection of layers and no rule for bits that does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantsr.deploy import costs
from quantsr.deploy.costs import LayerCost
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel

FORMULAS = (
    "parameters   = weights and biases of all layers, shortcuts, steps and taus",
    "packed bytes = (sum over weights of bits_w) / 8 + 4 * (biases, shortcuts, steps, taus); for a packed file also its size",
    "MACs         = multiplications of a conv (outputs * inputs * k * k * pixels), a linear layer or an attention product",
    "BitOPs       = sum over layers of MACs * bits_w * bits_a",
    "equivalent   = sum over layers of MACs * max(bits_w, bits_a) / 32",
)
SIZES = ((180, 320), (256, 256))
"""Default (height, width) of the low-resolution pictures."""


@dataclass(frozen=True)
class Storage:
    """Storage of a network, by the formulas above."""

    parameters: int
    """Number of values: weights, biases, shortcuts, steps and taus."""
    packed_bytes: int
    """Bytes of these values at their bit-widths."""
    float_bytes: int
    """Bytes of the same values as float32."""
    file_bytes: int | None = None
    """Size of the packed file; None where there is none."""


def cost_of_packed(model: PackedModel, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The counts of a packed network at each of its depths. Imports no torch."""
    depths = [
        {"depth": depth, "sizes": [sums(packed_layers(model, depth, size), size) for size in sizes]}
        for depth in model.header.depths
    ]
    weights = sum(layer.weight.size for layer in model.layers.values())
    floats = sum(part.size for part in [*model.float_parts(), *model.half_parts()])
    storage = Storage(weights + floats, packing.counted_bytes(model), 4 * (weights + floats))
    return record(str(model.header.arch.get("type")), storage, depths)


def packed_layers(model: PackedModel, depth: int | None, size: tuple[int, int]) -> list[LayerCost]:
    """What runs at `depth` on a (height, width) picture, in order."""
    return costs.costs(model, model.depth_or_default(depth), size)


def sums(layers: Sequence[LayerCost], size: tuple[int, int]) -> dict[str, Any]:
    """The counts of all layers together at one picture size (height, width)."""
    kinds = sorted({layer.kind for layer in layers})
    return {
        "size": list(size),
        "macs": sum(layer.macs for layer in layers),
        "macs_by_kind": {kind: sum(layer.macs for layer in layers if layer.kind == kind) for kind in kinds},
        "bitops": sum(layer.macs * layer.bits_w * layer.bits_a for layer in layers),
        "equivalent_macs": round(sum(layer.macs * max(layer.bits_w, layer.bits_a) / 32 for layer in layers)),
    }


def record(arch: str, storage: Storage, depths: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of ``quantsr cost``, in the form of its JSON."""
    return {"arch": arch, "formulas": list(FORMULAS), "storage": dict(vars(storage)), "depths": depths}
