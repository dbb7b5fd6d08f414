"""The header of a packed network as JSON, and every check on it. A header that passes can be run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from quantsr.deploy.bitstream import DENSE, HUFFMAN
from quantsr.deploy.model import Header, PackedModel, QuantizedLayer, code_range, upsample_stages
from quantsr.errors import InputError

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
            or bits_a not in (*range(2, 9), 32)
            or signed > 1
            or coding not in _CODING_NAMES
        ):
            raise ValueError(f"{name}: bits, sign or coding out of range")
        out, inp = shape[:2]
        counts = _integers(raw[5], f"{name}: counts", 0, _MAX_CHANNELS)
        quantized_w, quantized_a = bits_w <= 8, bits_a <= 8
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


def header_to_json(header: Header, rows: list[LayerRow]) -> str:
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
            "layers": [row.to_json() for row in rows],
        },
        separators=(",", ":"),
        allow_nan=False,
    )


def header_from_json(raw: dict[str, Any]) -> tuple[Header, list[LayerRow]]:
    """Header (its shortcuts still empty) and layer rows of a parsed header. Raises ValueError naming the first field that is wrong."""
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
    if not isinstance(raw["layers"], list):
        raise ValueError("layers: is not a list")
    rows = [LayerRow.from_json(row) for row in raw["layers"]]
    if len({row.name for row in rows}) != len(rows):
        raise ValueError("layers: a name appears twice")
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
    """Raises ValueError unless the layers are those of a QuantSR-C with this header, with shapes that fit each other."""
    header = model.header
    if header.arch.get("type") not in ("QuantSR_C", "QEDSR_Ours"):
        raise ValueError(f"architecture '{header.arch.get('type')}' is unknown")
    expected = expected_shapes(model)
    found = {name: tuple(layer.weight.shape) for name, layer in model.layers.items()}
    if found != expected:
        wrong = sorted(
            name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
        )
        raise ValueError(
            f"layer {wrong[0]}: has shape {found.get(wrong[0])}, expected {expected.get(wrong[0])}"
        )


def expected_shapes(model: PackedModel) -> dict[str, tuple[int, ...]]:
    """Shape of every layer of a QuantSR-C whose width is that of its conv_first. Raises ValueError for an impossible header."""
    header = model.header
    if "conv_first" not in model.layers:
        raise ValueError("layer conv_first: is missing")
    feat = model.layers["conv_first"].out_channels
    try:
        stages = upsample_stages(header.scale)
        used = sorted({i for depth in header.depths for i in header.blocks_kept(depth)})
    except InputError as error:
        raise ValueError(str(error)) from error
    square = (feat, feat, 3, 3)
    return {
        "conv_first": (feat, 3, 3, 3),
        **{f"body.{i}.{conv}": square for i in used for conv in ("conv1", "conv2")},
        "conv_after_body": square,
        **{name: (feat * factor**2, feat, 3, 3) for name, factor in stages},
        "conv_last": (3, feat, 3, 3),
    }


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
