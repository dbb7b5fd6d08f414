"""The operations of `program` as an OpenVINO graph for one size of picture, laid out so that the
CPU plugin runs it fast.

As in `quantsr.deploy.openvino_graph`, every quantization is a FakeQuantize to a range of integers
and every weight an int8 constant times one multiplier per output, which the plugin makes 8-bit
products. Window attention is written as the plugin's fused attention kernel expects it (one loop
over windows and heads, no tensor of scores in memory). Tokens stay in the order of the windows of
the layer that reads them and move by one Gather between layers; indices and masks are constants of
the size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as op

from quantsr.deploy import openvino_graph as base
from quantsr.deploy import openvino_ops as ops
from quantsr.deploy.fold import FoldedConv
from quantsr.deploy.model import PackedModel
from quantsr.deploy.quantsr_t import layout, program
from quantsr.deploy.quantsr_t.fold import fold
from quantsr.deploy.quantsr_t.folded import (
    NORM_EPS,
    Attention,
    FoldedLinear,
    FoldedSwin,
    Norm,
    Quantize,
)

Node = Any


def build(
    model: PackedModel,
    depth: int,
    *,
    height: int,
    width: int,
    batch: int = 1,
    tail: str = "collapsed",
    float_io: bool = False,
    saturates: bool = False,
) -> ov.Model:
    """`openvino_graph.build` for QuantSR-T. Convs with 16-bit inputs run in float on every
    processor; there is one form of the tail, so `tail` changes nothing."""
    net = fold(model.with_wide_inputs_in_float(), depth)
    ops = OpenVinoOps(net, (batch, height, width), float_io=float_io, saturates=saturates)
    result = op.result(program.upscale(net, ops), name="upscaled")
    return ov.Model([result], [ops.image], f"quantsr_t_x{net.scale}_{len(net.blocks)}_blocks")


class OpenVinoOps:
    """`program.Ops` for a graph of pictures (batch, height, width, 3)."""

    def __init__(
        self, net: FoldedSwin, shape: tuple[int, int, int], *, float_io: bool, saturates: bool
    ) -> None:
        self.window, self.scale = net.window, net.scale
        self.batch, self.size = shape[0], shape[1:]
        self.rows = [layout.reflected(size, net.window) for size in self.size]
        self.grid = (len(self.rows[0]), len(self.rows[1]))
        self.float_io = float_io
        self.overflowing = overflowing(net) if saturates else set()
        self.image = op.parameter([*shape, 3], np.float32 if float_io else np.uint8, name="image")
        self.known: dict[Any, Node] = {}

    # --- the network's operations -----------------------------------------------------------------

    def head(self, net: FoldedSwin) -> Node:
        x = self.image
        for axis, rows in enumerate(self.rows):
            if len(rows) != self.size[axis]:
                x = op.gather(x, ops.ints(*rows), ops.ints(axis + 1))
        x = x if self.float_io else ops.apart(op.convert(x, "f32"))
        x = op.transpose(x, ops.ints(0, 3, 1, 2))  # (B, 3, H, W)
        return base._head(x, net, round_input=not self.float_io)

    def conv(self, conv: FoldedConv, x: Node) -> Node:
        return ops.biased(ops.multiplied_sums(x, conv), conv)

    def linear(self, linear: FoldedLinear, x: Node) -> Node:
        weight = ops.floats(linear.weight)
        if linear.weight.dtype == np.int8:
            weight = op.convert(op.constant(linear.weight), "f32")
        weight = op.multiply(weight, ops.floats(linear.multiplier.reshape(-1, 1)))
        y = op.matmul(x, weight, False, True)
        y = op.add(y, ops.floats(linear.bias))
        if linear.codes_out is None:
            return y
        return self._codes(f"{linear.name}.codes", y, linear.codes_out)

    def norm(self, norm: Norm, x: Node) -> Node:
        y = op.mvn(x, ops.ints(-1), True, NORM_EPS, "inside_sqrt")
        y = op.add(op.multiply(y, ops.floats(norm.weight)), ops.floats(norm.bias))
        return y if norm.limits is None else self._codes(norm.name, y, norm.limits)

    def quantize(self, quantize: Quantize, x: Node, *, channels_last: bool) -> Node:
        if not channels_last:
            multiplier, shift = ops.column(quantize.multiplier), ops.column(quantize.shift)
            return self._codes(quantize.name, x, quantize.limits, multiplier, shift)
        # Without its own kernels for it (below AVX2), the plugin refuses a FakeQuantize with one
        # range per last channel.
        x = op.add(op.multiply(x, ops.floats(quantize.multiplier)), ops.floats(quantize.shift))
        return self._codes(quantize.name, x, quantize.limits)

    def attend(self, attention: Attention, q: Node, k: Node, v: Node, shift: int) -> Node:
        heads, tokens = attention.heads, self.window**2
        channels = len(attention.q.bias)
        split = ops.ints(-1, tokens, heads, channels // heads)

        def part(x: Node, *axes: int) -> Node:
            """(B, L, C) as (B * G, N, h, d), its axes then in that order."""
            return op.transpose(op.reshape(x, split, False), ops.ints(*axes))

        # (B * G, h, N, N)
        scores = op.matmul(part(q, 0, 2, 1, 3), part(k, 0, 2, 3, 1), False, False)
        if attention.score_multiplier != 1:
            scores = op.multiply(scores, ops.floats(attention.score_multiplier))
        scores = op.add(scores, ops.floats(attention.bias[None]))
        if shift:
            scores = op.add(scores, self._mask(shift))
        weights = op.softmax(scores, -1)
        if attention.probabilities is not None:
            weights = self.quantize(attention.probabilities, weights, channels_last=True)
        mixed = op.matmul(weights, part(v, 0, 2, 1, 3), False, False)  # (B * G, h, N, d)
        places = self.grid[0] * self.grid[1]
        mixed = op.transpose(mixed, ops.ints(0, 2, 1, 3))  # (B * G, N, h, d)
        mixed = op.reshape(mixed, ops.ints(self.batch, places, channels), False)  # (B, L, C)
        if isinstance(attention.mix, Quantize):
            return self.quantize(attention.mix, mixed, channels_last=True)
        return mixed if attention.mix == 1 else self.multiply(mixed, attention.mix)

    def reorder(self, x: Node, old: program.Order, new: program.Order) -> Node:
        if old == new:
            return x
        if ("order", old, new) not in self.known:
            index = layout.order_index(self.grid, self.window, old, new).astype(np.int32)
            self.known["order", old, new] = op.constant(index)
        return op.gather(x, self.known["order", old, new], ops.ints(1))

    def gelu(self, x: Node) -> Node:
        return op.gelu(x, "erf")

    def leaky_relu(self, x: Node, slope: float) -> Node:
        return op.prelu(x, ops.floats([slope]))

    def shuffle(self, x: Node, factor: int) -> Node:
        return op.depth_to_space(x, "depth_first", factor)

    def add(self, a: Node, b: Node) -> Node:
        return op.add(a, b)

    def multiply(self, x: Node, factor: np.float32) -> Node:
        return op.multiply(x, ops.floats(factor))

    def tokens(self, x: Node) -> Node:
        x = op.transpose(x, ops.ints(0, 2, 3, 1))  # (B, H, W, C)
        return op.reshape(x, ops.ints(0, self.grid[0] * self.grid[1], -1), True)  # (B, L, C)

    def map(self, x: Node) -> Node:
        x = op.reshape(x, ops.ints(0, *self.grid, -1), True)  # (B, H, W, C)
        return op.transpose(x, ops.ints(0, 3, 1, 2))  # (B, C, H, W)

    def finish(self, x: Node, shuffle: int) -> Node:
        x = base._pixels(x, self.float_io)
        x = x if shuffle == 1 else self.shuffle(x, shuffle)
        x = op.transpose(x, ops.ints(0, 2, 3, 1))  # (B, H*s, W*s, 3)
        for axis, size in enumerate(self.size):
            if size != self.grid[axis]:
                stop = ops.ints(size * self.scale)
                x = op.slice(x, ops.ints(0), stop, ops.ints(1), ops.ints(axis + 1))
        return x

    # --- codes and constants ----------------------------------------------------------------------

    def _codes(
        self, name: str, x: Node, limits: tuple[int, int], multiplier: Any = 1.0, shift: Any = 0.0
    ) -> Node:
        """clip(rint(x * multiplier + shift), *limits), in a form that makes what reads it 8-bit
        products, unless those could overflow."""
        if name not in self.overflowing:
            return ops.fake_quantize(x, limits, name, shift, multiplier)
        y = op.add(op.multiply(x, ops.floats(multiplier)), ops.floats(shift))
        return op.clamp(op.round(y, "half_to_even"), *map(float, limits), name=name)

    def _mask(self, shift: int) -> Node:
        if ("mask", shift) not in self.known:
            mask = np.tile(layout.mask(self.grid, self.window, shift), (self.batch, 1, 1, 1))
            self.known["mask", shift] = ops.floats(mask)
        return self.known["mask", shift]


def overflowing(net: FoldedSwin) -> set[str]:
    """Names of the codes of which two products, added in 16 bits, could exceed them."""
    names: set[str] = set()

    def check(name: str, limits: tuple[int, int] | None, largest: int) -> None:
        if limits is not None and 2 * (limits[1] - limits[0]) * largest > ops.PAIR_LIMIT:
            names.add(name)

    def weight(layer: FoldedConv) -> int:
        return int(np.abs(layer.weight.astype(np.int64)).max(initial=0)) if layer.integer else 0

    for block in net.blocks:
        for layer in block.layers:
            a = layer.attention
            check(layer.norm1.name, layer.norm1.limits, max(weight(part) for part in (a.q, a.k, a.v)))
            check(layer.norm2.name, layer.norm2.limits, weight(layer.fc1))
            for quantize, reader in ((a.mix, a.proj), (layer.gelu, layer.fc2)):
                if isinstance(quantize, Quantize):
                    check(quantize.name, quantize.limits, weight(reader))
            if a.probabilities is not None:
                pairs = ((a.q, a.k.codes_out), (a.k, a.q.codes_out), (a.v, a.probabilities.limits))
                for linear, other in pairs:
                    assert other is not None
                    check(f"{linear.name}.codes", linear.codes_out, max(map(abs, other)))
                assert a.v.codes_out is not None
                check(a.probabilities.name, a.probabilities.limits, max(map(abs, a.v.codes_out)))
    check(net.norm.name, net.norm.limits, weight(net.closing[0].conv))
    for stage in [*(s for block in net.blocks for s in block.closing), *net.closing, *net.tail]:
        if stage.quantize is not None:
            check(stage.quantize.name, stage.quantize.limits, weight(stage.conv))
    return names
