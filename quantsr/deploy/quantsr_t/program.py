"""QuantSR-T written once, over the operations that each engine provides: PyTorch's (reference),
ONNX's and OpenVINO's. Imports no torch.

Shapes: B pictures, C channels, H and W of the padded picture, L = H * W tokens, N tokens in a
window, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from quantsr.deploy.fold import FoldedConv
from quantsr.deploy.quantsr_t.folded import (
    Attention,
    ConvStage,
    FoldedLinear,
    FoldedSwin,
    FoldedSwinLayer,
    Norm,
    Quantize,
    Rstb,
)

Value = Any
"""A tensor or a node of a graph."""

Order = int | None
"""Of tokens: None row by row; s window by window (rows of windows, inside row by row), after a
cyclic shift by s up and to the left."""


class Ops(Protocol):
    """An engine's operations. Maps are (B, C, H, W), tokens (B, L, C)."""

    def head(self, net: FoldedSwin) -> Value:
        """The first conv's map of the input, padded by reflection to whole windows."""
        ...

    def conv(self, conv: FoldedConv, x: Value) -> Value:
        """A map to a map, in real units; x holds codes where the conv reads them."""
        ...

    def linear(self, linear: FoldedLinear, x: Value) -> Value:
        """Tokens to tokens: real units, or codes where the linear has `codes_out`."""
        ...

    def norm(self, norm: Norm, x: Value) -> Value:
        """LayerNorm of tokens, rounded to codes where the norm has limits."""
        ...

    def quantize(self, quantize: Quantize, x: Value, *, channels_last: bool) -> Value:
        """Codes of a map (channels second) or of tokens (channels last)."""
        ...

    def attend(self, attention: Attention, q: Value, k: Value, v: Value, shift: int) -> Value:
        """Window attention without its linear layers: tokens, window by window, to the input of
        `proj`."""
        ...

    def reorder(self, x: Value, old: Order, new: Order) -> Value:
        """Tokens in another order."""
        ...

    def gelu(self, x: Value) -> Value:
        """`x / 2 * (1 + erf(x / sqrt(2)))`, element by element."""
        ...

    def leaky_relu(self, x: Value, slope: float) -> Value:
        """`max(x, slope * x)`, element by element."""
        ...

    def shuffle(self, x: Value, factor: int) -> Value:
        """PixelShuffle of a map."""
        ...

    def add(self, a: Value, b: Value) -> Value:
        """Of two maps or tokens of the same shape."""
        ...

    def multiply(self, x: Value, factor: np.float32) -> Value:
        """Every element times `factor`."""
        ...

    def tokens(self, x: Value) -> Value:
        """A map as tokens, row by row."""
        ...

    def map(self, x: Value) -> Value:
        """Tokens, row by row, as a map."""
        ...

    def finish(self, x: Value, shuffle: int) -> Value:
        """The last map, in pixel values, rounded and limited, shuffled, cropped to the picture's
        size: (B, h*s, w*s, 3)."""
        ...


def upscale(net: FoldedSwin, ops: Ops) -> Value:
    """The whole network."""
    shallow = ops.head(net)
    x = ops.norm(net.norm_first, ops.tokens(shallow))
    for block in net.blocks:
        x = _rstb(block, ops, x)
    features = _closing(net.closing, ops, ops.norm(net.norm, x))
    *tail, last = net.tail
    x = _stages(tail, ops, ops.add(features, shallow))
    return ops.finish(_conv(last, ops, x), last.shuffle)


def _rstb(block: Rstb, ops: Ops, x: Value) -> Value:
    inner, order = _times(ops, x, block.start_multiplier), None
    for layer in block.layers:
        inner = _swin_layer(layer, ops, ops.reorder(inner, order, layer.shift))
        order = layer.shift
    inner = ops.reorder(inner, order, None)
    branch = ops.tokens(_closing(block.closing, ops, inner))
    return ops.add(_times(ops, x, block.stream_multiplier), branch)


def _swin_layer(layer: FoldedSwinLayer, ops: Ops, x: Value) -> Value:
    attention = layer.attention
    y = ops.norm(layer.norm1, x)
    q, k, v = (ops.linear(part, y) for part in (attention.q, attention.k, attention.v))
    mixed = ops.attend(attention, q, k, v, layer.shift)
    middle = ops.add(x, ops.linear(attention.proj, mixed))
    y = ops.gelu(ops.linear(layer.fc1, ops.norm(layer.norm2, middle)))
    if layer.gelu is not None:
        y = ops.quantize(layer.gelu, y, channels_last=True)
    out = ops.add(_times(ops, middle, layer.middle_multiplier), ops.linear(layer.fc2, y))
    return out if layer.input_multiplier == 0 else ops.add(out, _times(ops, x, layer.input_multiplier))


def _closing(stages: Sequence[ConvStage], ops: Ops, x: Value) -> Value:
    """Convs from tokens, row by row, to a map. The first one's input is quantized as tokens: codes
    are quicker to move than floats."""
    first, *rest = stages
    if first.quantize is not None:
        x = ops.quantize(first.quantize, x, channels_last=True)
    x = _conv(replace(first, quantize=None), ops, ops.map(x))
    return _stages(rest, ops, x)


def _stages(stages: Sequence[ConvStage], ops: Ops, x: Value) -> Value:
    for stage in stages:
        x = _conv(stage, ops, x)
        x = x if stage.shuffle == 1 else ops.shuffle(x, stage.shuffle)
    return x


def _conv(stage: ConvStage, ops: Ops, x: Value) -> Value:
    if stage.quantize is not None:
        x = ops.quantize(stage.quantize, x, channels_last=False)
    x = ops.conv(stage.conv, x)
    return x if stage.slope is None else ops.leaky_relu(x, stage.slope)


def _times(ops: Ops, x: Value, factor: np.float32) -> Value:
    return x if factor == 1 else ops.multiply(x, factor)
