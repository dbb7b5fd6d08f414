"""The parts of a packed network as rows of its header, and every check on a row by itself
(docs/reference/formats.md has the table)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantsr.deploy.operations import MAX_CHANNELS
from quantsr.deploy.packed.bitstream import DENSE, HUFFMAN
from quantsr.deploy.packed.model import FloatTensor, Operand, PackedLayer, PackedModel
from quantsr.ranges import MAX_BITS, IntRange

_MAX_KERNEL = 31
_CODINGS = {DENSE: 0, HUFFMAN: 1}
_CODING_NAMES = {number: name for name, number in _CODINGS.items()}


@dataclass
class LayerRow:
    """One layer in the header: what is needed to read its tensors back."""

    name: str
    """As in the network's state dict."""
    shape: list[int]
    """Of the weight: (O, I / G, k, k) of a conv, (O, I) of a linear layer."""
    bits_w: int
    """2..8 for codes, 16 or 32 for a float weight."""
    bits_a: int
    """2..8 or 16 for input codes, 32 for a float input."""
    signed: bool
    """Whether the input's codes are signed."""
    float_counts: tuple[int, int, int, int, int]
    """Lengths of bias, weight step, input step, tau and equalization; 0 where there is none."""
    coding: str = DENSE
    """Of the weight's codes: "dense" or "huffman"."""
    zero_point: list[int] | None = None
    """(I,) input codes that stand for 0; None means 0."""
    limits: tuple[int, int] | None = None
    """Smallest and largest input code; None where they are those of its bits."""
    groups: int = 1
    """G"""

    @classmethod
    def of(cls, layer: PackedLayer) -> LayerRow:
        """The row of a layer whose codes are dense."""

        def size(part: Any) -> int:
            return 0 if part is None else int(part.size)

        counts = (
            layer.bias.size,
            size(layer.weight_step),
            size(layer.act_step),
            size(layer.act_tau),
            size(layer.act_equal),
        )
        zero = None if layer.act_zero_point is None else [int(z) for z in layer.act_zero_point]
        shape = [int(n) for n in layer.weight.shape]
        return cls(
            name=layer.name,
            shape=shape,
            bits_w=layer.bits_w,
            bits_a=layer.bits_a,
            signed=layer.act_signed,
            float_counts=counts,
            zero_point=zero,
            limits=layer.act_limits,
            groups=layer.groups,
        )

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    def to_json(self) -> list[Any]:
        """The row as `from_json` reads it (docs/reference/formats.md)."""
        row = [
            self.name,
            self.shape,
            self.bits_w,
            self.bits_a,
            int(self.signed),
            list(self.float_counts),
            _CODINGS[self.coding],
        ]
        limits = None if self.limits is None else list(self.limits)
        if self.groups > 1:
            return [*row, self.zero_point, limits, self.groups]
        if limits is not None:
            return [*row, self.zero_point, limits]
        return row if self.zero_point is None else [*row, self.zero_point]

    @classmethod
    def from_json(cls, raw: Any) -> LayerRow:
        """Raises ValueError for anything but a sound row."""
        if not isinstance(raw, list) or len(raw) not in (7, 8, 9, 10) or not isinstance(raw[0], str):
            raise ValueError("a layer of its header is malformed")
        name = raw[0]
        shape = integers(raw[1], f"{name}: shape", 1, MAX_CHANNELS)
        if len(shape) not in (2, 4) or (
            len(shape) == 4 and (shape[2] != shape[3] or shape[2] % 2 == 0 or shape[2] > _MAX_KERNEL)
        ):
            raise ValueError(f"{name}: shape {shape} is no conv or linear layer")
        bits_w, bits_a, signed, coding = (integer(raw[i], f"{name}: field {i}", 0, 32) for i in (2, 3, 4, 6))
        if (
            bits_w not in (*range(2, 9), 16, 32)
            or bits_a not in (*range(2, 9), 16, 32)
            or signed > 1
            or coding not in _CODING_NAMES
        ):
            raise ValueError(f"{name}: bits, sign or coding out of range")
        groups = integer(raw[9], f"{name}: groups", 2, MAX_CHANNELS) if len(raw) == 10 else 1
        out, inp = shape[0], shape[1] * groups
        if out % groups or inp > MAX_CHANNELS or (groups > 1 and len(shape) != 4):
            raise ValueError(f"{name}: shape {shape} has no {groups} groups")
        counts = integers(raw[5], f"{name}: counts", 0, MAX_CHANNELS)
        quantized_w, quantized_a = bits_w <= 8, bits_a <= 16
        if (
            len(counts) != 5
            or counts[0] != out
            or counts[1] not in ((1, out) if quantized_w else (0,))
            or counts[2] != int(quantized_a)
            or counts[3] not in ((0, inp) if quantized_a else (0,))
            or counts[4] not in ((0, inp) if quantized_a else (0,))
        ):
            raise ValueError(f"{name}: bias, steps or tau do not fit its shape and bits")
        zero_point = limits = None
        given = [part for part in raw[7:9] if part is not None]
        if (given or len(raw) in (8, 9)) and not quantized_a:
            raise ValueError(f"{name}: a float input has no zero point or range")
        if len(raw) > 8 and not (len(raw) == 10 and raw[8] is None):
            limits = code_limits(raw[8], name, bits_a, bool(signed))
        if len(raw) > 7 and not (raw[7] is None and (limits is not None or len(raw) == 10)):
            zero_point = integers(
                raw[7], f"{name}: zero point", *IntRange.of(bits_a, bool(signed), wide=True).bounds
            )
            if len(zero_point) != inp:
                raise ValueError(f"{name}: zero point needs {inp} values")
        return cls(
            name=name,
            shape=shape,
            bits_w=bits_w,
            bits_a=bits_a,
            signed=bool(signed),
            float_counts=(counts[0], counts[1], counts[2], counts[3], counts[4]),
            coding=_CODING_NAMES[coding],
            zero_point=zero_point,
            limits=limits,
            groups=groups,
        )


@dataclass
class OperandRow:
    """One operand of an attention product in the header."""

    name: str
    """Layer and role: "layers.0.blocks.0.attn.scores.left"."""
    channels: int
    """Size of the operand's last dimension."""
    bits: int
    """2..8"""
    signed: bool
    """Whether its codes are signed."""
    has_tau: bool
    """Whether it has a tau, (channels,), in tensor `values`."""
    limits: tuple[int, int] | None = None
    """Smallest and largest code; None where they are those of its bits."""

    @classmethod
    def of(cls, operand: Operand) -> OperandRow:
        """The row of an operand."""
        has_tau = operand.tau is not None
        return cls(operand.name, operand.channels, operand.bits, operand.signed, has_tau, operand.limits)

    @property
    def float_counts(self) -> tuple[int, int]:
        """Lengths of step and tau."""
        return 1, self.channels if self.has_tau else 0

    def to_json(self) -> list[Any]:
        """The row as `from_json` reads it (docs/reference/formats.md)."""
        row = [self.name, self.channels, self.bits, int(self.signed), int(self.has_tau)]
        return row if self.limits is None else [*row, list(self.limits)]

    @classmethod
    def from_json(cls, raw: Any) -> OperandRow:
        """Raises ValueError for anything but a sound row."""
        if not isinstance(raw, list) or len(raw) not in (5, 6) or not isinstance(raw[0], str):
            raise ValueError("an operand of its header is malformed")
        name = raw[0]
        channels = integer(raw[1], f"{name}: channels", 1, MAX_CHANNELS)
        bits = integer(raw[2], f"{name}: bits", 2, 8)
        signed, has_tau = (integer(raw[i], f"{name}: field {i}", 0, 1) for i in (3, 4))
        limits = code_limits(raw[5], name, bits, bool(signed)) if len(raw) == 6 else None
        return cls(name, channels, bits, bool(signed), bool(has_tau), limits)


@dataclass
class FloatRow:
    """One float tensor in the header."""

    name: str
    """As in the network's state dict."""
    shape: list[int]
    """One or two dimensions."""
    bits: int
    """32, in tensor `values`, or 16, in `halves`."""

    @classmethod
    def of(cls, tensor: FloatTensor) -> FloatRow:
        """The row of a float tensor."""
        return cls(tensor.name, [int(n) for n in tensor.values.shape], tensor.bits)

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def to_json(self) -> list[Any]:
        """The row as `from_json` reads it (docs/reference/formats.md)."""
        return [self.name, self.shape, self.bits]

    @classmethod
    def from_json(cls, raw: Any) -> FloatRow:
        """Raises ValueError for anything but a sound row."""
        if not isinstance(raw, list) or len(raw) != 3 or not isinstance(raw[0], str):
            raise ValueError("a float tensor of its header is malformed")
        shape = integers(raw[1], f"{raw[0]}: shape", 1, MAX_CHANNELS)
        if len(shape) not in (1, 2) or raw[2] not in (16, 32):
            raise ValueError(f"{raw[0]}: shape {shape} or bits are not those of a float tensor")
        return cls(raw[0], shape, integer(raw[2], f"{raw[0]}: bits", 16, 32))


@dataclass
class Rows:
    """All parts of a network in the header."""

    layers: list[LayerRow]
    """In order of execution."""
    operands: list[OperandRow]
    floats: list[FloatRow]
    """Both empty where the network has neither attention, LayerNorm nor PReLU."""

    @classmethod
    def of(cls, model: PackedModel) -> Rows:
        """The rows of all parts of a network, their codes dense."""
        return cls(
            [LayerRow.of(layer) for layer in model.layers.values()],
            [OperandRow.of(operand) for operand in model.operands.values()],
            [FloatRow.of(tensor) for tensor in model.floats.values()],
        )

    def to_json(self) -> dict[str, Any]:
        """The header's keys; those of parts that the network lacks are left out."""
        parts: dict[str, Sequence[LayerRow | OperandRow | FloatRow]] = {
            "layers": self.layers,
            "operands": self.operands,
            "floats": self.floats,
        }
        return {
            key: [row.to_json() for row in rows] for key, rows in parts.items() if rows or key == "layers"
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Rows:
        """Raises ValueError for rows that are not sound, or a name that appears twice."""
        lists = {key: raw.get(key, []) for key in ("layers", "operands", "floats")}
        for key, rows in lists.items():
            if not isinstance(rows, list):
                raise ValueError(f"{key}: is not a list")
        found = cls(
            [LayerRow.from_json(row) for row in lists["layers"]],
            [OperandRow.from_json(row) for row in lists["operands"]],
            [FloatRow.from_json(row) for row in lists["floats"]],
        )
        for key, parts in (
            ("layers", found.layers),
            ("operands", found.operands),
            ("floats", found.floats),
        ):
            if len({row.name for row in parts}) != len(parts):
                raise ValueError(f"{key}: a name appears twice")
        return found

    @property
    def float_counts(self) -> list[int]:
        """Lengths of the parts of tensor `values` behind the shortcuts, in the order of
        `PackedModel.float_parts`, 0 for what is not there."""
        counts = [n for layer in self.layers for n in layer.float_counts]
        counts += [n for operand in self.operands for n in operand.float_counts]
        return counts + [tensor.count for tensor in self.floats if tensor.bits == 32]

    @property
    def half_counts(self) -> list[int]:
        """Lengths of the parts of tensor `halves`."""
        return [tensor.count for tensor in self.floats if tensor.bits == 16]


def code_limits(values: Any, name: str, bits: int, signed: bool) -> tuple[int, int]:
    """(qmin, qmax) of codes that 0 is among and that `bits` hold, once a zero point is added.
    Raises ValueError for others."""
    if bits > MAX_BITS:  # engines keep codes with a range of their own in bytes
        raise ValueError(f"{name}: codes of {bits} bits have no range of their own")
    largest = IntRange.of(bits, signed=False).qmax
    limits = integers(values, f"{name}: range", -largest, largest)
    if len(limits) != 2 or not limits[0] <= 0 <= limits[1] or limits[1] - limits[0] > largest:
        raise ValueError(f"{name}: {limits} is no range of codes of {bits} bits")
    if (limits[0] < 0) != signed:
        raise ValueError(f"{name}: its range and its sign differ")
    return limits[0], limits[1]


def integer(value: Any, name: str, low: int, high: int) -> int:
    """`value`; ValueError, naming `name`, unless it is an integer in `low`..`high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}: must be an integer in {low}..{high}")
    return value


def integers(values: Any, name: str, low: int, high: int) -> list[int]:
    """`values`; ValueError, naming `name`, unless they are a list of such integers."""
    if not isinstance(values, list):
        raise ValueError(f"{name}: must be a list")
    return [integer(value, name, low, high) for value in values]
