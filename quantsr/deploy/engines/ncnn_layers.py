"""Convolutions, codes and the picture of a folded program as layers of ncnn.

A convolution of codes from -127 to 127 is one of ncnn's int8 convolutions. Between two of them
codes are bytes where one range limits all channels; elsewhere they are floats, rounded and limited
by layers of their own. ncnn multiplies sums by a constant and adds the bias without rounding
between, and rounds half away from zero: codes are bytes only where that changes none
(`passes.edges`). Everywhere else on which codes depend, product, bias and rounding are layers of
their own, so that the codes are the reference's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantsr.deploy.engines import ncnn_graph
from quantsr.deploy.engines.ncnn_graph import INPUT, Graph, Values
from quantsr.deploy.folded import (
    Activation,
    FirstConv,
    FoldedConv,
    FoldedLinear,
    FoldedProgram,
    Limits,
    Normalize,
    Quantize,
    Requantize,
    Step,
)
from quantsr.deploy.packed.model import dense
from quantsr.deploy.passes import collapse
from quantsr.deploy.passes.edges import clear_of_edges
from quantsr.deploy.passes.first import split_head
from quantsr.deploy.passes.reciprocal import reciprocal
from quantsr.deploy.passes.tail import Tail

_LARGEST_CODE = 127  # that ncnn's int8 convolutions read, and its opposite
_TO_THE_END = -233  # of Crop
_255 = np.float32(255)


class Layers:
    """Of a program in a graph; values are names of blobs."""

    def __init__(self, graph: Graph, program: FoldedProgram, *, white: float = 1.0) -> None:
        """`white` is what pixels of 255 are in the result."""
        self.graph, self.program = graph, program
        self.unit = np.float32(white / 255)
        self.readers = program.readers()
        self.blobs: dict[int, str] = {0: INPUT}
        self.bytes: set[int] = set()  # values that are codes as bytes
        self.done: set[int] = set()  # values that a layer before theirs gives
        self.exact = before_codes(program)

    def only_reader(self, value: int) -> Step | None:
        """The step that reads `value`, where only one does, and once."""
        readers = self.readers[value]
        return readers[0] if len(readers) == 1 and readers[0].inputs.count(value) == 1 else None

    # --- the picture ------------------------------------------------------------------------------

    def first_conv(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, FirstConv)
        if op.pixels_are_codes:
            x = self.graph.round(self.graph.with_constant(ncnn_graph.MULTIPLY, INPUT, _255))
            if op.head.zero_point is not None:
                x = self.graph.with_constant(ncnn_graph.SUBTRACT, x, op.head.zero_point.astype(np.float32))
            self.convolve(step, op.head, x)
        elif op.quantize is not None:
            self.convolve(step, op.head, self.quantized(op.quantize, self.normalized(op)))
        elif step.output in self.exact:
            y = self.split_sums(self.normalized(op), op)
            self.finish(step, op.head, self.graph.with_constant(ncnn_graph.ADD, y, op.head.bias))
        else:
            self.convolve(step, op.head, self.normalized(op))

    def normalize(self, step: Step) -> None:
        assert isinstance(step.op, Normalize)
        self.blobs[step.output] = self.normalized(step.op)

    def normalized(self, op: FirstConv | Normalize) -> str:
        """`(pixel / 255 - mean) * img_range`, of the picture in 0..1."""
        x = INPUT
        if op.mean.any():
            x = self.graph.with_constant(ncnn_graph.SUBTRACT, x, op.mean)
        return self.graph.with_constant(ncnn_graph.MULTIPLY, x, op.img_range)

    def split_sums(self, x: str, first: FirstConv) -> str:
        """The first convolution's sums, rounded once, as `passes.first.SplitHead` says."""
        graph, split, name = self.graph, split_head(first), first.head.name
        parts = []
        for unit in (split.unit, split.finer):
            units = graph.round(graph.with_constant(ncnn_graph.MULTIPLY, x, unit))
            parts.append(graph.with_constant(ncnn_graph.MULTIPLY, units, 1 / unit))
            x = graph.binary(ncnn_graph.SUBTRACT, x, parts[-1])
        a, b, c = (
            graph.conv(self.joined(inputs, 0), f"{name}.{label}", weight, None, exact=True)
            for label, inputs, weight in (
                ("high", parts[:1], split.high),
                ("middle", parts, split.middle),
                ("low", [*parts, x], split.low),
            )
        )
        total = graph.binary(ncnn_graph.ADD, a, b)
        error = graph.binary(ncnn_graph.ADD, graph.binary(ncnn_graph.SUBTRACT, a, total), b)
        return graph.binary(ncnn_graph.ADD, total, graph.binary(ncnn_graph.ADD, error, c))

    def joined(self, blobs: list[str], axis: int) -> str:
        """Maps as one."""
        return self.graph.layer("Concat", blobs, {0: axis}) if len(blobs) > 1 else blobs[0]

    # --- convolutions -----------------------------------------------------------------------------

    def conv(self, step: Step) -> None:
        """A convolution, or a linear layer as one of 1x1; with groups of more than one channel as
        one without, whose sums ncnn adds as they are."""
        assert isinstance(step.op, FoldedConv)
        conv = step.op.as_conv() if isinstance(step.op, FoldedLinear) else step.op
        if conv.groups not in (1, len(conv.weight)):
            conv = replace(conv, weight=dense(conv.weight, conv.groups), groups=1)
        self.convolve(step, conv, self.blobs[step.inputs[0]])

    def convolve(self, step: Step, conv: FoldedConv, x: str) -> None:
        """A convolution of floats or codes, less their zero point."""
        graph, exact = self.graph, step.output in self.exact or conv.codes_out is not None
        if self.gives_bytes(step, conv):
            assert conv.codes_out is not None
            low = conv.codes_out[0] if conv.low is None else int(conv.low[0])
            self.blobs[step.output] = graph.conv_of_codes(
                x,
                conv.name,
                conv.weight.astype(np.int8),
                conv.multiplier,
                conv.bias,
                bound=conv.sum_bound,
                activation=ncnn_graph.clipped((low, conv.codes_out[1])),
                to_bytes=True,
            )
            self.bytes.add(step.output)
            return
        if not conv.integer or not exact:
            y = self.with_bias(step, conv, x)
        else:
            y = self.sums(conv, x)
            y = graph.with_constant(ncnn_graph.ADD, y, conv.bias)
        self.finish(step, conv, y)

    def gives_bytes(self, step: Step, conv: FoldedConv) -> bool:
        """Whether a convolution gives its codes as bytes: only int8 convolutions read them, one
        range limits all channels, and no sum is next to an edge."""
        if conv.codes_out is None or not reads_bytes(conv):
            return False
        if conv.low is not None and (conv.low != conv.low[0]).any():
            return False
        readers = [step.op for step in self.readers[step.output]]
        to_bytes = all(isinstance(op, FoldedConv) and reads_bytes(op) for op in readers)
        return to_bytes and clear_of_edges(conv)

    def with_bias(self, step: Step, conv: FoldedConv, x: str) -> str:
        """A convolution on which no code depends, or one of floats, with bias and ReLU in one
        layer."""
        graph, activation = self.graph, self.fused(step) if conv.codes_out is None else None
        if reads_bytes(conv):
            weight = conv.weight.astype(np.int8)
            return graph.conv_of_codes(
                x, conv.name, weight, conv.multiplier, conv.bias, bound=conv.sum_bound, activation=activation
            )
        product = conv.weight.astype(np.float64) * conv.multiplier.reshape(-1, 1, 1, 1)
        exact = step.output in self.exact
        return graph.conv(
            x,
            conv.name,
            product.astype(np.float32),
            conv.bias,
            activation=activation,
            exact=exact,
            groups=conv.groups,
        )

    def sums(self, conv: FoldedConv, x: str) -> str:
        """A convolution of codes times its multiplier, rounded after each."""
        graph, multiplier = self.graph, conv.multiplier
        if reads_bytes(conv):
            inside = multiplier if ncnn_graph.reachable(multiplier) else np.ones_like(multiplier)
            y = graph.conv_of_codes(
                x, conv.name, conv.weight.astype(np.int8), inside, None, bound=conv.sum_bound
            )
        else:
            inside = np.ones_like(multiplier)
            weight = conv.weight.astype(np.float32)
            y = graph.conv(x, conv.name, weight, None, exact=True, groups=conv.groups)
        return y if inside is multiplier else graph.with_constant(ncnn_graph.MULTIPLY, y, multiplier)

    def fused(self, step: Step) -> Values | None:
        """The ReLU that alone reads a step's result, as an activation."""
        reader = self.only_reader(step.output)
        if reader is None or not isinstance(reader.op, Activation):
            return None
        op = reader.op
        if op.kind != "relu" and (op.slope is None or op.slope.size > 1):
            return None
        self.done.add(reader.output)
        return ncnn_graph.rectified(0.0 if op.slope is None else float(op.slope.reshape(())))

    def finish(self, step: Step, conv: FoldedConv, y: str) -> None:
        """What follows the result `y` of a convolution in floats."""
        if conv.codes_out is not None:
            if conv.low is not None:
                y = self.graph.with_constant(ncnn_graph.MAXIMUM, y, conv.low)
            y = self.rounded(y, conv.codes_out)
        self.blobs[step.output] = y
        for reader in self.readers[step.output]:
            if reader.output in self.done:
                self.blobs[reader.output] = y

    # --- codes ------------------------------------------------------------------------------------

    def quantize(self, step: Step) -> None:
        assert isinstance(step.op, Quantize)
        self.blobs[step.output] = self.quantized(step.op, self.blobs[step.inputs[0]])

    def quantized(self, op: Quantize, x: str) -> str:
        """`clip(round((x + tau) / step), *limits)`; ncnn's division is not rounded as IEEE 754
        says."""
        if op.tau.any():
            x = self.graph.with_constant(ncnn_graph.ADD, x, op.tau)
        for factor in reciprocal(op.step, op.limits):
            x = self.graph.with_constant(ncnn_graph.MULTIPLY, x, factor)
        return self.rounded(x, op.limits)

    def requantize(self, step: Step) -> None:
        op, x = step.op, self.blobs[step.inputs[0]]
        assert isinstance(op, Requantize)
        x = self.graph.with_constant(ncnn_graph.MULTIPLY, x, op.multiplier)
        if op.shift.any():
            x = self.graph.with_constant(ncnn_graph.ADD, x, op.shift)
        self.blobs[step.output] = self.rounded(x, op.limits)

    def rounded(self, x: str, limits: Limits) -> str:
        """Codes as floats."""
        return self.graph.clip(self.graph.round(x), *limits)

    # --- the tail ---------------------------------------------------------------------------------

    def collapsed(self, x: str, tail: Tail) -> str:
        """The picture from the tail's input (C, H, W), H and W at least
        `collapse.MIN_SIZE`."""
        scale, kernels = self.program.scale, collapse.collapse(tail.stages)
        # from (row phase, column phase, colour) to (colour, row phase, column phase)
        order = np.arange(3 * scale**2).reshape(scale, scale, 3).transpose(2, 0, 1).reshape(-1)

        def cell(rows: str, row: str, column: str) -> str:
            kernel, pads = kernels[row, column], (int(row == "inner"), int(column == "inner"))
            weight, bias = kernel.weight[order] * self.unit, kernel.bias[order] * self.unit
            return self.graph.conv(
                self.seen(rows, 2, column), f"tail.{row}.{column}", weight, bias, pads=pads
            )

        bands = []
        for row in collapse.POSITIONS:
            rows = self.seen(x, 1, row)
            bands.append(self.joined([cell(rows, row, column) for column in collapse.POSITIONS], 2))
        return self.graph.layer("PixelShuffle", [self.joined(bands, 1)], {0: scale})

    def seen(self, x: str, axis: int, position: str) -> str:
        """The first or last rows or columns, which the kernels at that border see; all of them
        inside."""
        if position == "inner":
            return x
        ends = (0, collapse.MIN_SIZE) if position == "first" else (-collapse.MIN_SIZE, _TO_THE_END)
        return self.graph.layer("Crop", [x], {9: [ends[0]], 10: [ends[1]], 11: [axis]})


def before_codes(program: FoldedProgram) -> set[int]:
    """The values that codes depend on."""
    found: set[int] = set()
    for step in reversed(program.steps):
        op = step.op
        to_codes = isinstance(op, Quantize | Requantize) or getattr(op, "codes_out", None) is not None
        if step.output in found or to_codes:
            found.update(step.inputs)
    return found


def reads_bytes(conv: FoldedConv) -> bool:
    """Whether a layer is an int8 convolution in ncnn."""
    codes = conv.codes_in
    return (
        conv.integer
        and conv.groups == 1
        and conv.zero_point is None
        and codes is not None
        and max(abs(code) for code in codes) <= _LARGEST_CODE
    )
