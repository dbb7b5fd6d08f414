"""Folded programs as ONNX graphs for runtimes that take explicit Q/DQ, such as TensorRT.

Such runtimes want symmetric int8: zero point 0, weights that are int8 already behind a
DequantizeLinear with a scale for every output channel, the bias in the Conv, and nothing but
DequantizeLinear on int8 values. So codes are limited as floats (Clip) before QuantizeLinear, and
whatever does not fit into int8, as codes from 0 to 255, stays in floats. Runtimes fuse and reorder
float operations as they like, so a code next to a tie may differ from the reference's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from onnx import TensorProto

from quantsr.deploy.engines.onnx_graph import Graph, conv_attributes
from quantsr.deploy.engines.onnx_operations import OnnxOps
from quantsr.deploy.folded import (
    Attention,
    ChannelAttention,
    FirstConv,
    FoldedConv,
    FoldedLinear,
    FoldedProgram,
    GlobalAttention,
    Limits,
    Norm,
    Pixels,
    RectangleAttention,
    Step,
)
from quantsr.errors import InputError

_INT8 = (-128, 127)
_MOVING: dict[type, str] = {
    Norm: "layer_norm",
    Attention: "window_attention",
    RectangleAttention: "rectangle_attention",
    ChannelAttention: "channel_attention",
    GlobalAttention: "global_attention",
}
"""Operations on tokens, by their kinds in programs."""


class QdqOps(OnnxOps):
    """The operations of networks without tokens; codes are int8 or, where they do not fit,
    floats."""

    methods: ClassVar[dict[type, Callable[..., str]]]

    def __init__(self, graph: QdqGraph, program: FoldedProgram) -> None:
        """Raises InputError for networks with LayerNorm or attention."""
        for step in program.steps:
            if kind := _MOVING.get(type(step.op)):
                raise InputError(f"--qdq: {kind} moves codes, which int8 Q/DQ runtimes do not; leave it out")
        super().__init__(graph, program)

    def first_conv(self, step: Step, x: str) -> str:
        op, graph = step.op, self.graph
        assert isinstance(op, FirstConv)
        if not op.pixels_are_codes:
            x = graph.normalized(op, x)
            return graph.conv(op.head, x if op.quantize is None else graph.codes(op.quantize, x))
        x = graph.node("Cast", [x], "pixels.float", to=TensorProto.FLOAT)
        return graph.conv(op.head, x)

    def linear(self, step: Step, x: str) -> str:
        assert isinstance(step.op, FoldedLinear)
        return self.graph.conv(step.op.as_conv(), x)

    def pixels(self, step: Step, x: str) -> str:
        return self.graph.quantize("pixels.upscaled", x, (0, 255))

    def shown(self, x: str, name: str) -> str:
        """As bytes."""
        x = self.graph.node("Transpose", [x], "pixels.last", perm=[0, 2, 3, 1])
        return self.graph.node("Cast", [x], name, to=TensorProto.UINT8)


class QdqGraph(Graph):
    """Nodes whose codes are int8 with zero point 0."""

    def quantize(self, name: str, x: str, limits: Limits, step: np.ndarray | None = None) -> str:
        """Codes of floats in units of codes: int8 where they fit, else floats that are
        integers."""
        assert step is None
        low, high = (self.scalar(limit) for limit in limits)
        if not fits(limits):
            return self.node("Clip", [self.node("Round", [x], f"{name}.rounded"), low, high], name)
        if limits != _INT8:
            x = self.node("Clip", [x, low, high], f"{name}.limited")
        return self.node("QuantizeLinear", [x, self.scalar(1), self.zero_point()], name)

    def conv(self, layer: FoldedConv, x: str) -> str:
        """A convolution with its multiplier as the weight's scale, and its bias inside."""
        name, size = layer.name, layer.weight.shape[-1]
        integer = layer.codes_in is not None and fits(layer.codes_in)
        if integer:
            x = self.node("DequantizeLinear", [x, self.scalar(1), self.zero_point()], f"{name}.input.value")
        if layer.zero_point is not None:
            x = self.node(
                "Sub",
                [x, self.channels(f"{name}.zero_point", layer.zero_point.astype(np.float32))],
                f"{name}.input",
            )
        inputs = [
            x,
            self.scaled_weight(layer, integer),
            self.constant(f"{name}.bias", layer.bias.astype(np.float32)),
        ]
        y = self.node("Conv", inputs, f"{name}.out", **conv_attributes(size, layer.groups))
        if layer.codes_out is None:
            return y
        if layer.low is not None:
            y = self.node("Max", [y, self.channels(f"{name}.low", layer.low)], f"{name}.above")
        return self.quantize(layer.codes_name, y, layer.codes_out)

    def scaled_weight(self, layer: FoldedConv, integer: bool) -> str:
        """The weight times the multiplier: int8 codes that are dequantized, or floats where the
        layer reads floats."""
        name = f"{layer.name}.weight"
        if not (integer and layer.integer):
            product = layer.weight.astype(np.float64) * layer.multiplier.reshape(-1, 1, 1, 1)
            return self.constant(name, product.astype(np.float32))
        scale = self.constant(f"{layer.name}.scale", layer.multiplier.astype(np.float32))
        zeros = self.constant(f"{layer.name}.weight.zero", np.zeros(len(layer.weight), np.int8))
        weight = self.constant(name, layer.weight.astype(np.int8))
        return self.node("DequantizeLinear", [weight, scale, zeros], f"{name}.value", axis=0)

    def zero_point(self) -> str:
        """The int8 0."""
        return self.constant("zero", np.array(0, np.int8))


def fits(limits: Limits) -> bool:
    """Whether codes between `limits` are int8."""
    return _INT8[0] <= limits[0] and limits[1] <= _INT8[1]


QdqOps.methods = OnnxOps.methods | {
    FirstConv: QdqOps.first_conv,
    FoldedLinear: QdqOps.linear,
    Pixels: QdqOps.pixels,
}
