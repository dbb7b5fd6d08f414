"""A linear tail in OpenVINO graphs, as one convolution at low resolution. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import numpy as np
import openvino.opset13 as op

from quantsr.deploy.engines.openvino_ops import (
    LARGEST_PAIR,
    Node,
    code_bytes,
    codes,
    column,
    convolution,
    floats,
    input_units,
    ints,
    multiplied_sums,
)
from quantsr.deploy.passes import collapse
from quantsr.deploy.passes.tail import Tail


def collapsed(x: Node, tail: Tail, *, as_floats: bool) -> list[list[Node]]:
    """(B, C, H, W) -> 3 rows of 3 parts (B, s*s*3, ., .), channels in the order (row phase, column
    phase, colour), before they are rounded to pixels.

    Of a float tail it is the same to float rounding. Of one whose inputs are quantized it keeps the
    quantization of the first input, drops those inside, and quantizes the composed kernel to 16
    bits per output.
    """
    kernels = collapse.collapse(tail.stages)
    inner = kernels["inner", "inner"]
    if tail.quantize is None:
        middle = convolution(x, floats(inner.weight), 1)
    else:
        # The composed kernel to 16 bits: its high byte with all of the input, its low byte with the
        # input's high byte.
        step = np.maximum(np.abs(inner.weight).max((1, 2, 3)) / LARGEST_PAIR, np.finfo(np.float32).tiny)
        steps = np.rint(inner.weight / step.reshape(-1, 1, 1, 1))
        high = np.floor((steps + 128) / 256)  # leaves -128..127
        kernel = {256.0: high.astype(np.int8), 1.0: (steps - 256 * high).astype(np.int8)}
        first = replace(tail.stages[0].conv, weight=kernel[256.0])
        name, limits = tail.quantize.name, tail.quantize.limits
        x = input_units(x, tail.quantize)
        x = codes(name, x, limits, as_floats=as_floats)
        parts = code_bytes(x, name, limits, as_floats=as_floats)
        pairs = [*((part, unit, 256.0) for part, unit in parts), (*parts[0], 1.0)]
        middle = reduce(
            op.add,
            (
                multiplied_sums(
                    part,
                    replace(first, weight=kernel[byte], multiplier=step * np.float32(unit * byte)),
                    pad=1,
                )
                for part, unit, byte in pairs
            ),
        )
    # The ring is one pixel wide: its kernels stay in float.
    rows = {"first": _cut(x, 2, first=True), "last": _cut(x, 2, first=False)}
    columns = {"first": _cut(x, 3, first=True), "last": _cut(x, 3, first=False)}

    def cell(y_position: str, x_position: str) -> Node:
        kernel = kernels[y_position, x_position]
        bias = floats(column(kernel.bias))
        pads = (int(y_position == "inner"), int(x_position == "inner"))
        if pads == (1, 1):
            return op.add(middle, bias)
        if pads == (1, 0):
            part = columns[x_position]
        elif pads == (0, 1):
            part = rows[y_position]
        else:
            part = _cut(rows[y_position], 3, first=x_position == "first")
        return op.add(convolution(part, floats(kernel.weight), *pads), bias)

    return [
        [cell(y_position, x_position) for x_position in collapse.POSITIONS]
        for y_position in collapse.POSITIONS
    ]


def _cut(x: Node, axis: int, *, first: bool) -> Node:
    """The first or last three rows (axis 2) or columns (axis 3): what the collapsed tail sees at a
    border."""
    size = collapse.RADIUS + 1
    start, stop = (0, size) if first else (-size, np.iinfo(np.int64).max)
    return op.slice(x, ints(start), ints(stop), ints(1), ints(axis))


def phases_to_space(x: Node, batch: int, height: int, width: int, scale: int) -> Node:
    """(B, s*s*3, H, W) with channels (row phase, column phase, colour) -> (B, H*s, W*s, 3)."""
    x = op.transpose(x, ints(0, 2, 3, 1))  # (B, H, W, s*s*3)
    # (B, H, W, row phase, s*3)
    x = op.reshape(x, ints(batch, height, width, scale, scale * 3), False)
    x = op.transpose(x, ints(0, 1, 3, 2, 4))  # (B, H, row phase, W, column phase and colour)
    return op.reshape(x, ints(batch, height * scale, width * scale, 3), False)  # (B, H*s, W*s, 3)
