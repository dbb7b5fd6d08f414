"""The operations of programs: what each reads, which attributes it has, and the shape of its
result. Imports no torch.

Values are maps (C, factor * H, factor * W) of the padded picture's height H and width W, or, with
factor 0, one number for each channel (C, 1, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantsr.deploy.program import PICTURE, Operation, Program

_MAX_FACTOR, _MAX_CHANNELS, _MAX_OPERATIONS = 64, 1 << 14, 1 << 14
_MAX_NUMBER = 1e30  # also refuses NaN and infinity


@dataclass(frozen=True)
class Shape:
    """Of a value."""

    channels: int
    factor: int
    """Of its height and width over those of the picture; 0: one number for each channel."""


@dataclass(frozen=True)
class Parts:
    """Shapes of a network's parameters by name; of an operand its channels."""

    layers: Mapping[str, tuple[int, ...]]
    operands: Mapping[str, int]
    floats: Mapping[str, tuple[int, ...]]
    units: int
    """Of depth."""


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
    exact: bool = True
    """Whether it rounds as IEEE 754 says, so that every engine computes it bit for bit."""
    named: bool = False
    """Whether it has a name."""


def check(program: Program, parts: Parts) -> dict[int, Shape]:
    """The shape of every value. Raises ValueError, one line, for a program that cannot run with
    these parameters, or that does not read all of them."""
    if not 1 <= len(program.operations) <= _MAX_OPERATIONS:
        raise ValueError(f"program: has {len(program.operations)} operations")
    shapes = {PICTURE: Shape(3, 1)}
    for op in program.operations:
        check_alone(op)
        where, kind = _where(op), KINDS[op.kind]
        if op.output in shapes or any(value not in shapes for value in op.inputs):
            raise ValueError(f"{where}: reads or writes a value out of order")
        if op.kind == "window_attention":
            _check_attention(op, program)
        try:
            shape = kind.shape(op, [shapes[value] for value in op.inputs], parts)
        except (ValueError, KeyError, IndexError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: {reason}") from None
        if not (1 <= shape.channels <= _MAX_CHANNELS and 0 <= shape.factor <= _MAX_FACTOR):
            raise ValueError(f"{where}: gives {shape.channels} channels at {shape.factor} times the size")
        shapes[op.output] = shape
    last = program.operations[-1]
    if last.kind != "picture" or any(op.kind == "picture" for op in program.operations[:-1]):
        raise ValueError("program: does not end in its only operation 'picture'")
    _check_use(program, parts)
    return shapes


def check_alone(op: Operation) -> None:
    """Raises ValueError unless the operation is of a known kind, with as many inputs and the
    attributes that its kind has."""
    where = _where(op)
    if op.kind not in KINDS:
        raise ValueError(f"{where}: is not an operation that this version of quantsr has")
    kind = KINDS[op.kind]
    if len(op.inputs) != kind.inputs if kind.inputs is not None else len(op.inputs) < 2:
        raise ValueError(f"{where}: reads {len(op.inputs)} values")
    if op.attributes.keys() != kind.attributes.keys() or not all(
        kind.attributes[key](value) for key, value in op.attributes.items()
    ):
        raise ValueError(f"{where}: its attributes are {sorted(op.attributes)} or out of range")
    if bool(op.name) != kind.named:
        raise ValueError(f"{where}: has {'a' if op.name else 'no'} name")


def _check_attention(op: Operation, program: Program) -> None:
    if program.multiple % op.attributes["window"]:
        raise ValueError(f"{_where(op)}: pictures are no multiples of its window")
    source = program.producer(op.inputs[0])
    readers = [x for x in program.operations if op.inputs[0] in x.inputs]
    if source is None or source.kind != "linear" or len(readers) != 1:
        raise ValueError(f"{_where(op)}: does not alone read a linear layer")


def _where(op: Operation) -> str:
    return f"program: %{op.output} {op.kind[:32]!r}"


def scale_of(program: Program, shapes: Mapping[int, Shape]) -> int:
    """The upscaling factor."""
    return shapes[program.operations[-1].output].factor


def parameters(op: Operation) -> tuple[list[str], list[str]]:
    """Names of the operands and of the float tensors of an operation."""
    if op.kind == "layer_norm":
        return [], [f"{op.name}.weight", f"{op.name}.bias"]
    if op.kind == "prelu":
        return [], [f"{op.name}.weight"]
    if op.kind == "window_attention":
        operands = [f"{op.name}.{role}" for role in OPERANDS] if op.attributes["quantized"] else []
        return operands, [f"{op.name}.relative_position_bias_table"]
    return [], []


OPERANDS = ("scores.left", "scores.right", "mixture.left", "mixture.right")
"""Of window attention: q, k, the probabilities, v."""


def _check_use(program: Program, parts: Parts) -> None:
    """Raises ValueError unless every parameter is read and units are numbered once each."""
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
    units = [op.attributes["unit"] for op in program.operations if op.kind in UNITS]
    if len(set(units)) != len(units) or any(unit >= parts.units for unit in units):
        raise ValueError("program: a unit is numbered twice or out of range")


# Shapes


def _same(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    return inputs[0]


def _equal(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    if inputs[0] != inputs[1]:
        raise ValueError(f"values of {inputs[0]} and {inputs[1]} differ in shape")
    return inputs[0]


def _broadcast(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    large, small = sorted(inputs, key=lambda shape: -shape.factor)
    if small.factor not in (0, large.factor) or small.channels not in (1, large.channels):
        raise ValueError("its values do not fit each other")
    return large


def _normalize(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    if op.inputs != (PICTURE,):
        raise ValueError("reads another value than the picture")
    return Shape(3, 1)


def _conv(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    shape = parts.layers[op.name]
    if len(shape) != 4 or shape[1] != inputs[0].channels:
        raise ValueError(f"{op.name} has a weight of shape {shape}, for {inputs[0].channels} channels")
    return Shape(shape[0], inputs[0].factor)


def _linear(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    shape = parts.layers[op.name]
    if len(shape) != 2 or shape[1] != inputs[0].channels:
        raise ValueError(f"{op.name} has a weight of shape {shape}, for {inputs[0].channels} channels")
    return Shape(shape[0], inputs[0].factor)


def _layer_norm(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    for part in ("weight", "bias"):
        _require_shape(parts.floats, f"{op.name}.{part}", (inputs[0].channels,))
    return inputs[0]


def _prelu(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    if parts.floats[f"{op.name}.weight"] != (1,):  # one slope for all channels
        _require_shape(parts.floats, f"{op.name}.weight", (inputs[0].channels,))
    return inputs[0]


def _window_attention(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    heads, window, shift = (op.attributes[key] for key in ("heads", "window", "shift"))
    channels = inputs[0].channels // 3
    if inputs[0].channels % 3 or channels % heads or inputs[0].factor != 1 or shift >= window:
        raise ValueError(f"{inputs[0].channels} channels, {heads} heads and windows of {window} do not fit")
    _require_shape(parts.floats, f"{op.name}.relative_position_bias_table", ((2 * window - 1) ** 2, heads))
    if op.attributes["quantized"]:
        for role in OPERANDS:
            wanted = window**2 if role == "mixture.left" else channels
            if parts.operands[f"{op.name}.{role}"] != wanted:
                raise ValueError(f"{op.name}.{role} does not have {wanted} channels")
    return Shape(channels, 1)


def _concat(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    if len({shape.factor for shape in inputs}) != 1:
        raise ValueError("its values differ in size")
    return Shape(sum(shape.channels for shape in inputs), inputs[0].factor)


def _slice(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    start, stop = op.attributes["start"], op.attributes["stop"]
    if not start < stop <= inputs[0].channels:
        raise ValueError(f"channels {start} to {stop} of {inputs[0].channels}")
    return Shape(stop - start, inputs[0].factor)


def _pixel_shuffle(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    factor = op.attributes["factor"]
    if inputs[0].channels % factor**2:
        raise ValueError(f"{inputs[0].channels} channels are not a multiple of {factor**2}")
    return Shape(inputs[0].channels // factor**2, inputs[0].factor * factor)


def _upsample(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    return Shape(inputs[0].channels, inputs[0].factor * op.attributes["factor"])


def _mean(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    return Shape(inputs[0].channels, 0)


def _picture(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    if inputs[0].channels != 3 or inputs[0].factor < 1:
        raise ValueError(f"{inputs[0].channels} channels are not a picture's")
    return inputs[0]


def _require_shape(parts: Mapping[str, tuple[int, ...]], name: str, shape: tuple[int, ...]) -> None:
    if parts[name] != shape:
        raise ValueError(f"{name} has shape {parts[name]}, not {shape}")


# Attributes


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _mean_of_colours(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(_number, value))


def _integer(low: int, high: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


_COLOURS: dict[str, Check] = {"mean": _mean_of_colours, "range": _positive}
_UNIT = {"unit": _integer(0, 1 << 14)}

KINDS: Mapping[str, Kind] = {
    "normalize": Kind(1, _normalize, _COLOURS),
    "conv": Kind(1, _conv, {}, named=True),
    "linear": Kind(1, _linear, {}, named=True),
    "layer_norm": Kind(1, _layer_norm, {}, exact=False, named=True),
    "window_attention": Kind(
        1,
        _window_attention,
        {
            "heads": _integer(1, 1 << 12),
            "window": _integer(2, 64),
            "shift": _integer(0, 63),
            "quantized": _integer(0, 1),
        },
        exact=False,
        named=True,
    ),
    "relu": Kind(1, _same, {}),
    "leaky_relu": Kind(1, _same, {"slope": _number}),
    "prelu": Kind(1, _prelu, {}, named=True),
    "gelu": Kind(1, _same, {}, exact=False),
    "sigmoid": Kind(1, _same, {}, exact=False),
    "silu": Kind(1, _same, {}, exact=False),
    "tanh": Kind(1, _same, {}, exact=False),
    "add": Kind(2, _broadcast, {}),
    "subtract": Kind(2, _equal, {}),
    "multiply": Kind(2, _broadcast, {}),
    "scale": Kind(1, _same, {"factor": _number}),
    "concat": Kind(None, _concat, {}),
    "slice": Kind(1, _slice, {"start": _integer(0, 1 << 14), "stop": _integer(1, 1 << 14)}),
    "pixel_shuffle": Kind(1, _pixel_shuffle, {"factor": _integer(2, 16)}),
    "upsample_nearest": Kind(1, _upsample, {"factor": _integer(2, 16)}),
    "upsample_bilinear": Kind(1, _upsample, {"factor": _integer(2, 16)}, exact=False),
    "mean": Kind(1, _mean, {}, exact=False),
    "shortcut": Kind(2, _equal, _UNIT),
    "around": Kind(2, _equal, _UNIT),
    "picture": Kind(1, _picture, _COLOURS),
}
"""Every kind of operation, by its name in programs. `docs/formats.md` says what each computes."""

UNITS = ("shortcut", "around")
"""Kinds that end a unit of depth: `s * x + branch` and `y + (s - 1) * x` of `(x, branch)` or `(x,
y)`, with the unit's shortcut s."""


def halo(program: Program, shapes: Mapping[int, Shape], sizes: Mapping[str, int]) -> int | None:
    """Pixels of the picture that a pixel of the result depends on, on each side; None where it
    depends on all of it.

    Args:
        sizes: side of the kernel of every conv.
    """
    reach: dict[int, float] = {PICTURE: 0.0}
    for op in program.operations:
        if op.kind in ("mean", "window_attention"):
            return None
        before = max(reach[value] for value in op.inputs)
        if op.kind == "conv":
            # at `factor` times the size a pixel of the picture is that many wide
            before += (sizes[op.name] // 2) / shapes[op.inputs[0]].factor
        elif op.kind == "upsample_bilinear":
            before += 1 / shapes[op.inputs[0]].factor
        reach[op.output] = before
    return math.ceil(reach[program.operations[-1].output])
