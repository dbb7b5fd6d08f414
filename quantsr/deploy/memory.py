"""The memory that a program takes to run, by the shapes of its values alone: a small file must not
ask for much. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quantsr.deploy.operations import zero_multiples
from quantsr.deploy.program import PICTURE, Operation, Program
from quantsr.deploy.shapes import Parts, Shape

USUAL_PEAK = 1 << 11
"""Numbers held at once for each pixel of the picture up to which tiles have their full area; 64
channels at x4 take 2048."""
_MAX_PEAK = 1 << 17  # 0.5 MB of float32 for each pixel
_MAX_SMALLEST = 1 << 28  # numbers for the smallest picture, which `multiple` sets: 1 GB
_MAX_WEIGHTS = 1 << 28  # engines hold those of a layer that is used again once more
_MAX_BIASES = 1 << 27  # relative position biases of all attentions, spread to pairs of positions


MAX_WHOLE_AREA = 1 << 16
"""Pixels of the picture computed at once, where the tile is not given, of a network that attends
to all of them."""


def check(program: Program, shapes: Mapping[int, Shape], parts: Parts) -> None:
    """Raises ValueError for a program of values, windows or uses of layers beyond all use, whose
    memory would not be bounded by the size of its file."""
    most = peak(program, shapes)
    multiples = zero_multiples(program, shapes)
    smallest = max((-(-program.multiple // m) * m for m in multiples), default=program.multiple)
    if most > _MAX_PEAK or most * smallest**2 > _MAX_SMALLEST:
        raise ValueError(f"program: holds {most} numbers at once for each pixel of the picture")
    windows = [op.attributes for op in program.operations if "window" in op.attributes]
    biases = sum(x["heads"] * positions(x) * keys(x) for x in windows)
    if biases > _MAX_BIASES:
        raise ValueError(f"program: its windows have {biases} pairs of positions, in all heads")
    pairs = max((_channel_pairs(op, shapes[op.output]) for op in program.operations), default=0)
    if pairs > _MAX_BIASES:
        raise ValueError(f"program: attends to {pairs} pairs of channels at once")
    weights = sum(
        math.prod(parts.layers[op.name]) for op in program.operations if op.kind in ("conv", "linear")
    )
    if weights > _MAX_WEIGHTS:
        raise ValueError(f"program: uses {weights} weights, those of a layer as often as it is used")


def peak(program: Program, shapes: Mapping[int, Shape]) -> int:
    """The most numbers that are held at once for each pixel of the picture: values that are still
    to be read, and scores and masks of attention."""
    last = {value: op.output for op in program.operations for value in op.inputs}
    live = most = _size(shapes[PICTURE])
    masks: dict[str, int] = {}  # numbers for each pixel, by window and shift
    for op in program.operations:
        if "window" in op.attributes and any(_pair(op.attributes["shift"])):
            masks[f"{op.attributes['window']} {op.attributes['shift']}"] = positions(op.attributes)
        live += _size(shapes[op.output])
        most = max(most, live + _scores(op, shapes))
        ended = {value for value in op.inputs if last[value] == op.output}
        if op.output not in last:
            ended.add(op.output)
        live -= sum(_size(shapes[value]) for value in ended)
    return most + sum(masks.values())


def _size(shape: Shape) -> int:
    return -(-shape.channels * shape.factor**2 // shape.shrink**2)


def _scores(op: Operation, shapes: Mapping[int, Shape]) -> int:
    """Of attention in windows, or of all pixels of the largest tile, before and after the
    softmax."""
    if op.kind == "global_attention":
        shares = (shapes[value].factor ** 2 / shapes[value].shrink ** 2 for value in op.inputs[:2])
        return math.ceil(2 * op.attributes["heads"] * math.prod(shares) * MAX_WHOLE_AREA)
    return 2 * op.attributes["heads"] * keys(op.attributes) if "window" in op.attributes else 0


def positions(attention: Mapping[str, Any]) -> int:
    """In a window."""
    rows, columns = _pair(attention["window"])
    return rows * columns


def keys(attention: Mapping[str, Any]) -> int:
    """Positions that each one of a window attends to."""
    rows, columns = (side + 2 * attention.get("overlap", 0) for side in _pair(attention["window"]))
    return int(rows * columns)


def _pair(value: Any) -> tuple[int, int]:
    """Of rows and columns, which one number is for both."""
    rows, columns = (value, value) if isinstance(value, int) else value
    return rows, columns


def _channel_pairs(op: Operation, result: Shape) -> int:
    """Of attention between channels, in all heads."""
    return int(result.channels**2 // op.attributes["heads"]) if op.kind == "channel_attention" else 0
