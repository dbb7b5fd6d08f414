"""The shape of what each kind of operation gives, and what it checks: its values and its
parameters. Imports no torch.

Each function raises ValueError, or KeyError for a parameter that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from quantsr.deploy.program import PICTURE, Operation

OPERANDS = ("scores.left", "scores.right", "mixture.left", "mixture.right")
"""Of window attention: q, k, the probabilities, v."""


@dataclass(frozen=True)
class Shape:
    """Of a value."""

    channels: int
    """C of the map (C, factor * H / shrink, factor * W / shrink), at least 1."""
    factor: int
    """Of its height and width over those of the picture; 0: one number for each channel."""
    shrink: int = 1
    """What they are divided by, rounded down, at least to 1; it has no divisor in common with the
    factor."""

    @property
    def size(self) -> tuple[int, int]:
        """What two maps of the same height and width have in common."""
        return self.factor, self.shrink

    def fits(self, multiple: int) -> bool:
        """Whether its sides need no rounding, of pictures whose sides are multiples of a number."""
        return multiple * self.factor % self.shrink == 0

    def area(self, height: int, width: int) -> int:
        """Pixels, of a picture of that many rows and columns."""
        rows, columns = (max(1, side * self.factor // self.shrink) for side in (height, width))
        return rows * columns

    def __str__(self) -> str:
        """As in listings of programs: `64 x h/2 x w/2`."""
        if not self.factor:
            return f"{self.channels} x 1 x 1"
        share = f"/{self.shrink}" if self.shrink > 1 else ""
        return f"{self.channels} x {self.factor}h{share} x {self.factor}w{share}"


@dataclass(frozen=True)
class Parts:
    """Shapes of a network's parameters by name."""

    layers: Mapping[str, tuple[int, ...]]
    """Of weights: (O, I / G, k, k) of a convolution of G groups, (O, I) of a linear layer."""
    operands: Mapping[str, int]
    """Sizes of the last dimension of operands of attention products: channels, or positions in a
    window."""
    floats: Mapping[str, tuple[int, ...]]
    """Of float tensors: (C,), (heads,), or (positions, heads) of a table of relative position
    biases."""
    units: int
    """Number of units of depth."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Of convolutions with more than one."""


def same(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    return inputs[0]


def equal(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    if inputs[0] != inputs[1]:
        raise ValueError(f"values of {inputs[0]} and {inputs[1]} differ in shape")
    return inputs[0]


def broadcast(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    large, small = sorted(inputs, key=lambda shape: (-shape.factor, -shape.channels))
    if small.size not in ((0, 1), large.size) or small.channels not in (1, large.channels):
        raise ValueError("its values do not fit each other")
    return large


def normalize(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    if op.inputs != (PICTURE,):
        raise ValueError("reads another value than the picture")
    return Shape(3, 1)


def conv(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    shape, groups = parts.layers[op.name], parts.groups.get(op.name, 1)
    if len(shape) != 4 or shape[1] * groups != inputs[0].channels or shape[0] % groups:
        raise ValueError(f"{op.name} has a weight of shape {shape}, for {inputs[0].channels} channels")
    return replace(inputs[0], channels=shape[0])


def linear(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    shape = parts.layers[op.name]
    if len(shape) != 2 or shape[1] != inputs[0].channels:
        raise ValueError(f"{op.name} has a weight of shape {shape}, for {inputs[0].channels} channels")
    return replace(inputs[0], channels=shape[0])


def norm(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    for part in ("weight", "bias"):
        _require_shape(parts.floats, f"{op.name}.{part}", (inputs[0].channels,))
    return inputs[0]


def group_norm(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    _require_map(inputs[0])
    if inputs[0].channels % op.attributes["groups"]:
        raise ValueError(f"{inputs[0].channels} channels are no {op.attributes['groups']} equal groups")
    return norm(op, inputs, parts)


def prelu(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    if parts.floats[f"{op.name}.weight"] != (1,):  # one slope for all channels
        _require_shape(parts.floats, f"{op.name}.weight", (inputs[0].channels,))
    return inputs[0]


def window_attention(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    heads, window, shift = (op.attributes[key] for key in ("heads", "window", "shift"))
    channels = inputs[0].channels // 3
    if inputs[0].channels % 3 or channels % heads or inputs[0].size != (1, 1) or shift >= window:
        raise ValueError(f"{inputs[0].channels} channels, {heads} heads and windows of {window} do not fit")
    overlap = op.attributes.get("overlap", 0)
    if overlap and (shift or op.attributes["quantized"]):
        raise ValueError("windows that overlap are neither shifted nor of codes")
    rows = (2 * (window + overlap) - 1) ** 2
    _require_shape(parts.floats, f"{op.name}.relative_position_bias_table", (rows, heads))
    if op.attributes["quantized"]:
        for role in OPERANDS:
            wanted = window**2 if role == "mixture.left" else channels
            if parts.operands[f"{op.name}.{role}"] != wanted:
                raise ValueError(f"{op.name}.{role} does not have {wanted} channels")
    return Shape(channels, 1)


def rectangle_attention(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    heads, multiple = op.attributes["heads"], op.attributes["multiple"]
    shape = _of_q_k_v(inputs, heads)
    if shape.factor != 1:
        raise ValueError("reads maps that are larger than the picture")
    rows, columns = op.attributes["window"]
    down, right = op.attributes["shift"]
    if multiple % rows or multiple % columns or down >= rows or right >= columns:
        raise ValueError(
            f"windows of {rows} x {columns}, shifts by {down} and {right} and multiples of {multiple} do not fit"
        )
    if "pairs" in op.attributes:
        _require_shape(parts.floats, f"{op.name}.pair_bias_table", ((rows * columns) ** 2, heads))
    else:
        positions = (2 * rows - 1) * (2 * columns - 1)
        _require_shape(parts.floats, f"{op.name}.relative_position_bias_table", (positions, heads))
    if "beyond" in op.attributes:
        for part in "kv":
            _require_shape(parts.floats, f"{op.name}.beyond_{part}", (shape.channels,))
    if op.attributes.get("cosine"):
        _require_shape(parts.floats, f"{op.name}.temperature", (heads,))
    return shape


def channel_attention(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    heads = op.attributes["heads"]
    shape = _of_q_k_v(inputs, heads)
    _require_map(shape)
    _require_shape(parts.floats, f"{op.name}.temperature", (heads,))
    return shape


def global_attention(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    heads, (q, k, v) = op.attributes["heads"], inputs
    if q.channels != k.channels or k.size != v.size or q.channels % heads or v.channels % heads:
        raise ValueError(f"values of {q}, {k}, {v} are no q, k and v of {heads} heads")
    for shape in inputs:
        _require_map(shape)
    return replace(q, channels=v.channels)


def _of_q_k_v(inputs: Sequence[Shape], heads: int) -> Shape:
    """Their shape, which must be one."""
    if len(set(inputs)) > 1 or inputs[0].channels % heads:
        names = ", ".join(map(str, inputs))
        raise ValueError(f"values of {names} are no q, k and v of {heads} heads")
    return inputs[0]


def concat(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    if len({shape.size for shape in inputs}) != 1:
        raise ValueError("its values differ in size")
    return replace(inputs[0], channels=sum(shape.channels for shape in inputs))


def slice(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    start, stop = op.attributes["start"], op.attributes["stop"]
    if not start < stop <= inputs[0].channels:
        raise ValueError(f"channels {start} to {stop} of {inputs[0].channels}")
    return replace(inputs[0], channels=stop - start)


def pixel_shuffle(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    factor = op.attributes["factor"]
    if inputs[0].channels % factor**2:
        raise ValueError(f"{inputs[0].channels} channels are not a multiple of {factor**2}")
    return _resized(inputs[0], inputs[0].channels // factor**2, Fraction(factor))


def pixel_unshuffle(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    factor = op.attributes["factor"]
    return _resized(inputs[0], inputs[0].channels * factor**2, Fraction(1, factor))


def upsample(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    return _resized(inputs[0], inputs[0].channels, Fraction(op.attributes["factor"]))


def max_pool(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    return _resized(inputs[0], inputs[0].channels, Fraction(1, op.attributes["factor"]))


def resize(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    _require_map(inputs[0])
    return Shape(inputs[0].channels, op.attributes["factor"])


def mean(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    return Shape(inputs[0].channels, 0)


def picture(op: Operation, inputs: Sequence[Shape], parts: Parts) -> Shape:
    if inputs[0].channels != 3 or inputs[0].factor < 1 or inputs[0].shrink > 1:
        raise ValueError(f"{inputs[0].channels} channels are not a picture's")
    return inputs[0]


def _require_map(shape: Shape) -> None:
    if not shape.factor:
        raise ValueError("reads one number for each channel, not a map")


def _resized(shape: Shape, channels: int, growth: Fraction) -> Shape:
    """Of a map with sides `growth` times those of another."""
    _require_map(shape)
    sides = Fraction(shape.factor, shape.shrink) * growth
    return Shape(channels, sides.numerator, sides.denominator)


def _require_shape(parts: Mapping[str, tuple[int, ...]], name: str, shape: tuple[int, ...]) -> None:
    if parts[name] != shape:
        raise ValueError(f"{name} has shape {parts[name]}, not {shape}")
