"""Attention on maps in an OpenVINO graph for one size of picture: in rectangles, between channels,
and to all pixels. Its values are tokens (B, L, C) row by row; places and masks are constants of the
size. Imports no torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openvino.opset13 as op

from quantsr.deploy import rectangles
from quantsr.deploy.engines import openvino_ops as ops
from quantsr.deploy.folded import (
    LEAST_LENGTH,
    ChannelAttention,
    GlobalAttention,
    RectangleAttention,
    Step,
    side,
)

Node = Any


class MapAttention:
    """The operations in a graph."""

    batch: int
    grid: tuple[int, int]
    """Height and width of the map."""
    known: dict[Any, Node]
    """Constants by what they are of."""

    def rectangle_attention(self, what: RectangleAttention, step: Step, q: Node, k: Node, v: Node) -> Node:
        places = rectangles.places(*self._where(what))  # (G, N)
        index = self._index("rectangles", what, places)
        parts = []
        for i, (x, axes) in enumerate(((q, (0, 2, 1, 3)), (k, (0, 2, 3, 1)), (v, (0, 2, 1, 3)))):
            channels = x.get_output_shape(0)[2]
            beyond = np.tile(what.beyond_of(i, channels), (self.batch, 1, 1))
            x = op.concat([x, ops.floats(beyond)], 1)
            split = ops.ints(-1, places.shape[1], what.heads, channels // what.heads)
            x = op.reshape(op.gather(x, index, ops.ints(1)), split, False)  # (B * G, N, h, d)
            parts.append(op.transpose(x, ops.ints(*axes)))
        if what.temperature is not None:
            temperature = ops.floats(what.temperature.reshape(-1, 1, 1))
            parts[0] = op.multiply(self._of_length_1(parts[0], 3), temperature)
            parts[1] = self._of_length_1(parts[1], 2)
        scores = op.matmul(parts[0], parts[1], False, False)  # (B * G, h, N, N)
        scores = op.add(scores, ops.floats(what.bias[None]))
        if any(what.shift):
            scores = op.add(scores, self._rectangle_mask(what))
        mixed = op.matmul(op.softmax(scores, -1), parts[2], False, False)
        mixed = op.transpose(mixed, ops.ints(0, 2, 1, 3))  # (B * G, N, h, d)
        mixed = op.reshape(mixed, ops.ints(self.batch, places.size, channels), False)
        index = self._index("out of rectangles", what, rectangles.tokens(*self._where(what)))
        return op.gather(mixed, index, ops.ints(1))

    def channel_attention(self, what: ChannelAttention, step: Step, q: Node, k: Node, v: Node) -> Node:
        parts = []
        for x in (q, k, v):
            channels = x.get_output_shape(0)[2]
            x = op.reshape(x, ops.ints(0, 0, what.heads, channels // what.heads), True)  # (B, L, h, d)
            parts.append(op.transpose(x, ops.ints(0, 2, 3, 1)))  # (B, h, d, L)
        q, k = (self._of_length_1(x, 3) for x in parts[:2])
        scores = op.matmul(q, k, False, True)  # (B, h, d, d)
        scores = op.multiply(scores, ops.floats(what.temperature.reshape(-1, 1, 1)))
        mixed = op.transpose(op.matmul(op.softmax(scores, -1), parts[2], False, False), ops.ints(0, 3, 1, 2))
        return op.reshape(mixed, ops.ints(0, 0, channels), True)

    def global_attention(self, what: GlobalAttention, step: Step, q: Node, k: Node, v: Node) -> Node:
        q, k, v = (
            op.transpose(
                op.reshape(x, ops.ints(0, 0, what.heads, x.get_output_shape(0)[2] // what.heads), True),
                ops.ints(0, 2, 1, 3),
            )
            for x in (q, k, v)
        )  # (B, h, L, d), (B, h, M, d) twice
        scores = op.matmul(q, k, False, True)  # (B, h, L, M)
        mixed = op.transpose(op.matmul(op.softmax(scores, -1), v, False, False), ops.ints(0, 2, 1, 3))
        return op.reshape(mixed, ops.ints(0, 0, math.prod(mixed.get_output_shape(0)[2:])), True)

    def _of_length_1(self, x: Node, axis: int) -> Node:
        """Divided by its length along an axis."""
        return op.divide(x, op.maximum(op.reduce_l2(x, ops.ints(axis), True), ops.floats(LEAST_LENGTH)))

    def _where(
        self, what: RectangleAttention
    ) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        """Arguments of `rectangles`."""
        height, width = (side(n, what.growth) for n in self.grid)
        return (height, width), what.window, what.shift, what.multiple

    def _index(self, name: str, what: RectangleAttention, values: rectangles.Index) -> Node:
        """A flat index, one constant for all operations of the same windows."""
        key = (name, *self._where(what))
        if key not in self.known:
            self.known[key] = op.constant(values.reshape(-1).astype(np.int32))
        return self.known[key]

    def _rectangle_mask(self, what: RectangleAttention) -> Node:
        key = ("rectangle mask", *self._where(what))
        if key not in self.known:
            self.known[key] = ops.floats(np.tile(rectangles.mask(*self._where(what)), (self.batch, 1, 1, 1)))
        return self.known[key]
