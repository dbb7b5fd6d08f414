"""The header of a packed network as JSON, and every check on it. A header that passes can be run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from quantsr.deploy import architectures
from quantsr.deploy.bitstream import DENSE, HUFFMAN
from quantsr.deploy.model import FloatTensor, Header, Operand, PackedModel, QuantizedLayer, code_range

_MAX_CHANNELS, _MAX_BLOCKS, _MAX_KERNEL = 1 << 14, 1 << 10, 15
_MAX_FLOAT = 1e30  # also refuses NaN and infinity
_CODINGS = {DENSE: 0, HUFFMAN: 1}
_CODING_NAMES = {number: name for name, number in _CODINGS.items()}


@dataclass
class LayerRow:
    """One layer in the header: what is needed to read its tensors back."""

    name: str
    shape: list[int]
    bits_w: int
    bits_a: int
    signed: bool
    float_counts: tuple[int, int, int, int, int]
    """Lengths of bias, weight step, input step, tau and equalization; 0 where there is none."""
    coding: str = DENSE
    zero_point: list[int] | None = None

    @classmethod
    def of(cls, layer: QuantizedLayer) -> LayerRow:
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
        return cls(layer.name, shape, layer.bits_w, layer.bits_a, layer.act_signed, counts, DENSE, zero)

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def float_count(self) -> int:
        return sum(self.float_counts)

    def to_json(self) -> list[Any]:
        row = [
            self.name,
            self.shape,
            self.bits_w,
            self.bits_a,
            int(self.signed),
            list(self.float_counts),
            _CODINGS[self.coding],
        ]
        return row if self.zero_point is None else [*row, self.zero_point]

    @classmethod
    def from_json(cls, raw: Any) -> LayerRow:
        """Raises ValueError for anything but a sound row."""
        if not isinstance(raw, list) or len(raw) not in (7, 8) or not isinstance(raw[0], str):
            raise ValueError("a layer of its header is malformed")
        name = raw[0]
        shape = _integers(raw[1], f"{name}: shape", 1, _MAX_CHANNELS)
        if len(shape) not in (2, 4) or (
            len(shape) == 4 and (shape[2] != shape[3] or shape[2] % 2 == 0 or shape[2] > _MAX_KERNEL)
        ):
            raise ValueError(f"{name}: shape {shape} is no conv or linear layer")
        bits_w, bits_a, signed, coding = (_integer(raw[i], f"{name}: field {i}", 0, 32) for i in (2, 3, 4, 6))
        if (
            bits_w not in (*range(2, 9), 16, 32)
            or bits_a not in (*range(2, 9), 16, 32)
            or signed > 1
            or coding not in _CODING_NAMES
        ):
            raise ValueError(f"{name}: bits, sign or coding out of range")
        out, inp = shape[:2]
        counts = _integers(raw[5], f"{name}: counts", 0, _MAX_CHANNELS)
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
        zero_point = None
        if len(raw) == 8:
            if not quantized_a:
                raise ValueError(f"{name}: a float input has no zero point")
            zero_point = _integers(raw[7], f"{name}: zero point", *code_range(bits_a, bool(signed)))
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
        )


@dataclass
class OperandRow:
    """One operand of an attention product in the header."""

    name: str
    channels: int
    bits: int
    signed: bool
    has_tau: bool

    @classmethod
    def of(cls, operand: Operand) -> OperandRow:
        return cls(operand.name, operand.channels, operand.bits, operand.signed, operand.tau is not None)

    @property
    def float_counts(self) -> tuple[int, int]:
        """Lengths of step and tau."""
        return 1, self.channels if self.has_tau else 0

    def to_json(self) -> list[Any]:
        return [self.name, self.channels, self.bits, int(self.signed), int(self.has_tau)]

    @classmethod
    def from_json(cls, raw: Any) -> OperandRow:
        """Raises ValueError for anything but a sound row."""
        if not isinstance(raw, list) or len(raw) != 5 or not isinstance(raw[0], str):
            raise ValueError("an operand of its header is malformed")
        name = raw[0]
        channels = _integer(raw[1], f"{name}: channels", 1, _MAX_CHANNELS)
        bits = _integer(raw[2], f"{name}: bits", 2, 8)
        signed, has_tau = (_integer(raw[i], f"{name}: field {i}", 0, 1) for i in (3, 4))
        return cls(name, channels, bits, bool(signed), bool(has_tau))


@dataclass
class FloatRow:
    """One float tensor in the header."""

    name: str
    shape: list[int]
    bits: int

    @classmethod
    def of(cls, tensor: FloatTensor) -> FloatRow:
        return cls(tensor.name, [int(n) for n in tensor.values.shape], tensor.bits)

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def to_json(self) -> list[Any]:
        return [self.name, self.shape, self.bits]

    @classmethod
    def from_json(cls, raw: Any) -> FloatRow:
        """Raises ValueError for anything but a sound row."""
        if not isinstance(raw, list) or len(raw) != 3 or not isinstance(raw[0], str):
            raise ValueError("a float tensor of its header is malformed")
        shape = _integers(raw[1], f"{raw[0]}: shape", 1, _MAX_CHANNELS)
        if len(shape) not in (1, 2) or raw[2] not in (16, 32):
            raise ValueError(f"{raw[0]}: shape {shape} or bits are not those of a float tensor")
        return cls(raw[0], shape, _integer(raw[2], f"{raw[0]}: bits", 16, 32))


@dataclass
class Rows:
    """All parts of a network in the header."""

    layers: list[LayerRow]
    operands: list[OperandRow]
    floats: list[FloatRow]

    @classmethod
    def of(cls, model: PackedModel) -> Rows:
        return cls(
            [LayerRow.of(layer) for layer in model.layers.values()],
            [OperandRow.of(operand) for operand in model.operands.values()],
            [FloatRow.of(tensor) for tensor in model.floats.values()],
        )

    def to_json(self) -> dict[str, Any]:
        """The header's keys; those of parts that the network lacks are left out."""
        parts = {"layers": self.layers, "operands": self.operands, "floats": self.floats}
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
        """Lengths of the parts of tensor `values` behind the shortcuts, in the order of `PackedModel.float_parts`, 0 for what is not there."""
        counts = [n for layer in self.layers for n in layer.float_counts]
        counts += [n for operand in self.operands for n in operand.float_counts]
        return counts + [tensor.count for tensor in self.floats if tensor.bits == 32]

    @property
    def half_counts(self) -> list[int]:
        """Lengths of the parts of tensor `halves`."""
        return [tensor.count for tensor in self.floats if tensor.bits == 16]


def header_to_json(header: Header, rows: Rows) -> str:
    """Compact JSON; the shortcuts are left to the float values."""
    return json.dumps(
        {
            "format_version": header.format_version,
            "arch": dict(header.arch),
            "scale": header.scale,
            "depths": header.depths,
            "num_block": header.num_block,
            "ranking": header.ranking,
            "res_scale": header.res_scale,
            "img_range": header.img_range,
            "rgb_mean": header.rgb_mean,
            "head_tail_bits": header.head_tail_bits,
            "provenance": dict(header.provenance),
            **rows.to_json(),
        },
        separators=(",", ":"),
        allow_nan=False,
    )


def header_from_json(raw: dict[str, Any]) -> tuple[Header, Rows]:
    """Header (its shortcuts still empty) and rows of a parsed header. Raises ValueError naming the first field that is wrong."""
    missing = {
        "arch",
        "scale",
        "depths",
        "num_block",
        "ranking",
        "res_scale",
        "img_range",
        "rgb_mean",
        "layers",
    } - set(raw)
    if missing:
        raise ValueError(f"its header lacks {sorted(missing)}")
    if not isinstance(raw["arch"], dict) or not isinstance(raw.get("provenance", {}), dict):
        raise ValueError("arch or provenance of its header is not a table")
    num_block = _integer(raw["num_block"], "num_block", 1, _MAX_BLOCKS)
    depths = _integers(raw["depths"], "depths", 1, num_block)
    if not depths or depths != sorted(set(depths), reverse=True):
        raise ValueError(f"depths: {depths} do not descend")
    ranking = None if raw["ranking"] is None else _integers(raw["ranking"], "ranking", 0, num_block - 1)
    if ranking is not None and sorted(ranking) != list(range(num_block)):
        raise ValueError("ranking: does not name every block once")
    if ranking is None and depths != [num_block]:
        raise ValueError("ranking: missing, though there is more than one depth")
    rows = Rows.from_json(raw)
    red, green, blue = _floats(raw["rgb_mean"], "rgb_mean", 3)
    img_range, res_scale = _floats([raw["img_range"], raw["res_scale"]], "img_range, res_scale", 2)
    if img_range <= 0:
        raise ValueError(f"img_range: {img_range} is not positive")
    header = Header(
        arch=raw["arch"],
        scale=_integer(raw["scale"], "scale", 1, 64),
        depths=tuple(depths),
        num_block=num_block,
        shortcuts=(),
        ranking=None if ranking is None else tuple(ranking),
        res_scale=res_scale,
        img_range=img_range,
        rgb_mean=(red, green, blue),
        head_tail_bits=_integer(raw.get("head_tail_bits", 32), "head_tail_bits", 8, 32),
        provenance=raw.get("provenance", {}),
        format_version=raw["format_version"],
    )
    return header, rows


def check_structure(model: PackedModel) -> None:
    """Raises ValueError unless the parts are those of a network of its architecture with this header, with shapes that fit each other."""
    expected = architectures.of(model.header).expected(model)
    found = architectures.Parts(
        {name: tuple(layer.weight.shape) for name, layer in model.layers.items()},
        {name: operand.channels for name, operand in model.operands.items()},
        {name: tuple(tensor.values.shape) for name, tensor in model.floats.items()},
    )
    for kind, have, want in (
        ("layer", found.layers, expected.layers),
        ("operand", found.operands, expected.operands),
        ("float tensor", found.floats, expected.floats),
    ):
        wrong = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
        if wrong:
            raise ValueError(
                f"{kind} {wrong[0]}: has shape {have.get(wrong[0])}, expected {want.get(wrong[0])}"
            )


def _integer(value: Any, name: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name}: must be an integer in {low}..{high}")
    return value


def _integers(values: Any, name: str, low: int, high: int) -> list[int]:
    if not isinstance(values, list):
        raise ValueError(f"{name}: must be a list")
    return [_integer(value, name, low, high) for value in values]


def _floats(values: Any, name: str, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name}: must be {count} numbers")
    if not all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < _MAX_FLOAT for v in values
    ):
        raise ValueError(f"{name}: must be finite numbers")
    return [float(v) for v in values]
