"""The operations of folded programs as an OpenVINO graph for one size of picture, laid out so that
the CPU plugin runs it as 8-bit products. Imports no torch.

It has the integer reference's arithmetic: every quantization is a FakeQuantize from a range of
integers to itself, and every weight an int8 constant times one multiplier per output. The plugin's
low-precision passes make each pair an integer convolution, with the bias, the ReLU and, where
nothing else reads the result, the next quantization fused into it; a unit's skip times its
shortcut, its addition and the next quantization become one pass over the float32 stream.

Window attention is written as the plugin's fused attention kernel expects it (one loop over windows
and heads, no tensor of scores in memory). Indices and masks are constants of the size.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import openvino.opset13 as op

from quantsr.deploy import windows
from quantsr.deploy.engines import openvino_ops as ops
from quantsr.deploy.engines import openvino_tail
from quantsr.deploy.engines.openvino_first import first_conv, normalized
from quantsr.deploy.engines.openvino_map_attention import MapAttention
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
    is_wide,
    side,
)
from quantsr.deploy.passes import collapse
from quantsr.deploy.passes.integer_scales import PAIR_LIMIT
from quantsr.deploy.passes.tail import linear_tail

Node = Any

_COARSE = 2**7  # codes


class OpenVinoOps(MapAttention):
    """The operations in a graph of pictures (batch, height, width, 3)."""

    def __init__(
        self,
        program: FoldedProgram,
        shape: tuple[int, int, int],
        *,
        tail: str,
        float_io: bool,
        saturates: bool,
    ) -> None:
        """Arguments as `openvino_model.build`."""
        self.program, self.float_io, self.saturates = program, float_io, saturates
        self.readers = program.readers()
        self.producer = {step.output: step.op for step in program.steps}
        self.batch, self.size = shape[0], shape[1:]
        self.rows = [windows.reflected(size, program.multiple) for size in self.size]
        self.grid = (len(self.rows[0]), len(self.rows[1]))
        self.image = op.parameter([*shape, 3], np.float32 if float_io else np.uint8, name="image")
        self.known: dict[Any, Node] = {}
        self.tail = (
            linear_tail(program) if tail == "collapsed" and min(self.size) >= collapse.MIN_SIZE else None
        )
        if self.tail is not None and (len(self.tail.stages) < 2 or program.multiple > 1):
            self.tail = None
        # From 7 bits on, codes next to an edge may differ anyway (see `constants.staircase_bias`).
        limits = [step.op.limits for step in program.steps if isinstance(step.op, Quantize)]
        self.coarse = all(is_wide(one) or one[1] - one[0] < _COARSE for one in limits)

    def result(self) -> Node:
        """The upscaled picture (batch, height * s, width * s, 3)."""
        nodes = {0: self.pixels_in()}
        end = len(self.program.steps) if self.tail is None else self.tail.start
        for step in self.program.steps[:end]:
            run_op: Callable[..., Node] = _METHODS[type(step.op)]
            nodes[step.output] = run_op(self, step.op, step, *(nodes[value] for value in step.inputs))
        if self.tail is None:
            return self.pixels_out(nodes[self.program.steps[-1].output])
        cells = openvino_tail.collapsed(nodes[self.tail.value], self.tail, as_floats=self.saturates)
        grid = op.concat([op.concat([self._rounded(cell) for cell in row], 3) for row in cells], 2)
        return openvino_tail.phases_to_space(grid, self.batch, *self.size, self.program.scale)

    # --- the picture ------------------------------------------------------------------------------

    def pixels_in(self) -> Node:
        """(B, 3, H, W), continued by reflection where the program says so."""
        x = self.image
        for axis, rows in enumerate(self.rows):
            if len(rows) != self.size[axis]:
                x = op.gather(x, ops.ints(*rows), ops.ints(axis + 1))
        # Apart, or the first steps pass for dequantization.
        x = x if self.float_io else ops.apart(op.convert(x, "f32"))
        return op.transpose(x, ops.ints(0, 3, 1, 2))

    def pixels_out(self, x: Node) -> Node:
        """(B, h * s, w * s, 3)"""
        x = op.transpose(x, ops.ints(0, 2, 3, 1))  # (B, H*s, W*s, 3)
        for axis, size in enumerate(self.size):
            if size != self.grid[axis]:
                stop = ops.ints(size * self.program.scale)
                x = op.slice(x, ops.ints(0), stop, ops.ints(1), ops.ints(axis + 1))
        return x

    def first_conv(self, what: FirstConv, step: Step, x: Node) -> Node:
        return first_conv(x, what, round_input=not self.float_io, exact=self.coarse)

    def normalize(self, what: Normalize, step: Step, x: Node) -> Node:
        return normalized(x, what)

    def pixels(self, what: Pixels, step: Step, x: Node) -> Node:
        return self._rounded(x)

    def _rounded(self, x: Node) -> Node:
        """Pixel values, limited to 0..255 and, unless `float_io`, rounded to uint8."""
        if self.float_io:
            return op.clamp(x, 0, 255)
        return op.convert(ops.fake_quantize(x, (0, 255), "pixels"), "u8")

    # --- layers -----------------------------------------------------------------------------------

    def conv(self, what: FoldedConv, step: Step, x: Node) -> Node:
        conv = what
        as_floats = self.saturates or conv.groups > 1
        y = ops.multiplied_sums_of_codes(x, conv, as_floats=as_floats)
        if conv.codes_out is None:
            return ops.biased(y, conv)
        as_floats = self.overflows(conv.codes_out, step.output)
        if conv.relu_at is None:
            # Rounded apart: the plugin takes a FakeQuantize directly behind for something else.
            y = op.round(ops.biased(y, conv), "half_to_even")
            return ops.codes(conv.codes_name, y, conv.codes_out, as_floats=as_floats)
        # ReLU before the shift by tau, so that it fuses: equal to the reference's per-channel lower
        # limit on the codes.
        shift = ops.column(conv.relu_at)
        y = op.relu(ops.biased(y, conv, -shift))
        return ops.codes(conv.codes_name, y, conv.codes_out, shift, as_floats=as_floats)

    def linear(self, what: FoldedLinear, step: Step, x: Node) -> Node:
        linear = what
        if step.inputs[0] not in self.program.tokens:
            return self.conv(linear.as_conv(), step, x)
        weight = ops.floats(linear.weight)
        if linear.weight.dtype == np.int8:
            weight = op.convert(op.constant(linear.weight), "f32")
        weight = op.multiply(weight, ops.floats(linear.multiplier.reshape(-1, 1)))
        y = op.add(op.matmul(x, weight, False, True), ops.floats(linear.bias))
        if linear.relu_at is not None:
            shift = ops.floats(linear.relu_at)
            y = op.add(op.relu(op.subtract(y, shift)), shift)
        if linear.codes_out is None:
            return y
        as_floats = self.overflows(linear.codes_out, step.output)
        return ops.codes(linear.codes_name, y, linear.codes_out, as_floats=as_floats)

    def norm(self, what: Norm, step: Step, x: Node) -> Node:
        norm = what
        y = op.mvn(x, ops.ints(-1), True, norm.eps, "inside_sqrt")
        y = op.add(op.multiply(y, ops.floats(norm.weight)), ops.floats(norm.bias))
        if norm.limits is None:
            return y
        return ops.codes(norm.name, y, norm.limits, as_floats=self.overflows(norm.limits, step.output))

    def group_norm(self, what: GroupNorm, step: Step, x: Node) -> Node:
        weight, bias = ops.floats(what.weight), ops.floats(what.bias)
        return op.group_normalization(x, weight, bias, what.groups, what.eps)

    def quantize(self, what: Quantize, step: Step, x: Node) -> Node:
        quantize, as_floats = what, self.overflows(what.limits, step.output)
        # FakeQuantize adds the lower limit before it rounds, which rounds too.
        y = op.round(ops.input_units(x, quantize), "half_to_even")
        return ops.codes(quantize.name, y, quantize.limits, as_floats=as_floats)

    def requantize(self, what: Requantize, step: Step, x: Node) -> Node:
        on_tokens = step.inputs[0] in self.program.tokens
        return self._requantized(
            what, x, on_tokens=on_tokens, as_floats=self.overflows(what.limits, step.output)
        )

    def _requantized(self, quantize: Requantize, x: Node, *, on_tokens: bool, as_floats: bool) -> Node:
        if not on_tokens and not as_floats and not is_wide(quantize.limits):
            multiplier, shift = ops.column(quantize.multiplier), ops.column(quantize.shift)
            return ops.fake_quantize(x, quantize.limits, quantize.name, shift, multiplier)
        # Without its own kernels for it (below AVX2), the plugin refuses a FakeQuantize with one
        # range per last channel.
        shaped = np.asarray if on_tokens else ops.column
        x = op.multiply(x, ops.floats(shaped(quantize.multiplier)))
        x = op.add(x, ops.floats(shaped(quantize.shift)))
        return ops.codes(quantize.name, x, quantize.limits, as_floats=as_floats)

    def attention(self, what: Attention, step: Step, q: Node, k: Node, v: Node) -> Node:
        attention = what
        if attention.overlap:
            k, v = (self._overlapping(attention, x) for x in (k, v))

        def part(x: Node, *axes: int) -> Node:
            """(B, L, C) as (B * G, N, h, d), its axes then in that order."""
            tokens = attention.window**2 if x is q else attention.bias.shape[2]
            split = ops.ints(-1, tokens, attention.heads, self.channels_of(step) // attention.heads)
            return op.transpose(op.reshape(x, split, False), ops.ints(*axes))

        # (B * G, h, N, N)
        scores = op.matmul(part(q, 0, 2, 1, 3), part(k, 0, 2, 3, 1), False, False)
        if attention.score_multiplier != 1:
            scores = op.multiply(scores, ops.floats(attention.score_multiplier))
        scores = op.add(scores, ops.floats(attention.bias[None]))
        if attention.shift:
            scores = op.add(scores, self._mask(attention.window, attention.shift))
        weights = op.softmax(scores, -1)
        if attention.probabilities is not None:
            largest = max(map(abs, attention.operands[2] or (0,)))
            as_floats = self._exceeds(attention.probabilities.limits, largest)
            weights = self._requantized(attention.probabilities, weights, on_tokens=True, as_floats=as_floats)
        mixed = op.matmul(weights, part(v, 0, 2, 1, 3), False, False)  # (B * G, h, N, d)
        places = self.grid[0] * self.grid[1]
        mixed = op.transpose(mixed, ops.ints(0, 2, 1, 3))  # (B * G, N, h, d)
        # (B, L, C)
        mixed = op.reshape(mixed, ops.ints(self.batch, places, self.channels_of(step)), False)
        if isinstance(attention.mix, Requantize):
            as_floats = self.overflows(attention.mix.limits, step.output)
            return self._requantized(attention.mix, mixed, on_tokens=True, as_floats=as_floats)
        return mixed if attention.mix == 1 else op.multiply(mixed, ops.floats(attention.mix))

    def channels_of(self, attention: Step) -> int:
        """Of what attention gives."""
        q = self.producer[attention.inputs[0]]
        assert isinstance(q, FoldedConv)
        return len(q.bias)

    def _overlapping(self, attention: Attention, x: Node) -> Node:
        """(B, L, C) as (B, G * M, C): the tokens of larger windows, 0 beyond the map."""
        index = windows.overlapping_tokens(self.grid, attention.window, attention.overlap).reshape(-1)
        x = op.pad(x, ops.ints(0, 0, 0), ops.ints(0, 1, 0), "constant", ops.floats(np.float32(0)))
        return op.gather(x, op.constant(index.astype(np.int32)), ops.ints(1))

    def _mask(self, window: int, shift: int) -> Node:
        if ("mask", window, shift) not in self.known:
            mask = np.tile(windows.mask(self.grid, window, shift), (self.batch, 1, 1, 1))
            self.known["mask", window, shift] = ops.floats(mask)
        return self.known["mask", window, shift]

    # --- codes ------------------------------------------------------------------------------------

    def overflows(self, limits: Limits, value: int) -> bool:
        """Whether the codes `value` are to be floats: two products of them, added in 16 bits, could
        exceed those on this processor, or a convolution with groups reads them."""
        readers = self.code_readers(value)
        if any(isinstance(reader.op, FoldedConv) and reader.op.groups > 1 for reader in readers):
            return True
        return self.saturates and any(
            self._exceeds(limits, self._largest_factor(reader, value)) for reader in readers
        )

    def _exceeds(self, limits: Limits, largest: int) -> bool:
        return self.saturates and 2 * (limits[1] - limits[0]) * largest > PAIR_LIMIT

    def code_readers(self, value: int) -> list[Step]:
        """What multiplies codes, those that are moved first too."""
        found, values = [], [value]
        while values:
            for reader in self.readers[values.pop()]:
                if isinstance(reader.op, Reorder | ToMap | ToTokens | PixelShuffle):
                    values.append(reader.output)
                else:
                    found.append(reader)
        return found

    def _largest_factor(self, reader: Step, value: int) -> int:
        """What the codes are multiplied with, at most."""
        if isinstance(reader.op, FoldedConv):
            weight = reader.op.weight
            return int(np.abs(weight.astype(np.int64)).max(initial=0)) if weight.dtype == np.int8 else 0
        if isinstance(reader.op, Attention) and reader.op.probabilities is not None:
            q, k, _ = reader.op.operands
            other = (k, q, reader.op.probabilities.limits)[reader.inputs.index(value)]
            return max(map(abs, other or (0,)))
        return 0

    # --- element by element -----------------------------------------------------------------------

    def activation(self, what: Activation, step: Step, x: Node) -> Node:
        kind, slope = what.kind, what.slope
        if kind == "gelu":
            return op.gelu(x, "erf")
        if slope is not None:
            on_tokens = step.inputs[0] in self.program.tokens
            return op.prelu(x, ops.floats(slope.reshape(-1) if not on_tokens or slope.size == 1 else slope))
        simple = {"relu": op.relu, "sigmoid": op.sigmoid, "silu": op.swish, "mish": op.mish, "tanh": op.tanh}
        return simple[kind](x)

    def scale(self, what: Scale, step: Step, x: Node) -> Node:
        y = op.multiply(x, ops.floats(what.factor))
        return ops.apart(y) if what.exact else y

    def offset(self, what: Offset, step: Step, x: Node) -> Node:
        on_tokens = step.inputs[0] in self.program.tokens
        return op.add(x, ops.floats(what.values if on_tokens else ops.column(what.values)))

    def affine(self, what: Affine, step: Step, x: Node) -> Node:
        shaped = np.asarray if step.inputs[0] in self.program.tokens else ops.column
        return op.add(op.multiply(x, ops.floats(shaped(what.weight))), ops.floats(shaped(what.bias)))

    def binary(self, what: Binary, step: Step, a: Node, b: Node) -> Node:
        return {"add": op.add, "subtract": op.subtract, "multiply": op.multiply}[what.kind](a, b)

    # --- shapes -----------------------------------------------------------------------------------

    def concat(self, what: Concat, step: Step, *inputs: Node) -> Node:
        return op.concat(list(inputs), 2 if step.inputs[0] in self.program.tokens else 1)

    def slice(self, what: Slice, step: Step, x: Node) -> Node:
        axis = 2 if step.inputs[0] in self.program.tokens else 1
        return op.slice(x, ops.ints(what.start), ops.ints(what.stop), ops.ints(1), ops.ints(axis))

    def pixel_shuffle(self, what: PixelShuffle, step: Step, x: Node) -> Node:
        return op.depth_to_space(x, "depth_first", what.factor)

    def pixel_unshuffle(self, what: PixelUnshuffle, step: Step, x: Node) -> Node:
        return op.space_to_depth(x, "depth_first", what.factor)

    def upsample_nearest(self, what: UpsampleNearest, step: Step, x: Node) -> Node:
        sizes = ops.ints(*(n * what.factor for n in list(x.output(0).shape)[2:]))
        how: dict[str, Any] = {"mode": "nearest", "shape_calculation_mode": "sizes", "nearest_mode": "floor"}
        how["coordinate_transformation_mode"] = "asymmetric"
        return op.interpolate(x, sizes, axes=ops.ints(2, 3), **how)

    def upsample_bilinear(self, what: UpsampleBilinear, step: Step, x: Node) -> Node:
        sizes = ops.ints(*(n * what.factor for n in list(x.output(0).shape)[2:]))
        how: dict[str, Any] = {"mode": "linear_onnx", "shape_calculation_mode": "sizes"}
        how["coordinate_transformation_mode"] = "half_pixel"
        return op.interpolate(x, sizes, axes=ops.ints(2, 3), **how)

    def max_pool(self, what: MaxPool, step: Step, x: Node) -> Node:
        sides = [side(n, Fraction(1, what.factor)) for n in list(x.output(0).shape)[2:]]
        return op.adaptive_max_pool(x, ops.ints(*sides), "i32").output(0)

    def resize_nearest(self, what: ResizeNearest, step: Step, x: Node) -> Node:
        for axis, (size, old) in enumerate(zip(self.grid, list(x.output(0).shape)[2:], strict=True), 2):
            rows = np.arange(size * what.factor) * old // (size * what.factor)
            x = op.gather(x, ops.ints(*rows), ops.ints(axis))
        return x

    def mean(self, what: Mean, step: Step, x: Node) -> Node:
        return op.reduce_mean(x, ops.ints(2, 3), True)

    def to_tokens(self, what: ToTokens, step: Step, x: Node) -> Node:
        x = op.transpose(x, ops.ints(0, 2, 3, 1))  # (B, h, w, C)
        height, width = self.sides(what.growth)
        return op.reshape(x, ops.ints(0, height * width, -1), True)  # (B, L, C)

    def to_map(self, what: ToMap, step: Step, x: Node) -> Node:
        x = op.reshape(x, ops.ints(0, *self.sides(what.growth), -1), True)  # (B, h, w, C)
        return op.transpose(x, ops.ints(0, 3, 1, 2))  # (B, C, h, w)

    def sides(self, growth: Fraction) -> tuple[int, int]:
        """Height and width of maps `growth` times as large as the padded picture."""
        return side(self.grid[0], growth), side(self.grid[1], growth)

    def reorder(self, what: Reorder, step: Step, x: Node) -> Node:
        key = ("order", what.window, what.old, what.new)
        if key not in self.known:
            index = windows.order_index(self.grid, what.window, what.old, what.new).astype(np.int32)
            self.known[key] = op.constant(index)
        return op.gather(x, self.known[key], ops.ints(1))


_METHODS: dict[type, Callable[..., Node]] = {
    FirstConv: OpenVinoOps.first_conv,
    Normalize: OpenVinoOps.normalize,
    Quantize: OpenVinoOps.quantize,
    Requantize: OpenVinoOps.requantize,
    FoldedConv: OpenVinoOps.conv,
    FoldedLinear: OpenVinoOps.linear,
    Norm: OpenVinoOps.norm,
    GroupNorm: OpenVinoOps.group_norm,
    Attention: OpenVinoOps.attention,
    RectangleAttention: OpenVinoOps.rectangle_attention,
    ChannelAttention: OpenVinoOps.channel_attention,
    GlobalAttention: OpenVinoOps.global_attention,
    Activation: OpenVinoOps.activation,
    Scale: OpenVinoOps.scale,
    Offset: OpenVinoOps.offset,
    Affine: OpenVinoOps.affine,
    Binary: OpenVinoOps.binary,
    Concat: OpenVinoOps.concat,
    Slice: OpenVinoOps.slice,
    PixelShuffle: OpenVinoOps.pixel_shuffle,
    PixelUnshuffle: OpenVinoOps.pixel_unshuffle,
    UpsampleNearest: OpenVinoOps.upsample_nearest,
    UpsampleBilinear: OpenVinoOps.upsample_bilinear,
    MaxPool: OpenVinoOps.max_pool,
    ResizeNearest: OpenVinoOps.resize_nearest,
    Mean: OpenVinoOps.mean,
    Pixels: OpenVinoOps.pixels,
    ToTokens: OpenVinoOps.to_tokens,
    ToMap: OpenVinoOps.to_map,
    Reorder: OpenVinoOps.reorder,
}
