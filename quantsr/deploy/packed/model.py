"""The converted network: integer codes, steps and architecture as plain numpy data. Imports no
torch.

A layer computes, on its float input `a` of shape (C, H, W) (method: RLQ, `u = (a + tau) / v`):

    codes = clip(round_half_even((a + tau[c]) / (act_step * equal[c])), *act_range)   integers
    S     = sum over taps and channels of (codes - zero_point[c]) * weight_codes  integers, 0-padded
    out   = (act_step * weight_step[o]) * S + bias[o]                              float32

Layers that stay in float have `bits_w` 32 (or 16: float16 values held as float32) and no steps. A
transformer has two more kinds of parts: the quantizers of its attention products (`Operand`) and
tensors that are float in any case (`FloatTensor`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.packed import unwritten
from quantsr.deploy.packed.bitstream import Codes
from quantsr.deploy.packed.description import Header
from quantsr.deploy.program import Program
from quantsr.ranges import IntRange
from quantsr.trained_files.packed_header import FORMAT_VERSION

Float = NDArray[np.float32]


def dense(weight: NDArray[Any], groups: int) -> NDArray[Any]:
    """(O, I / G, k, k) of so many groups as (O, I, k, k), 0 outside of them."""
    outputs, inputs = len(weight) // groups, weight.shape[1]
    found = np.zeros((len(weight), inputs * groups, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        found[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return found


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """One layer's parameters. O outputs, I inputs, G groups; weight (O, I / G, kh, kw) for a conv,
    (O, I) for a linear."""

    name: str
    weight: Codes | Float
    """int8 codes where `bits_w` <= 8, else float32."""
    bias: Float
    """(O,)"""
    bits_w: int = 32
    weight_step: Float | None = None
    """(1,) per tensor or (O,) per output channel; None for a float layer."""
    bits_a: int = 32
    act_step: Float | None = None
    """(1,); None where the input is not quantized."""
    act_tau: Float | None = None
    """(I,) shift added before quantization, not subtracted after; None means 0."""
    act_signed: bool = True
    act_zero_point: NDArray[np.int32] | None = None
    """(I,) code that stands for 0 (and so the padding); None means 0."""
    act_equal: Float | None = None
    """(I,) equalization: channel c's input step is `act_step * act_equal[c]`, and the weight codes
    are of `weight * act_equal`. None means 1."""
    act_limits: tuple[int, int] | None = None
    """(qmin, qmax) of the input codes where they are not all of their bits: fewer, or less a zero
    point. None: all."""
    groups: int = 1
    """Equal parts of a conv's outputs that each read one part of the inputs; 1 of a linear
    layer."""

    @property
    def integer(self) -> bool:
        """True where both operands are integer codes."""
        return self.bits_w <= 8 and self.bits_a <= 16

    @property
    def kind(self) -> str:
        """ "conv" or "linear", by the weight's shape."""
        return "conv" if self.weight.ndim == 4 else "linear"

    @property
    def out_channels(self) -> int:
        """O"""
        return int(self.weight.shape[0])

    @property
    def in_channels(self) -> int:
        """I"""
        return int(self.weight.shape[1]) * self.groups

    @property
    def act_range(self) -> tuple[int, int]:
        """(qmin, qmax) of the input codes."""
        return self.act_limits or IntRange.of(self.bits_a, self.act_signed, wide=True).bounds

    def tau(self) -> Float:
        """(I,) tau, zeros where there is none."""
        return np.zeros(self.in_channels, np.float32) if self.act_tau is None else self.act_tau

    def equal(self) -> Float:
        """(I,) equalization, ones where there is none."""
        return np.ones(self.in_channels, np.float32) if self.act_equal is None else self.act_equal

    def zero_point(self) -> NDArray[np.int32]:
        """(I,) zero point, zeros where there is none."""
        return np.zeros(self.in_channels, np.int32) if self.act_zero_point is None else self.act_zero_point

    def float_weight(self) -> Float:
        """The weight as float32, dequantized where it is held as codes."""
        if self.bits_w > 8:
            return self.weight.astype(np.float32)
        assert self.weight_step is not None
        step = self.weight_step.reshape(-1, *[1] * (self.weight.ndim - 1))
        weight = self.weight.astype(np.float32) * step
        return weight if self.act_equal is None else weight / self.of_inputs(self.act_equal)

    def of_inputs(self, values: NDArray[Any]) -> NDArray[Any]:
        """(I,) of input channels, to go with the weight: that of the input of each."""
        rows = values.reshape(self.groups, -1)  # (G, I / G)
        if self.groups > 1:
            rows = rows.repeat(self.out_channels // self.groups, 0)  # (O, I / G)
        return rows.reshape(*rows.shape, *[1] * (self.weight.ndim - 2))

    def without_groups(self) -> PackedLayer:
        """The same layer with a weight of every output for every input, 0 outside of the groups."""
        return self if self.groups == 1 else replace(self, weight=dense(self.weight, self.groups), groups=1)

    def dequantized(self) -> PackedLayer:
        """The same layer with its weight as float32 and its input in float."""
        return replace(
            self,
            weight=self.float_weight(),
            bits_w=32,
            weight_step=None,
            bits_a=32,
            act_step=None,
            act_tau=None,
            act_zero_point=None,
            act_equal=None,
            act_limits=None,
        )

    def describe(self) -> dict[str, Any]:
        """The layer's row of the manifest."""
        per_channel = self.weight_step is not None and self.weight_step.size > 1
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.weight.shape),
            "bits_w": self.bits_w,
            "bits_a": self.bits_a,
            "signed": self.act_signed,
            "granularity": "channel" if per_channel else "tensor",
        }


class ConvLayer(PackedLayer):
    """A conv with stride 1 and padding k // 2; weight (O, I / G, k, k)."""


class LinearLayer(PackedLayer):
    """A linear layer; weight (O, I)."""


@dataclass(frozen=True, eq=False)
class Operand:
    """How one operand of a product of two activations is quantized: `codes =
    clip(round_half_even((x + tau[c]) / step), qmin, qmax)`."""

    name: str
    channels: int
    """Size of the operand's last dimension."""
    bits: int
    step: Float
    """(1,)"""
    tau: Float | None = None
    """(channels,) or None for 0."""
    signed: bool = True
    limits: tuple[int, int] | None = None
    """(qmin, qmax) of the codes where they are not all of their bits, as
    `PackedLayer.act_limits`."""

    @property
    def range(self) -> tuple[int, int]:
        """(qmin, qmax) of the codes."""
        return self.limits or IntRange.of(self.bits, self.signed).bounds


@dataclass(frozen=True, eq=False)
class FloatTensor:
    """A tensor that no quantizer reads: of a LayerNorm, a table of relative position biases, or
    temperatures of attention between channels."""

    name: str
    values: Float
    bits: int = 32
    """32, or 16: float16 values held as float32."""


@dataclass(frozen=True, eq=False)
class PackedModel:
    """A converted network. All parts are keyed by module or parameter name, layers in order of
    execution."""

    header: Header
    layers: Mapping[str, PackedLayer]
    operands: Mapping[str, Operand] = field(default_factory=dict)
    floats: Mapping[str, FloatTensor] = field(default_factory=dict)
    written: Program | None = None
    """Its program, where the file holds it; None of a network whose type says it all."""

    @property
    def program(self) -> Program:
        """All operations at full depth. Raises ValueError where there is no such program."""
        return unwritten.program_of(self.header) if self.written is None else self.written

    @property
    def format_version(self) -> int:
        """Of a file that holds the network: the header's, or the first that has a place for its
        program and its ranges of codes."""
        limits = [x.act_limits for x in self.layers.values()] + [x.limits for x in self.operands.values()]
        new = self.written is not None or any(x is not None for x in limits)
        return FORMAT_VERSION if new else self.header.format_version

    def depth_or_default(self, depth: int | None) -> int:
        """`depth`, or the deepest one where None; InputError where there is no such depth."""
        chosen = self.header.depths[0] if depth is None else depth
        self.header.blocks_kept(chosen)
        return chosen

    def with_wide_inputs_in_float(self) -> PackedModel:
        """The network with every layer that has a 16-bit input dequantized: what these inputs round
        is below what can be seen."""
        layers = {name: x.dequantized() if x.bits_a == 16 else x for name, x in self.layers.items()}
        return replace(self, layers=layers)

    def float_parts(self) -> list[Float]:
        """What is stored as float32 beside the weights, in the order of the file: shortcuts; each
        layer's bias, weight step, input step, tau and equalization; each operand's step and tau;
        float tensors of 32 bits."""
        parts: list[Float | None] = [np.asarray(self.header.shortcuts, np.float32)]
        for layer in self.layers.values():
            parts += [layer.bias, layer.weight_step, layer.act_step, layer.act_tau, layer.act_equal]
        for operand in self.operands.values():
            parts += [operand.step, operand.tau]
        parts += [tensor.values for tensor in self.floats.values() if tensor.bits == 32]
        return [part for part in parts if part is not None]

    def half_parts(self) -> list[Float]:
        """Float tensors that are stored as float16."""
        return [tensor.values for tensor in self.floats.values() if tensor.bits == 16]

    @property
    def manifest(self) -> list[dict[str, Any]]:
        """One row per layer: name, kind, shape, bits, sign, granularity."""
        return [layer.describe() for layer in self.layers.values()]
