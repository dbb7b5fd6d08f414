"""The operations of programs: what each reads, which attributes it has, and the shape of its
result. Imports no torch.

Values are maps (C, factor * H / shrink, factor * W / shrink) of the padded picture's height H and
width W, or, with factor 0, one number for each channel (C, 1, 1).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quantsr.deploy import shapes as shape_of
from quantsr.deploy.program import PICTURE, Operation, Program
from quantsr.deploy.shapes import OPERANDS, Parts, Shape

MAX_OPERATIONS, MAX_CHANNELS = 1 << 14, 1 << 14
MAX_NUMBER = 1e6
"""Largest magnitude of numbers in programs and headers: far beyond, squares and products of values
overflow in float32. Also refuses NaN and infinity."""
_MAX_FACTOR = _MAX_SHRINK = 64
_LEAST_FACTOR = 1e-20  # products of constants must not underflow in float32
_LEAST_EPS = 1e-12
_LEAST_RANGE = 1e-6  # of values that stand for 0 to 255


class UnknownKindError(ValueError):
    """A kind of operation that this version of quantsr does not have."""


Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Kind:
    """One kind of operation. Checks raise ValueError."""

    inputs: int | None
    """How many values it reads; None: two or more."""
    shape: Callable[[Operation, Sequence[Shape], Parts], Shape]
    """The shape of its result; checks what it reads and its parameters."""
    attributes: Mapping[str, Check]
    """Each with what its value must be."""
    optional: Mapping[str, Check] = field(default_factory=dict)
    """The same of those that an operation may lack."""
    exact: bool = True
    """Whether it rounds as IEEE 754 says, so that every engine computes it bit for bit."""
    named: bool = False
    """Whether it has a name."""


def check(program: Program, parts: Parts) -> dict[int, Shape]:
    """The shape of every value of a program at full depth. Raises ValueError, one line, for one
    that cannot run with these parameters, that does not read all of them, or that does not have
    every unit of depth once."""
    shapes = shapes_of(program, parts)
    check_use(program, parts)
    units = sorted(op.attributes["unit"] for op in program.operations if op.kind in UNITS)
    # A network without depths has one unit, and need not mark it.
    if units != list(range(parts.units)) and not (parts.units == 1 and not units):
        raise ValueError(f"program: its units are not 0 to {parts.units - 1}, once each")
    return shapes


def shapes_of(program: Program, parts: Parts) -> dict[int, Shape]:
    """The shape of every value, also of a program at a lower depth. Raises ValueError, one line,
    for a program that cannot run with these parameters."""
    if not 1 <= len(program.operations) <= MAX_OPERATIONS:
        raise ValueError(f"program: has {len(program.operations)} operations")
    shapes = {PICTURE: Shape(3, 1)}
    alone = {op.output for op in program.operations if op.kind == "linear"} & _read_once(program)
    for op in program.operations:
        check_alone(op)
        where, kind = _where(op), KINDS[op.kind]
        if op.output in shapes or any(value not in shapes for value in op.inputs):
            raise ValueError(f"{where}: reads or writes a value out of order")
        if PICTURE in op.inputs and op.kind != "normalize":
            raise ValueError(f"{where}: reads the picture, which only 'normalize' does")
        if op.kind == "window_attention":
            if program.multiple % op.attributes["window"]:
                raise ValueError(
                    f"{where}: the program's multiple, {program.multiple}, is no multiple of its windows"
                )
            if op.inputs[0] not in alone:
                raise ValueError(f"{where}: must read a linear layer that nothing else reads")
        try:
            shape = kind.shape(op, [shapes[value] for value in op.inputs], parts)
        except (ValueError, KeyError, IndexError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: {reason}") from None
        if op.kind in _OF_UNROUNDED and not all(
            x.fits(program.multiple) for x in (shapes[op.inputs[0]], shape)
        ):
            raise ValueError(f"{where}: the sides of its maps are no parts of {program.multiple} pixels")
        fits = 0 <= shape.factor <= _MAX_FACTOR and shape.shrink <= _MAX_SHRINK
        if not (1 <= shape.channels <= MAX_CHANNELS and fits):
            raise ValueError(f"{where}: gives a value of {shape}")
        shapes[op.output] = shape
    last = program.operations[-1]
    if last.kind != "picture" or any(op.kind == "picture" for op in program.operations[:-1]):
        raise ValueError("program: does not end in its only operation 'picture'")
    return shapes


def _read_once(program: Program) -> set[int]:
    """The values that one operation reads, once."""
    counts = Counter(value for op in program.operations for value in op.inputs)
    return {value for value, count in counts.items() if count == 1}


def check_alone(op: Operation) -> None:
    """Raises ValueError unless the operation is of a known kind (else UnknownKindError), with as
    many inputs and the attributes that its kind has."""
    where = _where(op)
    if op.kind not in KINDS:
        raise UnknownKindError(f"{where}: is not an operation that this version of quantsr has")
    kind = KINDS[op.kind]
    if len(op.inputs) != kind.inputs if kind.inputs is not None else len(op.inputs) < 2:
        raise ValueError(f"{where}: reads {len(op.inputs)} values")
    checks = {**kind.attributes, **kind.optional}
    if not kind.attributes.keys() <= op.attributes.keys() <= checks.keys():
        wanted = sorted(checks) or "none"
        raise ValueError(f"{where}: has the attributes {sorted(op.attributes)}, its kind has {wanted}")
    for key, value in op.attributes.items():
        if not checks[key](value):
            raise ValueError(f"{where}: its attribute {key} is out of range")
    if bool(op.name) != kind.named:
        raise ValueError(f"{where}: has {'a' if op.name else 'no'} name")


def _where(op: Operation) -> str:
    return f"program: %{op.output} {op.kind[:32]!r}"


def scale_of(program: Program, shapes: Mapping[int, Shape]) -> int:
    """The upscaling factor."""
    return shapes[program.operations[-1].output].factor


def parameters(op: Operation) -> tuple[list[str], list[str]]:
    """Names of the operands and of the float tensors of an operation."""
    if op.kind in ("layer_norm", "group_norm", "affine"):
        return [], [f"{op.name}.weight", f"{op.name}.bias"]
    if op.kind == "prelu":
        return [], [f"{op.name}.weight"]
    if op.kind == "window_attention":
        operands = [f"{op.name}.{role}" for role in OPERANDS] if op.attributes["quantized"] else []
        return operands, [f"{op.name}.relative_position_bias_table"]
    if op.kind == "rectangle_attention":
        table = "pair_bias_table" if "pairs" in op.attributes else "relative_position_bias_table"
        more = [f"beyond_{part}" for part in "kv"] if "beyond" in op.attributes else []
        more += ["temperature"] if op.attributes.get("cosine") else []
        return [], [f"{op.name}.{part}" for part in (table, *more)]
    if op.kind == "channel_attention":
        return [], [f"{op.name}.temperature"]
    return [], []


def check_use(program: Program, parts: Parts) -> None:
    """Raises ValueError unless every parameter is read, and none is missing."""
    layers = {op.name for op in program.operations if op.kind in ("conv", "linear")}
    operands: set[str] = set()
    floats: set[str] = set()
    for op in program.operations:
        left, right = parameters(op)
        operands.update(left)
        floats.update(right)
    for kind, found, wanted in (
        ("layer", set(parts.layers), layers),
        ("operand", set(parts.operands), operands),
        ("float tensor", set(parts.floats), floats),
    ):
        if wrong := sorted(found ^ wanted):
            raise ValueError(f"{kind} {wrong[0]}: {'is not read' if wrong[0] in found else 'is missing'}")


# Attributes


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def is_range(value: Any) -> bool:
    """Whether a number can be the range of values that stand for 0 to 255: 1e-6 to 1e6."""
    return _number(value) and value >= _LEAST_RANGE


def is_factor(value: Any) -> bool:
    """Whether a number can be a factor of values: 0, or of a magnitude of 1e-20 to 1e6."""
    return _number(value) and (value == 0 or abs(value) >= _LEAST_FACTOR)


def _mean_of_colours(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(_number, value))


def _integer(low: int, high: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _pair(low: int, high: int) -> Check:
    """Of rows and of columns."""
    each = _integer(low, high)
    return lambda value: isinstance(value, list | tuple) and len(value) == 2 and all(map(each, value))


def _is_eps(value: Any) -> bool:
    return _number(value) and _LEAST_EPS <= value <= 1


_COLOURS: dict[str, Check] = {"mean": _mean_of_colours, "range": is_range}
_UNIT = {"unit": _integer(0, 1 << 14)}
_EPS: dict[str, Check] = {"eps": _is_eps}

KINDS: Mapping[str, Kind] = {
    "normalize": Kind(1, shape_of.normalize, _COLOURS),
    "conv": Kind(1, shape_of.conv, {}, named=True),
    "linear": Kind(1, shape_of.linear, {}, named=True),
    "layer_norm": Kind(1, shape_of.norm, {}, _EPS, exact=False, named=True),
    "group_norm": Kind(
        1, shape_of.group_norm, {"groups": _integer(1, 1 << 14)}, _EPS, exact=False, named=True
    ),
    "window_attention": Kind(
        1,
        shape_of.window_attention,
        {
            "heads": _integer(1, 1 << 12),
            "window": _integer(2, 64),
            "shift": _integer(0, 63),
            "quantized": _integer(0, 1),
        },
        {"overlap": _integer(1, 32)},
        exact=False,
        named=True,
    ),
    "rectangle_attention": Kind(
        3,
        shape_of.rectangle_attention,
        {
            "heads": _integer(1, 1 << 12),
            "window": _pair(1, 64),
            "shift": _pair(0, 63),
            "multiple": _integer(1, 64),
        },
        {"pairs": _integer(1, 1), "beyond": _integer(1, 1), "cosine": _integer(0, 1)},
        exact=False,
        named=True,
    ),
    "channel_attention": Kind(
        3, shape_of.channel_attention, {"heads": _integer(1, 1 << 12)}, exact=False, named=True
    ),
    "global_attention": Kind(
        3, shape_of.global_attention, {"heads": _integer(1, 1 << 12)}, exact=False, named=True
    ),
    "relu": Kind(1, shape_of.same, {}),
    "leaky_relu": Kind(1, shape_of.same, {"slope": is_factor}),
    "prelu": Kind(1, shape_of.prelu, {}, named=True),
    "gelu": Kind(1, shape_of.same, {}, exact=False),
    "sigmoid": Kind(1, shape_of.same, {}, exact=False),
    "silu": Kind(1, shape_of.same, {}, exact=False),
    "mish": Kind(1, shape_of.same, {}, exact=False),
    "tanh": Kind(1, shape_of.same, {}, exact=False),
    "affine": Kind(1, shape_of.norm, {}, exact=False, named=True),
    "add": Kind(2, shape_of.broadcast, {}),
    "subtract": Kind(2, shape_of.equal, {}),
    "multiply": Kind(2, shape_of.broadcast, {}),
    "scale": Kind(1, shape_of.same, {"factor": is_factor}),
    "concat": Kind(None, shape_of.concat, {}),
    "slice": Kind(1, shape_of.slice, {"start": _integer(0, 1 << 14), "stop": _integer(1, 1 << 14)}),
    "pixel_shuffle": Kind(1, shape_of.pixel_shuffle, {"factor": _integer(2, 16)}),
    "pixel_unshuffle": Kind(1, shape_of.pixel_unshuffle, {"factor": _integer(2, 16)}),
    "upsample_nearest": Kind(1, shape_of.upsample, {"factor": _integer(2, 16)}),
    "upsample_bilinear": Kind(1, shape_of.upsample, {"factor": _integer(2, 16)}, exact=False),
    "max_pool": Kind(1, shape_of.max_pool, {"factor": _integer(2, 64)}),
    "resize_nearest": Kind(1, shape_of.resize, {"factor": _integer(1, 64)}),
    "mean": Kind(1, shape_of.mean, {}, exact=False),
    "shortcut": Kind(2, shape_of.equal, _UNIT),
    "around": Kind(2, shape_of.equal, _UNIT),
    "picture": Kind(1, shape_of.picture, _COLOURS),
}
"""Every kind of operation, by its name in programs. What each computes is in
docs/reference/formats.md."""

UNITS = ("shortcut", "around")
"""Kinds that end a unit of depth: `s * x + branch` and `y + (s - 1) * x` of `(x, branch)` or `(x,
y)`, with the unit's shortcut s."""


ATTENTION = ("window_attention", "rectangle_attention", "channel_attention", "global_attention")
"""Kinds with two products of values that depend on the picture."""

_OF_UNROUNDED = (
    "pixel_shuffle",
    "pixel_unshuffle",
    "upsample_nearest",
    "upsample_bilinear",
    "rectangle_attention",
)
"""Kinds that read and give maps whose sides are parts of the picture's without rounding, whatever
its size."""

_OF_WHOLE_PICTURES = ("mean", "group_norm", *ATTENTION)
"""Kinds whose pixels depend on far ones."""


def halo(program: Program, shapes: Mapping[int, Shape], sizes: Mapping[str, int]) -> int | None:
    """Pixels of the picture that a pixel of the result depends on, on each side; None where it
    depends on all of it. Where maps are shrunk, of pictures whose sides are multiples of `grid`.

    Args:
        sizes: side of the kernel of every conv.
    """
    reach: dict[int, float] = {PICTURE: 0.0}
    for op in program.operations:
        if op.kind in _OF_WHOLE_PICTURES:
            return None
        before = max(reach[value] for value in op.inputs)
        if op.kind == "conv":
            before += (sizes[op.name] // 2) * _width_of_pixel(shapes[op.inputs[0]])
        elif op.kind == "upsample_bilinear":
            before += _width_of_pixel(shapes[op.inputs[0]])
        elif op.kind in ("max_pool", "pixel_unshuffle"):
            before += _width_of_pixel(shapes[op.output]) - _width_of_pixel(shapes[op.inputs[0]])
        reach[op.output] = before
    return math.ceil(reach[program.operations[-1].output])


def _width_of_pixel(shape: Shape) -> float:
    """In pixels of the picture; of one number for each channel, which no convolution widens, 0."""
    return shape.shrink / shape.factor if shape.factor else 0.0


def grid(program: Program, shapes: Mapping[int, Shape]) -> int:
    """What sides of tiles are multiples of, so that their windows and pools are those of a whole
    picture whose sides are, too."""
    return math.lcm(
        program.multiple, *zero_multiples(program, shapes), *(shape.shrink for shape in shapes.values())
    )


def zero_multiples(program: Program, shapes: Mapping[int, Shape]) -> list[int]:
    """The pixels of the picture to whose multiples zeros continue maps."""
    return [
        op.attributes["multiple"] * shapes[op.output].shrink
        for op in program.operations
        if op.kind == "rectangle_attention"
    ]
