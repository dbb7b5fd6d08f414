"""Folded programs as ONNX Runtime's CPU provider computes them in integers.

A convolution of codes that gives codes is a `QLinearConv`: its multiplier is one float and its bias
an integer, with which every possible sum has the same code (`passes.integer_scales`). One that
gives floats is a product of matrices, `MatMulIntegerToFloat`, of the codes gathered for each
pixel; the operator rounds the product with the multiplier before it adds the bias, as the
reference does. Of several such nodes in a row only a strip of pixels is held at once
(`onnx_strips`). Layers that read floats or 16-bit codes, or whose products could saturate on
processors without VNNI, are as in `onnx_operations`.

`MatMulIntegerToFloat` is an operator of ONNX Runtime's own.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from quantsr.deploy.engines.onnx_graph import Graph, conv_attributes
from quantsr.deploy.engines.onnx_operations import OnnxOps
from quantsr.deploy.engines.onnx_strips import StripOps
from quantsr.deploy.folded import FoldedConv, FoldedLinear, FoldedProgram, Quantize, Step, is_wide
from quantsr.deploy.passes import collapse
from quantsr.deploy.passes.integer_scales import IntegerConv, bytes_fit, integer_conv
from quantsr.deploy.passes.tail import Tail

DOMAIN = "com.microsoft"


class IntegerOps(StripOps):
    """`OnnxOps` in integers, maps with channels last; the tail as one convolution where one is
    given."""

    def __init__(self, graph: Graph, program: FoldedProgram, *, strips: int, tail: Tail | None) -> None:
        super().__init__(graph, program, count=strips)
        self.tail = tail
        self.windows: dict[int, list[str]] = {}  # in strips, by size

    def run(self) -> None:
        """All steps, from INPUT to OUTPUT."""
        if self.tail is None:
            super().run()
            return
        self.program = replace(self.program, steps=self.program.steps[: self.tail.start])
        self.run_steps()
        self.pixels_out(self.collapsed(self.whole(self.tail.value), self.tail))

    # --- layers -----------------------------------------------------------------------------------

    def run_step(self, step: Step) -> None:
        conv = step.op
        if not (isinstance(conv, FoldedConv) and self.sums_in_strips(step, conv)):
            super().run_step(step)
            return
        pixels, size = self.with_padding(conv, self.whole(step.inputs[0])), conv.weight.shape[-1]
        if size not in self.windows:
            self.windows[size] = self.split(self.window(size, Fraction(1)), 0)
        self.strips[step.output] = self.each(
            lambda window: self.sums(conv, pixels, window), ((window,) for window in self.windows[size])
        )

    def sums_in_strips(self, step: Step, conv: FoldedConv) -> bool:
        """Whether a step is a convolution of codes that gives floats, of the picture's size."""
        kind = conv.weight.ndim == 4 and conv.codes_out is None and bytes_fit(conv)
        return kind and conv.groups == 1 and self.count > 1 and self.growth[step.output] == 1

    def conv(self, step: Step, x: str) -> str:
        conv = step.op
        assert isinstance(conv, FoldedConv)
        if not bytes_fit(conv):
            return self.graph.conv(conv, x)
        if integers := integer_conv(conv):
            return self.integer_conv(conv, integers, x)
        if conv.groups > 1:
            return self.graph.conv(conv, x)
        growth = self.growth[step.output]
        y = self.sums(conv, self.with_padding(conv, x), self.window(conv.weight.shape[-1], growth))
        return self._node("Reshape", [y, self._shape([0], *self.size(growth), [-1])])

    def linear(self, step: Step, x: str) -> str:
        linear = step.op
        assert isinstance(linear, FoldedLinear)
        return self.product(linear, x) if bytes_fit(linear) else super().linear(step, x)

    def integer_conv(self, conv: FoldedConv, integers: IntegerConv, x: str) -> str:
        """The codes that a convolution of codes gives."""
        assert conv.codes_in is not None
        assert conv.codes_out is not None
        graph, name, one = self.graph, conv.name, self.graph.scalar(1)
        inputs = [
            *(x, one, graph.zero(conv.codes_in)),
            graph.constant(f"{name}.weight", integers.weight),
            graph.constant(f"{name}.scale", integers.scale),
            graph.constant(f"{name}.weight.zero", np.zeros(len(conv.weight), np.int8)),
            *(one, graph.zero(conv.codes_out)),
            graph.constant(f"{name}.bias", integers.bias),
        ]
        how = conv_attributes(conv.weight.shape[-1], conv.groups)
        codes = graph.on_planes("QLinearConv", inputs, f"{name}.out", **how)
        if conv.low is not None:
            low = (conv.low - min(conv.codes_out[0], 0)).astype(np.uint8)
            codes = graph.node("Max", [codes, graph.constant(f"{name}.low", low)], f"{name}.limited")
        return graph.clip(conv.codes_name, codes, conv.codes_out)

    def sums(self, conv: FoldedConv, pixels: str, window: str) -> str:
        """A convolution at the pixels of `window`, (B, L, O)."""
        x = self._node("Gather", [pixels, window], axis=1)  # (B, L, k * k, I)
        x = self._node("Reshape", [x, self._ints([0, 0, -1])])
        weight = conv.weight.transpose(0, 2, 3, 1).reshape(len(conv.weight), -1)  # (O, k * k * I)
        return self.product(replace(conv, weight=weight), x)

    def product(self, layer: FoldedConv, x: str) -> str:
        """What a layer gives of codes (..., I), with a weight (O, I)."""
        assert layer.codes_in is not None
        graph, name = self.graph, layer.name
        inputs = [
            x,
            graph.constant(f"{name}.weight", np.ascontiguousarray(layer.weight.T)),
            graph.scalar(1),
            graph.constant(f"{name}.scale", layer.multiplier),
            graph.zero(layer.codes_in),
            "",
            graph.constant(f"{name}.bias", layer.bias),
        ]
        y = graph.node("MatMulIntegerToFloat", inputs, f"{name}.out", domain=DOMAIN)
        if layer.codes_out is None:
            return y
        if layer.low is not None:
            y = graph.node("Max", [y, graph.constant(f"{name}.low", layer.low)], f"{name}.limited")
        return graph.quantize(layer.codes_name, y, layer.codes_out)

    def quantize(self, step: Step, x: str) -> str:
        op = step.op
        assert isinstance(op, Quantize)
        if is_wide(op.limits):
            return super().quantize(step, x)
        if op.tau.any():
            x = self._node("Add", [x, self.graph.constant(f"{op.name}.tau", op.tau)])
        return self.graph.quantize(op.name, x, op.limits, op.step)

    # --- what each pixel's sum reads --------------------------------------------------------------

    def with_padding(self, conv: FoldedConv, x: str) -> str:
        """The codes (B, H, W, I) that a convolution reads as (B, H * W + 1, I): padding last."""
        assert conv.codes_in is not None
        pixels = self._node("Reshape", [x, self._ints([0, -1, conv.weight.shape[1]])])
        return self._node("Pad", [pixels, self._ints([0, 0, 0, 0, 1, 0]), self.graph.zero(conv.codes_in)])

    def window(self, size: int, growth: Fraction) -> str:
        """(H * W, size * size) place of each neighbour of each pixel; H * W outside of the map."""

        def window() -> str:
            height, width = self.size(growth)
            count = self._node("Mul", [height, width])
            grid = self._node("Reshape", [self._range(count), self._shape(height, width)])
            outside = self._node("Squeeze", [count, self._ints([0])])
            grid = self._node("Pad", [grid, self._ints([size // 2] * 4), outside])
            parts = []
            for y, x in np.ndindex(size, size):
                ends = self._node("Add", [self._shape(height, width), self._ints([y, x])])
                part = self._node("Slice", [grid, self._ints([y, x]), ends])
                parts.append(self._node("Reshape", [part, self._ints([-1, 1])]))
            return self._node("Concat", parts, axis=1) if size > 1 else parts[0]

        return self._once(("window", size, growth), window)

    # --- the tail ---------------------------------------------------------------------------------

    def collapsed(self, x: str, tail: Tail) -> str:
        """The picture (B, H*s, W*s, 3) from the tail's input (B, H, W, C) in floats, H and W at
        least `collapse.MIN_SIZE`."""
        scale, kernels = self.program.scale, collapse.collapse(tail.stages)

        def cell(row: str, column: str) -> str:
            kernel, name = kernels[row, column], f"tail.{row}.{column}"
            inputs = [
                self._seen(self._seen(x, 1, row), 2, column),
                self.graph.constant(f"{name}.weight", kernel.weight),
                self.graph.constant(f"{name}.bias", kernel.bias),
            ]
            pads = [int(row == "inner"), int(column == "inner")] * 2
            shape = list(kernel.weight.shape[2:])
            y = self.graph.on_planes("Conv", inputs, name, pads=pads, kernel_shape=shape)
            return self.graph.quantize(f"{name}.pixels", y, (0, 255))

        rows = [
            self._node("Concat", [cell(row, column) for column in collapse.POSITIONS], axis=2)
            for row in collapse.POSITIONS
        ]
        y = self._node("Concat", rows, axis=1)  # (B, H, W, s*s*3): row phase, column phase, colour
        y = self._node("Reshape", [y, self._shape([0], *self.grid, [scale, 3 * scale])])
        y = self._node("Transpose", [y], perm=[0, 1, 3, 2, 4])  # (B, H, s, W, s*3)
        return self._node("Reshape", [y, self._shape([0], *self.size(Fraction(scale)), [3])])

    def _seen(self, x: str, axis: int, position: str) -> str:
        """The first or last rows or columns, which the kernels at that border see; all of them
        inside."""
        if position == "inner":
            return x
        size = collapse.MIN_SIZE
        ends = (0, size) if position == "first" else (-size, np.iinfo(np.int64).max)
        return self._node("Slice", [x, *(self._ints([end]) for end in (*ends, axis))])


IntegerOps.methods = OnnxOps.methods | {
    FoldedConv: IntegerOps.conv,
    FoldedLinear: IntegerOps.linear,
    Quantize: IntegerOps.quantize,
}
