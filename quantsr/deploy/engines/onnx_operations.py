"""The operations of folded programs as ONNX nodes, for any batch, height and width.

Products of codes are those of `onnx_graph`: dequantized by 1, summed, and multiplied
by one constant per output behind. What depends on the size (the reflected rows and columns, the
order of tokens in windows, the mask of shifted windows) is computed once in the graph, from the
shape of its input, on index tensors; tokens then move by one Gather.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.engines.onnx_graph import INPUT, OUTPUT, Graph
from quantsr.deploy.engines.onnx_map_attention import MapAttention
from quantsr.deploy.folded import (
    Activation,
    Affine,
    Attention,
    Binary,
    ChannelAttention,
    Concat,
    FirstConv,
    FoldedConv,
    FoldedLinear,
    FoldedProgram,
    GlobalAttention,
    GroupNorm,
    Limits,
    MaxPool,
    Mean,
    Norm,
    Normalize,
    Offset,
    Pixels,
    PixelShuffle,
    PixelUnshuffle,
    Quantize,
    RectangleAttention,
    Reorder,
    Requantize,
    ResizeNearest,
    Scale,
    Slice,
    Step,
    ToMap,
    ToTokens,
    UpsampleBilinear,
    UpsampleNearest,
)


class OnnxOps(MapAttention):
    """The operations in a graph; values are names."""

    methods: ClassVar[dict[type, Callable[..., str]]]
    """Of each operation."""

    def __init__(self, graph: Graph, program: FoldedProgram) -> None:
        super().__init__(graph, program)
        self.names: dict[int, str] = {}
        self.producer = {step.output: step.op for step in program.steps}
        self.growth = program.growth()

    def run(self) -> None:
        """All steps, from INPUT to OUTPUT."""
        self.run_steps()
        self.pixels_out(self.names[self.program.steps[-1].output])

    def run_steps(self) -> None:
        """All steps, from INPUT on."""
        self.names[0] = self.pixels_in()
        for step in self.program.steps:
            self.run_step(step)

    def run_step(self, step: Step) -> None:
        """One step, its inputs known by name."""
        run_op = self.methods[type(step.op)]
        self.names[step.output] = run_op(self, step, *(self.names[value] for value in step.inputs))

    def on_tokens(self, step: Step) -> bool:
        """Whether a step's first input is tokens."""
        return step.inputs[0] in self.program.tokens

    def channel_axis(self, step: Step) -> int:
        """Of a step's first input."""
        return -1 if self.on_tokens(step) else self.graph.axis

    def shape_along(self, step: Step) -> tuple[int, ...]:
        """Of (C,) constants that go with a step's first input."""
        return (-1,) if self.on_tokens(step) else self.graph.shape_of_channels

    def along(self, step: Step, name: str, values: NDArray[np.float32]) -> str:
        """(C,) or one number as a constant to go with a step's first input."""
        values = np.asarray(values, np.float32)
        return self.graph.constant(name, values.reshape(self.shape_along(step)))

    # --- the picture ------------------------------------------------------------------------------

    def pixels_in(self) -> str:
        """The picture (B, 3, H, W), continued by reflection where the program says so."""
        x = INPUT
        if self.program.multiple > 1:
            for axis in (0, 1):
                x = self._node("Gather", [x, self._reflected(axis)], axis=axis + 1)
        if self.graph.channels_last:
            return self.graph.node("Identity", [x], "pixels")
        return self.graph.node("Transpose", [x], "pixels", perm=[0, 3, 1, 2])  # (B, 3, H, W)

    def pixels_out(self, x: str) -> None:
        """The result as the graph's output (B, h * s, w * s, 3)."""
        if self.program.multiple == 1:
            self.shown(x, OUTPUT)
            return
        x = self.shown(x, "pixels.whole")
        ends = [self._node("Mul", [size, self._ints([self.program.scale])]) for size in self.sizes]
        axes = [self._ints([0, 0]), self._node("Concat", ends, axis=0), self._ints([1, 2])]
        self.graph.node("Slice", [x, *axes], OUTPUT)

    def shown(self, x: str, name: str) -> str:
        """The result as (B, H * s, W * s, 3), of the padded picture."""
        if self.graph.channels_last:
            return self.graph.node("Identity", [x], name)
        return self.graph.node("Transpose", [x], name, perm=[0, 2, 3, 1])

    def first_conv(self, step: Step, x: str) -> str:
        assert isinstance(step.op, FirstConv)
        return self.graph.first_conv(step.op, x)

    def normalize(self, step: Step, x: str) -> str:
        assert isinstance(step.op, Normalize)
        return self.graph.normalized(step.op, x)

    def pixels(self, step: Step, x: str) -> str:
        return self.graph.quantize("pixels.upscaled", x, (0, 255))

    # --- layers -----------------------------------------------------------------------------------

    def conv(self, step: Step, x: str) -> str:
        assert isinstance(step.op, FoldedConv)
        return self.graph.conv(step.op, x)

    def linear(self, step: Step, x: str) -> str:
        linear, graph = step.op, self.graph
        assert isinstance(linear, FoldedLinear)
        if not self.on_tokens(step):
            return graph.conv(linear.as_conv(), x)
        name = linear.name
        if linear.codes_in is not None:
            x = graph.dequantize(linear, x)
        # (I, O)
        weight = graph.weight(replace(linear, weight=np.ascontiguousarray(linear.weight.T)))
        y = graph.node("MatMul", [x, weight], f"{name}.sum")
        y = graph.node("Mul", [y, graph.constant(f"{name}.scale", linear.multiplier)], f"{name}.scaled")
        y = graph.node("Add", [y, graph.constant(f"{name}.bias", linear.bias)], f"{name}.out")
        if linear.low is not None:
            y = graph.node("Max", [y, graph.constant(f"{name}.low", linear.low)], f"{name}.limited")
        return y if linear.codes_out is None else graph.quantize(linear.codes_name, y, linear.codes_out)

    def norm(self, step: Step, x: str) -> str:
        norm = step.op
        assert isinstance(norm, Norm)
        vectors = [
            self.graph.constant(f"{norm.name}.norm.{part}", values)
            for part, values in (("weight", norm.weight), ("bias", norm.bias))
        ]
        y = self._node("LayerNormalization", [x, *vectors], axis=-1, epsilon=norm.eps)
        return y if norm.limits is None else self.graph.quantize(norm.name, y, norm.limits)

    def group_norm(self, step: Step, x: str) -> str:
        """As InstanceNormalization of the groups, which more runtimes have."""
        norm = step.op
        assert isinstance(norm, GroupNorm)
        ones, zeros = (
            self.graph.constant(f"{name}.{norm.groups}", np.full(norm.groups, value, np.float32))
            for name, value in (("ones", 1), ("zeros", 0))
        )
        grouped = self._node("Reshape", [self._channels_first(x), self._ints([0, norm.groups, -1])])
        grouped = self._node("InstanceNormalization", [grouped, ones, zeros], epsilon=norm.eps)
        shape = self._node("Shape", [self._channels_first(x)])
        y = self._channels_first(self._node("Reshape", [grouped, shape]), back=True)
        for kind, part, values in (("Mul", "weight", norm.weight), ("Add", "bias", norm.bias)):
            y = self._node(kind, [y, self.along(step, f"{norm.name}.norm.{part}", values)])
        return y

    def _channels_first(self, x: str, *, back: bool = False) -> str:
        if not self.graph.channels_last:
            return x
        return self._node("Transpose", [x], perm=[0, 2, 3, 1] if back else [0, 3, 1, 2])

    def quantize(self, step: Step, x: str) -> str:
        op = step.op
        assert isinstance(op, Quantize)
        if not self.on_tokens(step):
            return self.graph.codes(op, x)
        x = self._node("Add", [x, self.graph.constant(f"{op.name}.tau", op.tau)])
        x = self._node("Div", [x, self.graph.constant(f"{op.name}.step", op.step)])
        return self.graph.quantize(op.name, x, op.limits)

    def requantize(self, step: Step, x: str) -> str:
        assert isinstance(step.op, Requantize)
        return self._requantized(step.op, x, self.shape_along(step))

    def _requantized(self, op: Requantize, x: str, shape: tuple[int, ...]) -> str:
        for node, part, values in (("Mul", "scale", op.multiplier), ("Add", "shift", op.shift)):
            x = self._node(node, [x, self.graph.constant(f"{op.name}.{part}", values.reshape(shape))])
        return self.graph.quantize(op.name, x, op.limits)

    def attention(self, step: Step, q: str, k: str, v: str) -> str:
        attention = step.op
        assert isinstance(attention, Attention)
        name, heads, shift = attention.name, attention.heads, attention.shift
        if attention.overlap:
            k, v = (self._overlapping(x, attention.window, attention.overlap) for x in (k, v))
        size, keys = self.channels_of(step.inputs[0]) // heads, attention.bias.shape[2]
        splits = [self._ints([-1, tokens, heads, size]) for tokens in (attention.window**2, keys, keys)]
        perms = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
        q, k, v = (
            self._node("Transpose", [self._node("Reshape", [self._value(x, limits), split])], perm=list(perm))
            for x, limits, split, perm in zip((q, k, v), attention.operands, splits, perms, strict=True)
        )  # (B * G, h, N, d), k as (B * G, h, d, M), v as (B * G, h, M, d)
        scores = self._node("MatMul", [q, k])  # (B * G, h, N, N)
        if attention.score_multiplier != 1:
            scores = self._node("Mul", [scores, self.graph.scalar(attention.score_multiplier)])
        scores = self._node("Add", [scores, self.graph.constant(f"{name}.bias", attention.bias)])
        if shift:
            scores = self._node("Add", [scores, self._mask(attention.window, shift)])
        weights = self._node("Softmax", [scores], axis=-1)
        if attention.probabilities is not None:
            weights = self._requantized(attention.probabilities, weights, (-1,))
            weights = self._dequantize(weights, attention.probabilities.limits)
        mixed = self._node("MatMul", [weights, v])  # (B * G, h, N, d)
        mixed = self._node("Transpose", [mixed], perm=[0, 2, 1, 3])  # (B * G, N, h, d)
        # (B, L, C)
        mixed = self._node(
            "Reshape", [mixed, self._shape([-1], self.places, [self.channels_of(step.inputs[0])])]
        )
        if isinstance(attention.mix, Requantize):
            return self._requantized(attention.mix, mixed, (-1,))
        return mixed if attention.mix == 1 else self._node("Mul", [mixed, self.graph.scalar(attention.mix)])

    def channels_of(self, value: int) -> int:
        """Outputs of the linear layer that gives `value`."""
        op = self.producer[value]
        assert isinstance(op, FoldedConv)
        return len(op.bias)

    # --- element by element -----------------------------------------------------------------------

    def activation(self, step: Step, x: str) -> str:
        op = step.op
        assert isinstance(op, Activation)
        if op.kind == "gelu":
            inner = self._node("Erf", [self._node("Mul", [x, self.graph.scalar(1 / math.sqrt(2))])])
            half = self._node("Mul", [x, self.graph.scalar(0.5)])
            return self._node("Mul", [half, self._node("Add", [inner, self.graph.scalar(1)])])
        if op.kind == "silu":
            return self._node("Mul", [x, self._node("Sigmoid", [x])])
        if op.kind == "mish":
            return self._node("Mul", [x, self._node("Tanh", [self._node("Softplus", [x])])])
        if op.kind == "leaky_relu":
            assert op.slope is not None
            return self._node("LeakyRelu", [x], alpha=float(op.slope))
        if op.kind == "prelu":
            assert op.slope is not None
            slope = self.along(step, f"prelu.{step.output}.slope", op.slope)
            return self._node("PRelu", [x, slope])
        return self._node({"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}[op.kind], [x])

    def scale(self, step: Step, x: str) -> str:
        assert isinstance(step.op, Scale)
        return self._node("Mul", [x, self.graph.scalar(step.op.factor)])

    def offset(self, step: Step, x: str) -> str:
        assert isinstance(step.op, Offset)
        return self._node("Add", [x, self.along(step, f"offset.{step.output}", step.op.values)])

    def affine(self, step: Step, x: str) -> str:
        op = step.op
        assert isinstance(op, Affine)
        for kind, part, values in (("Mul", "weight", op.weight), ("Add", "bias", op.bias)):
            x = self._node(kind, [x, self.along(step, f"{op.name}.{part}", values)])
        return x

    def binary(self, step: Step, a: str, b: str) -> str:
        assert isinstance(step.op, Binary)
        return self._node({"add": "Add", "subtract": "Sub", "multiply": "Mul"}[step.op.kind], [a, b])

    # --- shapes -----------------------------------------------------------------------------------

    def concat(self, step: Step, *inputs: str) -> str:
        return self._node("Concat", list(inputs), axis=self.channel_axis(step))

    def slice(self, step: Step, x: str) -> str:
        assert isinstance(step.op, Slice)
        ends = [self._ints([step.op.start]), self._ints([step.op.stop])]
        return self._node("Slice", [x, *ends, self._ints([self.channel_axis(step)])])

    def pixel_shuffle(self, step: Step, x: str) -> str:
        assert isinstance(step.op, PixelShuffle)
        return self._on_planes("DepthToSpace", [x], blocksize=step.op.factor, mode="CRD")

    def pixel_unshuffle(self, step: Step, x: str) -> str:
        """By reshaping: ONNX's SpaceToDepth has another order of channels."""
        assert isinstance(step.op, PixelUnshuffle)
        height, width = self.size(self.growth[step.output])
        factor = [step.op.factor]
        x = self._channels_first(x)
        x = self._node("Reshape", [x, self._shape([0], [0], height, factor, width, factor)])
        x = self._node("Transpose", [x], perm=[0, 1, 3, 5, 2, 4])  # (B, C, r, r, h / r, w / r)
        x = self._node("Reshape", [x, self._shape([0], [-1], height, width)])
        return self._channels_first(x, back=True)

    def upsample_nearest(self, step: Step, x: str) -> str:
        assert isinstance(step.op, UpsampleNearest)
        how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        return self._resized(x, step.op.factor, how)

    def upsample_bilinear(self, step: Step, x: str) -> str:
        assert isinstance(step.op, UpsampleBilinear)
        how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self._resized(x, step.op.factor, how)

    def _resized(self, x: str, factor: int, how: dict[str, str]) -> str:
        factors = self.graph.constant(f"factors.{factor}", np.array([1, 1, factor, factor], np.float32))
        return self._on_planes("Resize", [x, "", factors], **how)

    def max_pool(self, step: Step, x: str) -> str:
        """Of the rows, then of the columns: ONNX pools no maps to a share of their size."""
        for axis in (0, 1):
            index = self._pooled(axis, self.growth[step.inputs[0]], self.growth[step.output])
            x = self._node("Gather", [x, index], axis=self._sides_from + axis)
            x = self._largest(x, self._sides_from + axis + 1)
        return x

    def resize_nearest(self, step: Step, x: str) -> str:
        for axis in (0, 1):
            index = self._nearest(axis, self.growth[step.inputs[0]], self.growth[step.output])
            x = self._node("Gather", [x, index], axis=self._sides_from + axis)
        return x

    @property
    def _sides_from(self) -> int:
        """The axis of the rows of maps; that of the columns follows."""
        return 1 if self.graph.channels_last else 2

    def mean(self, step: Step, x: str) -> str:
        return self._on_planes("GlobalAveragePool", [x])

    def to_tokens(self, step: Step, x: str) -> str:
        if not self.graph.channels_last:
            x = self._node("Transpose", [x], perm=[0, 2, 3, 1])  # (B, h, w, C)
        assert isinstance(step.op, ToTokens)
        places = self.places_of(step.op.growth)
        return self._node("Reshape", [x, self._shape([0], places, [-1])])  # (B, L, C)

    def to_map(self, step: Step, x: str) -> str:
        assert isinstance(step.op, ToMap)
        x = self._node("Reshape", [x, self._shape([0], *self.size(step.op.growth), [-1])])  # (B, h, w, C)
        if self.graph.channels_last:
            return x
        return self._node("Transpose", [x], perm=[0, 3, 1, 2])  # (B, C, h, w)

    def reorder(self, step: Step, x: str) -> str:
        op = step.op
        assert isinstance(op, Reorder)
        return self._node("Gather", [x, self._order(op.window, op.old, op.new)], axis=1)

    # --- codes ------------------------------------------------------------------------------------

    def _value(self, x: str, limits: Limits | None) -> str:
        return x if limits is None else self._dequantize(x, limits)

    def _dequantize(self, codes: str, limits: Limits) -> str:
        return self._node("DequantizeLinear", [codes, self.graph.scalar(1), self.graph.zero(limits)])


OnnxOps.methods = {
    FirstConv: OnnxOps.first_conv,
    Normalize: OnnxOps.normalize,
    Quantize: OnnxOps.quantize,
    Requantize: OnnxOps.requantize,
    FoldedConv: OnnxOps.conv,
    FoldedLinear: OnnxOps.linear,
    Norm: OnnxOps.norm,
    GroupNorm: OnnxOps.group_norm,
    Attention: OnnxOps.attention,
    RectangleAttention: OnnxOps.rectangle_attention,
    ChannelAttention: OnnxOps.channel_attention,
    GlobalAttention: OnnxOps.global_attention,
    Activation: OnnxOps.activation,
    Scale: OnnxOps.scale,
    Offset: OnnxOps.offset,
    Affine: OnnxOps.affine,
    Binary: OnnxOps.binary,
    Concat: OnnxOps.concat,
    Slice: OnnxOps.slice,
    PixelShuffle: OnnxOps.pixel_shuffle,
    PixelUnshuffle: OnnxOps.pixel_unshuffle,
    UpsampleNearest: OnnxOps.upsample_nearest,
    UpsampleBilinear: OnnxOps.upsample_bilinear,
    MaxPool: OnnxOps.max_pool,
    ResizeNearest: OnnxOps.resize_nearest,
    Mean: OnnxOps.mean,
    Pixels: OnnxOps.pixels,
    ToTokens: OnnxOps.to_tokens,
    ToMap: OnnxOps.to_map,
    Reorder: OnnxOps.reorder,
}
