"""The memory that a program takes to run, by the shapes of its values alone: a small file must not
ask for much. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quantsr.deploy.program import PICTURE, Operation, Program
from quantsr.deploy.shapes import Parts, Shape

USUAL_PEAK = 1 << 11
"""Numbers held at once for each pixel of the picture up to which tiles have their full area; 64
channels at x4 take 2048."""
_MAX_PEAK = 1 << 17  # 0.5 MB of float32 for each pixel
_MAX_SMALLEST = 1 << 28  # numbers for the smallest picture, which `multiple` sets: 1 GB
_MAX_WEIGHTS = 1 << 28  # engines hold those of a layer that is used again once more
_MAX_BIASES = 1 << 27  # relative position biases of all attentions, spread to pairs of positions


def check(program: Program, shapes: Mapping[int, Shape], parts: Parts) -> None:
    """Raises ValueError for a program of values, windows or uses of layers beyond all use, whose
    memory would not be bounded by the size of its file."""
    most = peak(program, shapes)
    if most > _MAX_PEAK or most * program.multiple**2 > _MAX_SMALLEST:
        raise ValueError(f"program: holds {most} numbers at once for each pixel of the picture")
    windows = (op.attributes for op in program.operations if op.kind == "window_attention")
    biases = sum(x["heads"] * x["window"] ** 2 * keys(x) for x in windows)
    if biases > _MAX_BIASES:
        raise ValueError(f"program: its windows have {biases} pairs of positions, in all heads")
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
    masks: set[tuple[int, int]] = set()
    for op in program.operations:
        if op.kind == "window_attention" and op.attributes["shift"]:
            masks.add((op.attributes["window"], op.attributes["shift"]))
        live += _size(shapes[op.output])
        most = max(most, live + _scores(op))
        ended = {value for value in op.inputs if last[value] == op.output}
        if op.output not in last:
            ended.add(op.output)
        live -= sum(_size(shapes[value]) for value in ended)
    return most + sum(window**2 for window, _ in masks)


def _size(shape: Shape) -> int:
    return -(-shape.channels * shape.factor**2 // shape.shrink**2)


def _scores(op: Operation) -> int:
    """Of attention, before and after the softmax."""
    return 2 * op.attributes["heads"] * keys(op.attributes) if op.kind == "window_attention" else 0


def keys(attention: Mapping[str, Any]) -> int:
    """Positions that each one of a window attends to."""
    return int((attention["window"] + 2 * attention.get("overlap", 0)) ** 2)
