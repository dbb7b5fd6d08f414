"""The header of a packed network as JSON, and every check on it. A header that passes can be
run."""

from __future__ import annotations

import json
from typing import Any

from quantsr.deploy import memory, operations
from quantsr.deploy.packed import written
from quantsr.deploy.packed.description import Header
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.packed.rows import Rows, integer, integers
from quantsr.deploy.passes import units
from quantsr.deploy.program import Program
from quantsr.deploy.shapes import Parts
from quantsr.errors import InputError
from quantsr.trained_files.packed_header import FORMAT_WITHOUT_RANGES

_MAX_BLOCKS = 1 << 10
_PIXEL_BITS = 8
_HEAD_TAIL_BITS = (8, 16, 32)


def header_to_json(header: Header, rows: Rows, program: Program | None) -> str:
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
            **({} if program is None else {"program": written.to_json(program)}),
        },
        separators=(",", ":"),
        allow_nan=False,
    )


def header_from_json(raw: dict[str, Any]) -> tuple[Header, Rows, Program | None]:
    """Header (its shortcuts still empty), rows and program of a parsed header. Raises ValueError
    naming the first field that is wrong."""
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
    if not isinstance(raw["arch"].get("type", ""), str):
        raise ValueError("arch.type: must be a string")
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
    if not operations.is_range(img_range):
        raise ValueError(f"img_range: {img_range} is not between 1e-6 and 1e6")
    if not operations.is_factor(res_scale):
        raise ValueError(f"res_scale: {res_scale} is not 0, but too small")
    head_tail_bits = raw.get("head_tail_bits", 32)
    if head_tail_bits not in _HEAD_TAIL_BITS or isinstance(head_tail_bits, float):
        raise ValueError(f"head_tail_bits: must be one of {', '.join(map(str, _HEAD_TAIL_BITS))}")
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
        head_tail_bits=head_tail_bits,
        provenance=raw.get("provenance", {}),
        format_version=raw["format_version"],
    )
    if "program" not in raw:
        return header, rows, None
    if header.format_version <= FORMAT_WITHOUT_RANGES:
        raise ValueError("program: needs format version 3")
    return header, rows, written.from_json(raw["program"])


def parts_of(model: PackedModel) -> Parts:
    """Shapes of the parts, as `operations.check` takes them."""
    return Parts(
        {name: tuple(layer.weight.shape) for name, layer in model.layers.items()},
        {name: operand.channels for name, operand in model.operands.items()},
        {name: tuple(tensor.values.shape) for name, tensor in model.floats.items()},
        model.header.num_block,
        {name: layer.groups for name, layer in model.layers.items() if layer.groups > 1},
    )


def check_structure(model: PackedModel) -> None:
    """Raises ValueError unless the parts are those that the network's program reads at any depth,
    with shapes that fit each other."""
    header, parts = model.header, parts_of(model)
    try:
        used = {i for depth in header.depths for i in header.blocks_kept(depth)}
    except InputError as error:
        raise ValueError(str(error)) from error
    shapes = operations.check(model.program, parts)
    operations.check_use(units.without(model.program, used), parts)
    memory.check(model.program, shapes, parts)
    _check_zero_points(model)
    if operations.scale_of(model.program, shapes) != header.scale:
        raise ValueError(f"scale: {header.scale} is not that of its program")


def _check_zero_points(model: PackedModel) -> None:
    """Raises ValueError unless layers with zero points are 8-bit convolutions of the normalized
    picture, and the zero points are among their codes."""
    program = model.program
    pictures = {op.output for op in program.operations if op.kind == "normalize"}
    for op in program.operations:
        if op.kind not in ("conv", "linear") or model.layers[op.name].act_zero_point is None:
            continue
        layer = model.layers[op.name]
        if op.kind != "conv" or layer.bits_a != _PIXEL_BITS or op.inputs[0] not in pictures:
            raise ValueError(f"{op.name}: only a convolution of the picture, of 8-bit codes, has zero points")
        low, high = layer.act_range
        if (layer.zero_point() < low).any() or (layer.zero_point() > high).any():
            raise ValueError(f"{op.name}: its zero points are not among its codes, {low} to {high}")


def described_program(model: PackedModel) -> str:
    """The listing of the network's program: each value's channels and its height and width over
    those of the picture, and the bits of layers."""
    comments = {}
    shapes = operations.check(model.program, parts_of(model))
    for op in model.program.operations:
        comments[op.output] = str(shapes[op.output])
        if (layer := model.layers.get(op.name)) is not None:
            comments[op.output] += f", weight {layer.bits_w} bits, input {layer.bits_a} bits"
    return model.program.listing(comments)


def _floats(values: Any, name: str, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name}: must be {count} numbers")
    if not all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= operations.MAX_NUMBER
        for v in values
    ):
        raise ValueError(f"{name}: must be numbers up to 1e6")
    return [float(v) for v in values]
