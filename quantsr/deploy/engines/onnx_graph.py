"""ONNX graphs in the making: nodes, constants, and convolutions of codes.

A conv is `DequantizeLinear(codes) * DequantizeLinear(weight codes) -> Conv -> Mul(multiplier) ->
Add(bias)` with dequantization scale 1: the Conv then adds integers, which float32 does without
rounding (see `reference.py`), so that every runtime that computes it in float32 or in integers
gives the same sums, and the multiplier is applied once behind it, as in the reference.
`QuantizeLinear` (scale 1) rounds half to even and saturates, `Clip` keeps the codes of fewer bits
in their range. Pixel shuffles act on the codes. Signed codes are stored as uint8 with a zero point:
of int8 inputs, runtimes on processors without VNNI halve the weights, which rounds odd ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from quantsr.deploy.folded import FirstConv, FoldedConv, Normalize, Quantize, is_wide
from quantsr.deploy.packed import bitstream
from quantsr.deploy.passes.first import SplitHead, split_head

INPUT, OUTPUT = "image", "upscaled"


class Graph:
    """Nodes and initialisers in the making. Every method takes and returns names of values: of maps
    (B, C, H, W), or (B, H, W, C) with `channels_last`."""

    def __init__(self, *, int4: bool = False, channels_last: bool = False) -> None:
        self.int4, self.channels_last = int4, channels_last  # int4 tensors need opset 21
        self.suffix = ""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._names = {INPUT, OUTPUT}  # of constants and of results of nodes
        self._count: Counter[str] = Counter()  # of names that were taken more than once
        self._known: dict[tuple[str, str, tuple[int, ...], bytes], str] = {}  # constants
        self._weights: set[str] = set()  # in codes, that are dequantized
        self._pixels: dict[tuple[str, bytes, bytes], str] = {}  # normalized in different ways

    def first_conv(self, op: FirstConv, pixels: str) -> str:
        """The first convolution, on the pixels."""
        if op.pixels_are_codes:
            return self.conv(op.head, pixels)
        x = self.normalized(op, pixels)
        if op.quantize is not None:
            return self.conv(op.head, self.codes(op.quantize, x))
        return self.finish_conv(op.head, self.split_sums(x, op.head.name, split_head(op)))

    def split_sums(self, x: str, name: str, split: SplitHead) -> str:
        """conv(x, weight) as `SplitHead` says."""
        size = split.high.shape[-1]
        parts = []
        for label, unit in (("high", split.unit), ("middle", split.finer)):
            units = self.node("Mul", [x, self.scalar(unit)], f"pixels.{label}.units")
            units = self.node("Round", [units], f"pixels.{label}.integers")
            parts.append(self.node("Mul", [units, self.scalar(1 / unit)], f"pixels.{label}"))
            x = self.node("Sub", [x, parts[-1]], f"pixels.{label}.rest")
        inputs = {
            "high": parts[0],
            "middle": self.node("Concat", parts, "pixels.middle.parts", axis=self.axis),
            "low": self.node("Concat", [*parts, x], "pixels.low.parts", axis=self.axis),
        }
        a, b, c = (
            self.convolution(
                part, self.constant(f"{name}.weight.{label}", weight), size, f"{name}.sum.{label}"
            )
            for (label, part), weight in zip(
                inputs.items(), (split.high, split.middle, split.low), strict=True
            )
        )
        total = self.node("Add", [a, b], f"{name}.sum.rounded")
        error = self.node("Sub", [a, total], f"{name}.sum.less")
        error = self.node("Add", [error, b], f"{name}.sum.error")
        rest = self.node("Add", [error, c], f"{name}.sum.rest")
        return self.node("Add", [total, rest], f"{name}.sum")

    def normalized(self, op: FirstConv | Normalize, pixels: str) -> str:
        """`(pixel / 255 - mean) * img_range`, once for all that read the same."""
        key = (pixels, op.mean.tobytes(), op.img_range.tobytes())
        if key not in self._pixels:
            self._pixels[key] = self._normalized(op, pixels)
        return self._pixels[key]

    def _normalized(self, op: FirstConv | Normalize, pixels: str) -> str:
        x = self.node("Cast", [pixels], "pixels.float", to=TensorProto.FLOAT)
        x = self.node("Div", [x, self.scalar(255)], "pixels.share")
        x = self.node("Sub", [x, self.channels("pixels.mean", op.mean)], "pixels.centred")
        return self.node("Mul", [x, self.scalar(op.img_range)], "pixels.scaled")

    def conv(self, layer: FoldedConv, x: str) -> str:
        """One folded conv, from its codes (or float input) to the next layer's codes (or float)."""
        if layer.codes_in is not None:
            x = self.dequantize(layer, x)
        size, name = layer.weight.shape[-1], f"{layer.name}.sum"
        y = self.convolution(x, self.weight(layer), size, name, layer.groups)
        return self.finish_conv(layer, y)

    def convolution(self, x: str, weight: str, size: int, output: str, groups: int = 1) -> str:
        """Stride 1, padded with 0 to the same size; weight (O, I / groups, size, size)."""
        return self.on_planes("Conv", [x, weight], output, **conv_attributes(size, groups))

    def on_planes(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        """A node whose first input and output are maps (B, C, H, W) in any case."""
        if not self.channels_last:
            return self.node(op, inputs, output, **attributes)
        planes = self.node("Transpose", inputs[:1], f"{output}.planes.input", perm=[0, 3, 1, 2])
        planes = self.node(op, [planes, *inputs[1:]], f"{output}.planes", **attributes)
        return self.node("Transpose", [planes], output, perm=[0, 2, 3, 1])

    def finish_conv(self, layer: FoldedConv, y: str) -> str:
        """What follows the sums `y`: multiplier, bias, limit, codes."""
        name = layer.name
        if (layer.multiplier != 1).any():
            y = self.node("Mul", [y, self.channels(f"{name}.scale", layer.multiplier)], f"{name}.scaled")
        y = self.node("Add", [y, self.channels(f"{name}.bias", layer.bias)], f"{name}.out")
        if layer.low is not None:
            y = self.node("Max", [y, self.channels(f"{name}.low", layer.low)], f"{name}.limited")
        return y if layer.codes_out is None else self.quantize(layer.codes_name, y, layer.codes_out)

    def codes(self, op: Quantize, x: str) -> str:
        """The codes of floats, a map."""
        if op.tau.any():
            x = self.node("Add", [x, self.channels(f"{op.name}.tau", op.tau)], f"{op.name}.shifted")
        x = self.node("Div", [x, self.channels(f"{op.name}.step", op.step)], f"{op.name}.units")
        return self.quantize(op.name, x, op.limits)

    def quantize(
        self,
        name: str,
        x: str,
        limits: tuple[int, int],
        step: NDArray[np.float32] | None = None,
    ) -> str:
        """QuantizeLinear with `step` (1,) or (C,), default 1, then Clip to `limits` where they are
        narrower than the 8-bit type; 16-bit codes, of step 1 only, stay in float32."""
        if is_wide(limits):
            assert step is None
            low, high = (self.scalar(v) for v in limits)
            return self.node("Clip", [self.node("Round", [x], f"{name}.wide"), low, high], name)
        wide = name if _whole(limits) else f"{name}.wide"
        if step is None or step.size == 1:
            scale = self.scalar(1 if step is None else step.item())
            y = self.node("QuantizeLinear", [x, scale, self.zero(limits)], wide)
        else:
            zeros = np.full(step.shape, -min(limits[0], 0), np.uint8)
            channels = [self.constant(f"{name}.step", step), self.constant(f"{name}.zero", zeros)]
            y = self.node("QuantizeLinear", [x, *channels], wide, axis=self.axis)
        return self.clip(name, y, limits)

    def clip(self, name: str, codes: str, limits: tuple[int, int]) -> str:
        """8-bit codes within `limits`."""
        if _whole(limits):
            return codes
        low, high = (self.byte("limit", v - min(limits[0], 0)) for v in limits)
        return self.node("Clip", [codes, low, high], name)

    def dequantize(self, layer: FoldedConv, codes: str) -> str:
        """The codes that `layer` reads, less its zero point, as float32 integers; 16-bit codes are
        that already."""
        assert layer.codes_in is not None
        if is_wide(layer.codes_in):
            return codes
        name = f"{layer.name}.input.value"
        if layer.zero_point is None:
            return self.node("DequantizeLinear", [codes, self.scalar(1), self.zero(layer.codes_in)], name)
        shifted = layer.zero_point - min(layer.codes_in[0], 0)
        zero = self.constant(f"{layer.name}.zero_point", shifted.astype(np.uint8))
        ones = self.constant(f"{layer.name}.input.scale", np.ones(len(layer.zero_point), np.float32))
        return self.node("DequantizeLinear", [codes, ones, zero], name, axis=self.axis)

    def weight(self, layer: FoldedConv) -> str:
        """The weight as float32, from int8, int4, float16 or float32 initialisers."""
        name, weight = f"{layer.name}.weight", layer.weight
        if weight.dtype == np.float16:
            return self.node("Cast", [self.constant(name, weight)], f"{name}.value", to=TensorProto.FLOAT)
        if weight.dtype == np.float32:
            return self.constant(name, weight)
        # of a layer used again another initialiser: ONNX Runtime converts each one once
        while name in self._weights:
            name += ".again"
        self._weights.add(name)
        if self.int4 and weight.min() >= -8 and weight.max() <= 7:
            # two codes a byte, as ONNX lays int4 out
            nibbles = bitstream.pack(weight.astype(np.int8), 4)
            name = self._initialiser(
                name,
                weight,
                lambda name: helper.make_tensor(name, TensorProto.INT4, weight.shape, nibbles, raw=True),
            )
        else:
            name = self.constant(name, weight)
        return self.node("DequantizeLinear", [name, self.scalar(1)], f"{name}.value")

    def channels(self, name: str, values: NDArray[np.float32]) -> str:
        """(C,) as a constant to go with a map."""
        return self.constant(name, values.astype(np.float32).reshape(self.shape_of_channels))

    @property
    def axis(self) -> int:
        """Of a map's channels."""
        return -1 if self.channels_last else 1

    @property
    def shape_of_channels(self) -> tuple[int, ...]:
        """Of (C,) constants that go with a map."""
        return (-1,) if self.channels_last else (1, -1, 1, 1)

    def zero(self, limits: tuple[int, int]) -> str:
        """The uint8 that stands for code 0 of codes between `limits`."""
        return self.byte("zero", -min(limits[0], 0))

    def byte(self, label: str, value: int) -> str:
        """A uint8 (), 0..255; the same one for the same label and value."""
        return self.constant(f"{label}.{value}", np.array(value, np.uint8))

    def scalar(self, value: float | np.float32) -> str:
        """A float32 (); the same one for the same value."""
        value = np.float32(value)
        return self.constant(f"scalar.{value!r}", np.array(value, np.float32))

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """An initialiser of the value's shape and type, and its name: `name`, with a number where
        another constant or result has it. The same for the same name and value."""
        return self._initialiser(name, value, lambda name: numpy_helper.from_array(value, name))

    def _initialiser(
        self, name: str, value: NDArray[np.generic], make: Callable[[str], onnx.TensorProto]
    ) -> str:
        key = (name, value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).digest())
        if key not in self._known:
            self._known[key] = free = self._free(name)
            self.constants[free] = make(free)
        return self._known[key]

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        """A node of the ONNX operator `op`, named as its one output: `output` and `suffix`, with a
        number where another constant or result has that name, as where two operations have one
        layer."""
        output = output if output == OUTPUT else self._free(output + self.suffix)
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def _free(self, name: str) -> str:
        """`name`, or the first of `name.2`, `name.3` ... that is free; taken from then on."""
        free = name
        while free in self._names:
            self._count[name] += 1
            free = f"{name}.{self._count[name] + 1}"
        self._names.add(free)
        return free

    def finish(self, scale: int) -> onnx.GraphProto:
        """The graph with its dynamic input and output."""
        image = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n", "height", "width", 3])
        upscaled = helper.make_tensor_value_info(
            OUTPUT, TensorProto.UINT8, ["n", f"height*{scale}", f"width*{scale}", 3]
        )
        return helper.make_graph(self.nodes, "quantsr", [image], [upscaled], list(self.constants.values()))


def conv_attributes(size: int, groups: int) -> dict[str, object]:
    """Of a convolution of stride 1, padded to the same size."""
    found: dict[str, object] = {"pads": [size // 2] * 4, "kernel_shape": [size] * 2}
    return found if groups == 1 else {**found, "group": groups}


def _whole(limits: tuple[int, int]) -> bool:
    """Whether codes take all of an 8-bit type."""
    return limits[1] - limits[0] == 255
