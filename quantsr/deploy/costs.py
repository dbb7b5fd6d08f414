"""What runs of a packed network, and the tiles that its pictures can be cut into. Imports no
torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from quantsr.deploy import memory, operations
from quantsr.deploy.packed.header import parts_of
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes import units
from quantsr.deploy.program import Operation, Program
from quantsr.deploy.shapes import OPERANDS, Shape

OVERLAP = 32
"""Low-resolution pixels that a tile reads beyond what it keeps where a pixel of the result depends
on the whole picture, as in transformers: whole windows, at least. So this is a choice;
docs/explanation/derivations.md has the measured effect."""
MAX_TILE_AREA = 3 << 16
"""Pixels of low resolution computed at once where the tile is not given: fewer where a network
holds more than `memory.USUAL_PEAK` numbers for each. About 1.2 kB each at 64 channels: 250 MB per
parallel tile. `memory.MAX_WHOLE_AREA` where a pixel of the result depends on the whole picture: of
transformers, which take more memory for each pixel, and of networks with `mean`, whose tiles take a
mean each.

Smaller tiles are not faster: with the tail collapsed no tensor is larger than the float32 stream,
and the halo (36 pixels at 16 blocks) costs more than the cache gains; int8 convolutions ran at the
same speed from 32 x 32 to 320 x 180.
"""


@dataclass(frozen=True)
class Reach:
    """What tiles of a picture need."""

    halo: int
    """Low-resolution pixels that a tile reads beyond what it keeps, on each side; at least 0."""
    grid: int
    """Tiles start and end at multiples of this many low-resolution pixels; 1 without windows and
    pools."""
    max_area: int
    """Pixels of low resolution to compute at once where the tile is not given."""


@dataclass(frozen=True)
class LayerCost:
    """One layer, or one pair of attention operands, at one picture size."""

    name: str
    kind: str
    """conv, linear or product (of two activations)."""
    macs: int
    bits_w: int
    bits_a: int


def at_depth(model: PackedModel, depth: int) -> tuple[Program, dict[int, Shape]]:
    """The operations that run at `depth`, and the shapes of their values. Raises InputError for an
    unknown depth."""
    program = units.without(model.program, model.header.blocks_kept(depth))
    return program, operations.shapes_of(program, parts_of(model))


def reach(model: PackedModel, depth: int) -> Reach:
    """How to cut pictures into tiles."""
    program, shapes = at_depth(model, depth)
    sides = {name: layer.weight.shape[-1] for name, layer in model.layers.items()}
    halo, grid = operations.halo(program, shapes, sides), operations.grid(program, shapes)
    peak = max(memory.peak(program, shapes), memory.USUAL_PEAK)
    if halo is None:
        return Reach(-(-OVERLAP // grid) * grid, grid, memory.MAX_WHOLE_AREA * memory.USUAL_PEAK // peak)
    return Reach(halo, grid, MAX_TILE_AREA * memory.USUAL_PEAK // peak)


def costs(model: PackedModel, depth: int, size: tuple[int, int]) -> list[LayerCost]:
    """What runs on a (height, width) picture, padded to whole windows, in order: convs and linear
    layers, and both products of each attention."""
    program, shapes = at_depth(model, depth)
    height, width = (-(-n // program.multiple) * program.multiple for n in size)
    found = []
    for op in program.operations:
        if op.kind in ("conv", "linear"):
            layer = model.layers[op.name]
            macs = layer.weight.size * shapes[op.output].area(height, width)
            found.append(LayerCost(op.name, layer.kind, macs, layer.bits_w, layer.bits_a))
        elif op.kind in operations.ATTENTION:
            scores, mixture = _products(op, shapes, height, width)
            bits = [
                model.operands[f"{op.name}.{role}"].bits if f"{op.name}.{role}" in model.operands else 32
                for role in OPERANDS
            ]
            found.append(LayerCost(f"{op.name}.scores", "product", scores, bits[1], bits[0]))
            found.append(LayerCost(f"{op.name}.mixture", "product", mixture, bits[3], bits[2]))
    return found


def _products(op: Operation, shapes: Mapping[int, Shape], height: int, width: int) -> tuple[int, int]:
    """MACs of both products of an attention: the scores, and their mixture of values."""
    queries, result = shapes[op.inputs[0]], shapes[op.output]
    if op.kind == "global_attention":
        pairs = math.prod(shapes[value].area(height, width) for value in op.inputs[:2])
        return pairs * queries.channels, pairs * result.channels
    if op.kind == "channel_attention":
        macs = result.channels**2 // op.attributes["heads"] * result.area(height, width)
    else:
        whole, shrink = op.attributes.get("multiple", 1), result.shrink
        pixels = math.prod(-(-(side // shrink) // whole) * whole for side in (height, width))
        macs = memory.keys(op.attributes) * result.channels * pixels
    return macs, macs


def has_attention(model: PackedModel) -> bool:
    """Whether the network has any."""
    return any(op.kind in operations.ATTENTION for op in model.program.operations)
