"""The operations of folded programs as layers of ncnn, for pictures of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quantsr.deploy.engines import ncnn_graph
from quantsr.deploy.engines.ncnn_graph import Graph, Values, floats
from quantsr.deploy.engines.ncnn_layers import Layers
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
    Requantize,
    Scale,
    Slice,
    Step,
    UpsampleBilinear,
    UpsampleNearest,
)
from quantsr.deploy.passes.tail import Tail
from quantsr.errors import InputError

_BINARY = {"add": ncnn_graph.ADD, "subtract": ncnn_graph.SUBTRACT, "multiply": ncnn_graph.MULTIPLY}
_ACTIVATIONS = {"gelu": "GELU", "sigmoid": "Sigmoid", "silu": "Swish", "mish": "Mish", "tanh": "TanH"}
_CHANNELS_LAST, _CHANNELS_FIRST = 3, 4  # orders of Permute: (C, H, W) to (H, W, C), and back
_NEAREST, _BILINEAR = 1, 2  # of Interp
_MEAN = 3  # of Reduction


class NcnnOps(Layers):
    """The operations in a graph."""

    def __init__(self, graph: Graph, program: FoldedProgram, *, white: float = 1.0) -> None:
        """`white` is what pixels of 255 are in the result."""
        super().__init__(graph, program, white=white)
        self.factors: dict[int, float] = {}  # of values that wait for the sum that reads them
        self.small: set[int] = set()  # values (C, 1, 1)

    def run(self, tail: Tail | None = None) -> str:
        """All steps, `tail` as one convolution; returns the blob of the upscaled picture.

        Raises InputError for an operation that ncnn does not have.
        """
        for step in self.program.steps[: None if tail is None else tail.start]:
            self.step(step)
        if tail is not None:
            return self.collapsed(self.blobs[tail.value], tail)
        return self.blobs[self.program.steps[-1].output]

    def step(self, step: Step) -> None:
        """One step, its inputs known."""
        if isinstance(step.op, Attention | RectangleAttention):
            kind = "window_attention" if isinstance(step.op, Attention) else "rectangle_attention"
            raise InputError(
                "ncnn: has no layer that takes windows, and their mask, from pictures of any size, as "
                f"{kind} needs; use another engine or format"
            )
        if isinstance(step.op, ChannelAttention):
            raise InputError(
                "ncnn: has no layer that attends to channels, as channel_attention does; use another engine "
                "or format"
            )
        if isinstance(step.op, GlobalAttention):
            raise InputError(
                "ncnn: has no layer that attends to maps of any size, as global_attention does; use another "
                "engine or format"
            )
        if isinstance(step.op, MaxPool | PixelUnshuffle):
            kind = "max_pool" if isinstance(step.op, MaxPool) else "pixel_unshuffle"
            raise InputError(
                f"ncnn: has no layer that shrinks maps by a factor at any size of picture, as {kind} does; "
                "use another engine or format"
            )
        if isinstance(step.op, Mean) or self.small.issuperset(step.inputs):
            self.small.add(step.output)
        if step.output not in self.done:
            _METHODS[type(step.op)](self, step)

    # --- element by element -----------------------------------------------------------------------

    def activation(self, step: Step) -> None:
        op, x = step.op, self.blobs[step.inputs[0]]
        assert isinstance(op, Activation)
        if op.slope is not None and op.slope.size > 1:
            y = self.graph.layer("PReLU", [x], {0: op.slope.size}, floats(op.slope))
        elif op.slope is not None or op.kind == "relu":
            y = self.graph.layer("ReLU", [x], {0: 0.0 if op.slope is None else float(op.slope.reshape(()))})
        else:
            y = self.graph.layer(_ACTIVATIONS[op.kind], [x])
        self.blobs[step.output] = y

    def scale(self, step: Step) -> None:
        """A factor goes into the sum that alone reads it, where no code depends on that."""
        op, x = step.op, self.blobs[step.inputs[0]]
        assert isinstance(op, Scale)
        reader = self.only_reader(step.output)
        if (
            reader is not None
            and isinstance(reader.op, Binary)
            and reader.op.kind == "add"
            and step.output not in self.exact
            and not self.small.intersection(reader.inputs)
        ):
            self.blobs[step.output], self.factors[step.output] = x, float(op.factor)
        else:
            self.blobs[step.output] = self.graph.with_constant(ncnn_graph.MULTIPLY, x, op.factor)

    def binary(self, step: Step) -> None:
        assert isinstance(step.op, Binary)
        a, b = (self.blobs[value] for value in step.inputs)
        if self.factors.keys() & set(step.inputs):
            factors = [self.factors.get(value, 1.0) for value in step.inputs]
            self.blobs[step.output] = self.graph.weighted_sum([a, b], factors)
        else:
            self.blobs[step.output] = self.graph.binary(_BINARY[step.op.kind], a, b)

    def offset(self, step: Step) -> None:
        assert isinstance(step.op, Offset)
        x = self.blobs[step.inputs[0]]
        self.blobs[step.output] = self.graph.with_constant(ncnn_graph.ADD, x, step.op.values)

    def affine(self, step: Step) -> None:
        op = step.op
        assert isinstance(op, Affine)
        x = self.graph.with_constant(ncnn_graph.MULTIPLY, self.blobs[step.inputs[0]], op.weight)
        self.blobs[step.output] = self.graph.with_constant(ncnn_graph.ADD, x, op.bias)

    def pixels(self, step: Step) -> None:
        """The picture, neither rounded nor limited."""
        x = self.blobs[step.inputs[0]]
        if self.unit != 1:
            x = self.graph.with_constant(ncnn_graph.MULTIPLY, x, self.unit)
        self.blobs[step.output] = x

    def norm(self, step: Step) -> None:
        """LayerNorm over channels, which ncnn computes along the last axis."""
        op = step.op
        assert isinstance(op, Norm)
        x = self.graph.layer("Permute", [self.blobs[step.inputs[0]]], {0: _CHANNELS_LAST})
        weights = floats(op.weight) + floats(op.bias)
        y = self.graph.layer("LayerNorm", [x], {0: op.weight.size, 1: op.eps, 2: 1}, weights, op.name)
        y = self.graph.layer("Permute", [y], {0: _CHANNELS_FIRST})
        self.blobs[step.output] = y if op.limits is None else self.rounded(y, op.limits)

    def group_norm(self, step: Step) -> None:
        """GroupNorm of a map."""
        op = step.op
        assert isinstance(op, GroupNorm)
        values: Values = {0: op.groups, 1: op.weight.size, 2: op.eps, 3: 1}
        x, weights = self.blobs[step.inputs[0]], floats(op.weight) + floats(op.bias)
        self.blobs[step.output] = self.graph.layer("GroupNorm", [x], values, weights, op.name)

    # --- shapes -----------------------------------------------------------------------------------

    def concat(self, step: Step) -> None:
        self.simple(step, "Concat", {0: 0})

    def slice(self, step: Step) -> None:
        assert isinstance(step.op, Slice)
        self.simple(step, "Crop", {9: [step.op.start], 10: [step.op.stop], 11: [0]})

    def pixel_shuffle(self, step: Step) -> None:
        assert isinstance(step.op, PixelShuffle)
        self.simple(step, "PixelShuffle", {0: step.op.factor})

    def upsample_nearest(self, step: Step) -> None:
        assert isinstance(step.op, UpsampleNearest)
        self.resized(step, step.op.factor, _NEAREST)

    def upsample_bilinear(self, step: Step) -> None:
        assert isinstance(step.op, UpsampleBilinear)
        self.resized(step, step.op.factor, _BILINEAR)

    def resized(self, step: Step, factor: int, how: int) -> None:
        """`factor` times as high and wide."""
        self.simple(step, "Interp", {0: how, 1: float(factor), 2: float(factor)})

    def mean(self, step: Step) -> None:
        self.simple(step, "Reduction", {0: _MEAN, 1: 0, 3: [1, 2], 4: 1, 5: 1})

    def simple(self, step: Step, kind: str, values: Values) -> None:
        """One layer without weights."""
        self.blobs[step.output] = self.graph.layer(kind, [self.blobs[value] for value in step.inputs], values)


_METHODS: Mapping[type, Callable[[NcnnOps, Step], None]] = {
    FirstConv: NcnnOps.first_conv,
    Normalize: NcnnOps.normalize,
    Quantize: NcnnOps.quantize,
    Requantize: NcnnOps.requantize,
    FoldedConv: NcnnOps.conv,
    FoldedLinear: NcnnOps.conv,
    Norm: NcnnOps.norm,
    GroupNorm: NcnnOps.group_norm,
    Activation: NcnnOps.activation,
    Scale: NcnnOps.scale,
    Offset: NcnnOps.offset,
    Affine: NcnnOps.affine,
    Binary: NcnnOps.binary,
    Concat: NcnnOps.concat,
    Slice: NcnnOps.slice,
    PixelShuffle: NcnnOps.pixel_shuffle,
    UpsampleNearest: NcnnOps.upsample_nearest,
    UpsampleBilinear: NcnnOps.upsample_bilinear,
    Mean: NcnnOps.mean,
    Pixels: NcnnOps.pixels,
}
