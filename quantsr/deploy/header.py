"""The header of a packed network as JSON, and every check on it. A header that passes can be
run."""

from __future__ import annotations

import json
from typing import Any

from quantsr.deploy import architectures
from quantsr.deploy.architecture import Parts
from quantsr.deploy.model import Header, PackedModel
from quantsr.deploy.rows import Rows, integer, integers

_MAX_BLOCKS = 1 << 10
_MAX_FLOAT = 1e30  # also refuses NaN and infinity


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
    """Header (its shortcuts still empty) and rows of a parsed header. Raises ValueError naming the
    first field that is wrong."""
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
    num_block = integer(raw["num_block"], "num_block", 1, _MAX_BLOCKS)
    depths = integers(raw["depths"], "depths", 1, num_block)
    if not depths or depths != sorted(set(depths), reverse=True):
        raise ValueError(f"depths: {depths} do not descend")
    ranking = None if raw["ranking"] is None else integers(raw["ranking"], "ranking", 0, num_block - 1)
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
        scale=integer(raw["scale"], "scale", 1, 64),
        depths=tuple(depths),
        num_block=num_block,
        shortcuts=(),
        ranking=None if ranking is None else tuple(ranking),
        res_scale=res_scale,
        img_range=img_range,
        rgb_mean=(red, green, blue),
        head_tail_bits=integer(raw.get("head_tail_bits", 32), "head_tail_bits", 8, 32),
        provenance=raw.get("provenance", {}),
        format_version=raw["format_version"],
    )
    return header, rows


def check_structure(model: PackedModel) -> None:
    """Raises ValueError unless the parts are those of a network of its architecture with this
    header, with shapes that fit each other."""
    expected = architectures.of(model.header).expected(model)
    found = Parts(
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


def _floats(values: Any, name: str, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name}: must be {count} numbers")
    if not all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < _MAX_FLOAT for v in values
    ):
        raise ValueError(f"{name}: must be finite numbers")
    return [float(v) for v in values]
