"""The operations of `program` as ONNX nodes, for any batch, height and width.

Products of codes are those of `quantsr.deploy.onnx_graph`: dequantized by 1, summed, and multiplied
by one constant per output behind. What depends on the size (the reflected rows and columns, the
order of tokens in windows, the mask of shifted windows) is computed once in the graph, from the
shape of its input, on index tensors; tokens then move by one Gather.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from quantsr.deploy.fold import FoldedConv
from quantsr.deploy.onnx_graph import INPUT, OUTPUT, Graph
from quantsr.deploy.quantsr_t.folded import (
    MASKED,
    NORM_EPS,
    Attention,
    FoldedLinear,
    FoldedSwin,
    Norm,
    Quantize,
)
from quantsr.deploy.quantsr_t.program import Order


class OnnxOps:
    """`program.Ops` for a graph; values are names."""

    def __init__(self, graph: Graph, net: FoldedSwin) -> None:
        self.graph, self.window, self.scale = graph, net.window, net.scale
        self.known: dict[object, str] = {}
        shape = self._node("Shape", [INPUT])
        # (1,)
        self.batch, height, width = (self._node("Gather", [shape, self._ints([i])]) for i in range(3))
        self.size = (height, width)
        cell = self._ints([net.window])
        rounded = [self._node("Add", [size, self._ints([net.window - 1])]) for size in self.size]
        self.cells = tuple(self._node("Div", [size, cell]) for size in rounded)
        self.grid = tuple(self._node("Mul", [count, cell]) for count in self.cells)  # (H,), (W,)
        self.places = self._node("Mul", list(self.grid))  # (1,), L

    # --- the network's operations -----------------------------------------------------------------

    def head(self, net: FoldedSwin) -> str:
        x = INPUT
        for axis in (0, 1):
            x = self._node("Gather", [x, self._reflected(axis)], axis=axis + 1)
        pixels = self._node("Transpose", [x], perm=[0, 3, 1, 2])  # (B, 3, H, W)
        return self.graph.head(net, pixels)

    def conv(self, conv: FoldedConv, x: str) -> str:
        return self.graph.conv(conv, x)

    def linear(self, linear: FoldedLinear, x: str) -> str:
        graph, name = self.graph, linear.name
        if linear.codes_in is not None:
            x = graph.dequantize(linear, x)
        # (I, O)
        weight = graph.weight(replace(linear, weight=np.ascontiguousarray(linear.weight.T)))
        y = graph.node("MatMul", [x, weight], f"{name}.sum")
        y = graph.node("Mul", [y, graph.constant(f"{name}.scale", linear.multiplier)], f"{name}.scaled")
        y = graph.node("Add", [y, graph.constant(f"{name}.bias", linear.bias)], f"{name}.out")
        return y if linear.codes_out is None else graph.quantize(f"{name}.codes", y, linear.codes_out)

    def norm(self, norm: Norm, x: str) -> str:
        vectors = [
            self.graph.constant(f"{norm.name}.norm.{part}", values)
            for part, values in (("weight", norm.weight), ("bias", norm.bias))
        ]
        y = self._node("LayerNormalization", [x, *vectors], axis=-1, epsilon=NORM_EPS)
        return y if norm.limits is None else self.graph.quantize(norm.name, y, norm.limits)

    def quantize(self, quantize: Quantize, x: str, *, channels_last: bool) -> str:
        shape = (-1,) if channels_last else (1, -1, 1, 1)
        for op, part, values in (("Mul", "scale", quantize.multiplier), ("Add", "shift", quantize.shift)):
            constant = self.graph.constant(f"{quantize.name}.{part}", values.reshape(shape))
            x = self._node(op, [x, constant])
        return self.graph.quantize(quantize.name, x, quantize.limits)

    def attend(self, attention: Attention, q: str, k: str, v: str, shift: int) -> str:
        name, heads = attention.name, attention.heads
        channels = len(attention.q.bias)
        split = self._ints([-1, self.window**2, heads, channels // heads])
        q, k, v = (
            self._node("Transpose", [self._node("Reshape", [self._value(x, part), split])], perm=list(perm))
            for x, part, perm in (
                (q, attention.q, (0, 2, 1, 3)),
                (k, attention.k, (0, 2, 3, 1)),
                (v, attention.v, (0, 2, 1, 3)),
            )
        )  # (B * G, h, N, d), k as (B * G, h, d, N)
        scores = self._node("MatMul", [q, k])  # (B * G, h, N, N)
        if attention.score_multiplier != 1:
            scores = self._node("Mul", [scores, self.graph.scalar(attention.score_multiplier)])
        scores = self._node("Add", [scores, self.graph.constant(f"{name}.bias", attention.bias)])
        if shift:
            scores = self._node("Add", [scores, self._mask(shift)])
        weights = self._node("Softmax", [scores], axis=-1)
        if attention.probabilities is not None:
            weights = self.quantize(attention.probabilities, weights, channels_last=True)
            weights = self._dequantize(weights, attention.probabilities.limits)
        mixed = self._node("MatMul", [weights, v])  # (B * G, h, N, d)
        mixed = self._node("Transpose", [mixed], perm=[0, 2, 1, 3])  # (B * G, N, h, d)
        # (B, L, C)
        mixed = self._node("Reshape", [mixed, self._shape([-1], self.places, [channels])])
        if isinstance(attention.mix, Quantize):
            return self.quantize(attention.mix, mixed, channels_last=True)
        return mixed if attention.mix == 1 else self.multiply(mixed, attention.mix)

    def reorder(self, x: str, old: Order, new: Order) -> str:
        return x if old == new else self._node("Gather", [x, self._order(old, new)], axis=1)

    def gelu(self, x: str) -> str:
        inner = self._node("Erf", [self._node("Mul", [x, self.graph.scalar(1 / math.sqrt(2))])])
        half = self._node("Mul", [x, self.graph.scalar(0.5)])
        return self._node("Mul", [half, self._node("Add", [inner, self.graph.scalar(1)])])

    def leaky_relu(self, x: str, slope: float) -> str:
        return self._node("LeakyRelu", [x], alpha=slope)

    def shuffle(self, x: str, factor: int) -> str:
        return self._node("DepthToSpace", [x], blocksize=factor, mode="CRD")

    def add(self, a: str, b: str) -> str:
        return self._node("Add", [a, b])

    def multiply(self, x: str, factor: np.float32) -> str:
        return self._node("Mul", [x, self.graph.scalar(factor)])

    def tokens(self, x: str) -> str:
        x = self._node("Transpose", [x], perm=[0, 2, 3, 1])  # (B, H, W, C)
        return self._node("Reshape", [x, self._shape([0], self.places, [-1])])  # (B, L, C)

    def map(self, x: str) -> str:
        x = self._node("Reshape", [x, self._shape([0], *self.grid, [-1])])  # (B, H, W, C)
        return self._node("Transpose", [x], perm=[0, 3, 1, 2])  # (B, C, H, W)

    def finish(self, x: str, shuffle: int) -> str:
        x = self.graph.quantize("pixels.upscaled", x, (0, 255))
        x = x if shuffle == 1 else self.shuffle(x, shuffle)
        x = self._node("Transpose", [x], perm=[0, 2, 3, 1])  # (B, H*s, W*s, 3)
        ends = [self._node("Mul", [size, self._ints([self.scale])]) for size in self.size]
        axes = [self._ints([0, 0]), self._node("Concat", ends, axis=0), self._ints([1, 2])]
        return self.graph.node("Slice", [x, *axes], OUTPUT)

    # --- codes ------------------------------------------------------------------------------------

    def _value(self, x: str, linear: FoldedLinear) -> str:
        return x if linear.codes_out is None else self._dequantize(x, linear.codes_out)

    def _dequantize(self, codes: str, limits: tuple[int, int]) -> str:
        return self._node("DequantizeLinear", [codes, self.graph.scalar(1), self.graph.zero(limits)])

    # --- what follows from the size, once per graph -----------------------------------------------

    def _reflected(self, axis: int) -> str:
        """Index of each padded row or column in the picture: 0, 1, ..., size - 1, size - 2, ..."""
        one = self._ints([1])
        period = self._node("Mul", [self._node("Sub", [self.size[axis], one]), self._ints([2])])
        period = self._node("Max", [period, one])
        position = self._node("Mod", [self._range(self.grid[axis]), period])
        return self._node("Min", [position, self._node("Sub", [period, position])])

    def _order(self, old: Order, new: Order) -> str:
        """(L,) as `layout.order_index`."""
        if ("order", old, new) not in self.known:
            index = self._range(self.places)
            if old is not None:
                windows = self._shape(*self.cells, [self.window, self.window])
                index = self._node("Reshape", [index, windows])  # (H / w, W / w, w, w)
                index = self._node("Transpose", [index], perm=[0, 2, 1, 3])  # (H / w, w, W / w, w)
                index = self._node("Reshape", [index, self._shape(*self.grid)])  # (H, W)
                index = self._rolled(index, -old)
            if new is not None:
                index = self._rolled(self._node("Reshape", [index, self._shape(*self.grid)]), new)
                index = self._windowed(index)
            self.known["order", old, new] = self._node("Reshape", [index, self._ints([-1])])
        return self.known["order", old, new]

    def _mask(self, shift: int) -> str:
        """(B * G, 1, N, N) as `layout.mask`."""
        if ("mask", shift) not in self.known:
            labels = []
            for size in self.grid:
                position = self._range(size)
                parts = [
                    self._node(
                        "Cast",
                        [
                            self._node(
                                "GreaterOrEqual", [position, self._node("Sub", [size, self._ints([n])])]
                            )
                        ],
                        to=TensorProto.INT64,
                    )
                    for n in (self.window, shift)
                ]
                labels.append(self._node("Add", parts))
            rows = self._node("Mul", [labels[0], self._ints([3])])
            rows = self._node("Reshape", [rows, self._ints([-1, 1])])  # (H, 1)
            places = self._windowed(self._node("Add", [rows, labels[1]]))  # (G, N)
            every = self._node("Expand", [places, self._shape(self.batch, [1, 1])])  # (B, G, N)
            pair = [
                self._node("Reshape", [every, self._ints([-1, 1, *shape])])
                for shape in ((self.window**2, 1), (1, self.window**2))
            ]  # (B * G, 1, N, 1), (B * G, 1, 1, N)
            same = self._node("Equal", pair)
            self.known["mask", shift] = self._node(
                "Where", [same, self.graph.scalar(0), self.graph.scalar(MASKED)]
            )
        return self.known["mask", shift]

    def _rolled(self, grid: str, shift: int) -> str:
        """(H, W) shifted cyclically up and to the left by `shift`, or down and to the right by
        `-shift`."""
        if shift == 0:
            return grid
        for axis in (0, 1):
            cut, end, axes = self._ints([shift]), self._ints([np.iinfo(np.int64).max]), self._ints([axis])
            front = self._node("Slice", [grid, self._ints([0]), cut, axes])
            back = self._node("Slice", [grid, cut, end, axes])
            grid = self._node("Concat", [back, front], axis=axis)
        return grid

    def _windowed(self, grid: str) -> str:
        """(H, W) as (G, N)."""
        rows, columns = self.cells
        parts = self._shape(rows, [self.window], columns, [self.window])
        split = self._node("Reshape", [grid, parts])  # (H / w, w, W / w, w)
        split = self._node("Transpose", [split], perm=[0, 2, 1, 3])  # (H / w, W / w, w, w)
        return self._node("Reshape", [split, self._ints([-1, self.window**2])])  # (G, N)

    # --- nodes ------------------------------------------------------------------------------------

    def _node(self, op: str, inputs: list[str], **attributes: object) -> str:
        """A node with a name of its own."""
        return self.graph.node(op, inputs, f"{op}.{len(self.graph.nodes)}", **attributes)

    def _ints(self, values: list[int]) -> str:
        name = f"ints.{'.'.join(map(str, values))}"
        return self.graph.constant(name, np.array(values, np.int64))

    def _shape(self, *parts: str | list[int]) -> str:
        """A shape from names of (1,) tensors and numbers."""
        names = [part if isinstance(part, str) else self._ints(part) for part in parts]
        return self._node("Concat", names, axis=0) if len(names) > 1 else names[0]

    def _range(self, count: str) -> str:
        """0, 1, ..., count - 1 for a (1,) tensor."""
        limits = [self.graph.constant(f"int.{n}", np.array(n, np.int64)) for n in (0, 1)]
        end = self._node("Squeeze", [count, self._ints([0])])
        return self._node("Range", [limits[0], end, limits[1]])
