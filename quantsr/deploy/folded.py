"""Folded programs: what engines run. Imports no torch.

A folded program is a network at one depth with steps, zero points, shortcuts and factors turned
into the constants of few operations (`passes.fold`). Engines implement these operations, once for
all networks, and share every constant to the last bit.

Values are maps (C, h, w) of float32 or of integer codes. With `passes.layout`, values of
transformers are tokens (L, C) as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.packed.model import Codes, Float

LARGEST_CODE = 255
"""Of 8 bits; 16-bit codes are beyond."""
Limits = tuple[int, int]
"""Smallest and largest code."""


def is_wide(limits: Limits) -> bool:
    """Whether codes are those of 16 bits, which do not fit in a byte."""
    return limits[1] - limits[0] > LARGEST_CODE


NORM_EPS = 1e-5
"""Added to the variance in LayerNorm where the operation does not say otherwise."""
LEAST_LENGTH = 1e-12
"""What a channel over all pixels is divided by, at least, so that it has the length 1."""
MASKED = -100.0
"""Added to the score of two tokens that were no neighbours before the cyclic shift, as in
SwinIR."""


@dataclass(frozen=True, eq=False)
class Quantize:
    """Floats to codes: `clip(rint((x + tau) / step), *limits)`, division and all."""

    name: str
    limits: Limits
    step: Float
    """(1,) or, equalized, (C,)."""
    tau: Float
    """(C,)"""


@dataclass(frozen=True, eq=False)
class Requantize:
    """Floats to codes: `clip(rint(x * multiplier + shift), *limits)`; product rounded before the
    sum."""

    name: str
    multiplier: Float
    """() or, for each channel, (C,)."""
    shift: Float
    """(C,)"""
    limits: Limits


@dataclass(frozen=True, eq=False)
class FoldedConv:
    """`y = multiplier[o] * conv(x - zero_point, weight) + bias[o]`, padded with 0 by k // 2;
    float32, product rounded before the sum.

    With `codes_out` the result is `clip(rint(max(y, low)), *codes_out)`, the codes that the next
    layer reads; else y.
    """

    name: str
    weight: Codes | Float | NDArray[np.float16]
    """(O, I / groups, kh, kw) int8 codes, or float32 or float16 values."""
    multiplier: Float
    """(O,)"""
    bias: Float
    """(O,)"""
    codes_in: Limits | None
    """Of the input's codes; None where the input is float."""
    zero_point: NDArray[np.int32] | None = None
    """(I,); only first convolutions have one."""
    codes_out: Limits | None = None
    codes_name: str = ""
    """Of the result, where it is codes."""
    relu_at: Float | None = None
    """(O,) where a ReLU lies between y and the codes: the code, not rounded, of a y of 0 before its
    multiplier and bias were taken into units of codes."""
    groups: int = 1
    """Equal parts of the outputs that each read one part of the inputs; 1 of a linear layer and of
    a convolution that reads the picture."""

    @property
    def low(self) -> Float | None:
        """(O,) least code that the ReLU leaves; None where nothing but `codes_out` limits it."""
        if self.relu_at is None or self.codes_out is None:
            return None
        low = np.rint(np.clip(self.relu_at, *self.codes_out)).astype(np.float32)
        return None if (low == self.codes_out[0]).all() else low

    @property
    def integer(self) -> bool:
        """True where weight and input are both integer codes, so that the sum is an exact
        integer."""
        return self.weight.dtype == np.int8 and self.codes_in is not None

    @property
    def sum_bound(self) -> int:
        """No partial sum of the integer conv exceeds this magnitude."""
        assert self.codes_in is not None
        low, high = self.codes_in
        zero = np.zeros(1, np.int32) if self.zero_point is None else self.zero_point
        largest = int(max(np.abs(low - zero).max(), np.abs(high - zero).max()))
        return largest * int(np.abs(self.weight.astype(np.int64)).reshape(len(self.weight), -1).sum(1).max())


class FoldedLinear(FoldedConv):
    """`FoldedConv` at every pixel by itself: weight (O, I), no padding."""

    def as_conv(self) -> FoldedConv:
        """The same as a 1x1 convolution, weight (O, I, 1, 1)."""
        return FoldedConv(**{**vars(self), "weight": self.weight[:, :, None, None]})


@dataclass(frozen=True, eq=False)
class FirstConv:
    """A convolution that reads the picture: `(pixel / 255 - mean[c]) * img_range`, or the pixels
    themselves."""

    head: FoldedConv
    img_range: np.float32
    mean: Float
    quantize: Quantize | None = None
    """Where its input's codes are not the pixels themselves."""

    @property
    def pixels_are_codes(self) -> bool:
        """Whether it reads the pixels themselves as its codes."""
        return self.head.codes_in is not None and self.quantize is None


@dataclass(frozen=True, eq=False)
class Normalize:
    """The picture's pixels as floats: `(pixel / 255 - mean[c]) * img_range`."""

    img_range: np.float32
    mean: Float


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm over channels; with `limits`, weight and bias give units of codes, and the result
    is rounded and clipped to them."""

    name: str
    weight: Float
    bias: Float
    limits: Limits | None = None
    eps: float = NORM_EPS
    """Added to the variance."""


@dataclass(frozen=True, eq=False)
class GroupNorm:
    """Each group of channels less its mean, by its standard deviation, over all of its pixels; then
    `weight[c] * x + bias[c]`."""

    name: str
    groups: int
    weight: Float
    bias: Float
    eps: float = NORM_EPS
    """Added to the variance."""


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention in windows on q, k and v: `softmax(q k^T * score_multiplier + bias) v * mix`, for
    each head; of shifted windows, with MASKED added between tokens that were no neighbours."""

    name: str
    heads: int
    window: int
    shift: int
    """Of the windows, in pixels."""
    score_multiplier: np.float32
    bias: Float
    """(h, N, M), N tokens in a window of q, M in one of k and v"""
    operands: tuple[Limits | None, Limits | None, Limits | None]
    """Of the codes of q, k and v; None where they are floats."""
    probabilities: Requantize | None
    """Its shift is one per position in the window, (N,)."""
    mix: Requantize | np.float32
    """From the sums to the codes of what reads the result, or a factor where that reads floats."""
    overlap: int = 0
    """Pixels that the windows of k and v have more on every side than those of q; beyond the map
    they are 0."""

    @property
    def quantized(self) -> bool:
        """Whether the operands of both products are codes."""
        return self.probabilities is not None


@dataclass(frozen=True, eq=False)
class RectangleAttention:
    """Attention in windows of rows and columns, on q, k and v, which zeros, or `beyond`, continue
    to multiples of `multiple`: `softmax(q k^T + bias) v` for each head; of shifted windows, with
    MASKED added between pixels that were no neighbours (`rectangles`)."""

    name: str
    heads: int
    window: tuple[int, int]
    shift: tuple[int, int]
    """Of the windows, in pixels down and to the right."""
    multiple: int
    bias: Float
    """(h, N, N), N pixels in a window"""
    beyond: tuple[Float, Float] | None = None
    """(C,) of k and of v at every pixel beyond the map, where they are not 0 there."""
    temperature: Float | None = None
    """(h,); with it q and k are divided by their lengths, at least `LEAST_LENGTH`, in each head at
    each pixel, and products multiplied by it."""
    growth: Fraction = Fraction(1)
    """Of the map's sides over those of the picture, as `side`; set by `passes.layout`."""

    def beyond_of(self, part: int, channels: int) -> Float:
        """(C,) beyond the map, of q (0), k or v."""
        return np.zeros(channels, np.float32) if part == 0 or self.beyond is None else self.beyond[part - 1]


@dataclass(frozen=True, eq=False)
class ChannelAttention:
    """Attention between the channels of q and k, over all pixels: `softmax(temperature[h] *
    (q / |q|) (k / |k|)^T) v` for each head, a row of q, k and v having the pixels of one channel;
    |q| and |k| are lengths of rows, at least `LEAST_LENGTH`."""

    name: str
    heads: int
    temperature: Float
    """(h,)"""


@dataclass(frozen=True, eq=False)
class GlobalAttention:
    """Attention of every pixel of q to all pixels of k and v, maps of another size:
    `softmax(q k^T) v` for each head."""

    name: str
    heads: int


@dataclass(frozen=True, eq=False)
class Activation:
    """Element by element: relu, leaky_relu, prelu, gelu, sigmoid, silu, mish or tanh."""

    kind: str
    slope: Float | None = None
    """() of leaky_relu, (C,) of prelu: `x if x >= 0 else slope * x`."""


@dataclass(frozen=True, eq=False)
class Scale:
    """`factor * x`."""

    factor: np.float32
    exact: bool = True
    """Whether the product is to be rounded before anything is added to it."""


@dataclass(frozen=True, eq=False)
class Binary:
    """add, subtract or multiply, element by element; a value (C, 1, 1) is spread."""

    kind: str


@dataclass(frozen=True, eq=False)
class Concat:
    """Several values as one, channel behind channel."""


@dataclass(frozen=True, eq=False)
class Slice:
    """Channels `start` up to `stop`."""

    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class PixelShuffle:
    """(C * r * r, h, w) to (C, h * r, w * r), of floats or codes."""

    factor: int


@dataclass(frozen=True, eq=False)
class PixelUnshuffle:
    """(C, h, w) to (C * r * r, h / r, w / r), of floats or codes; r divides both sides."""

    factor: int


@dataclass(frozen=True, eq=False)
class UpsampleNearest:
    """Every pixel r x r times."""

    factor: int


@dataclass(frozen=True, eq=False)
class UpsampleBilinear:
    """r x r times as many pixels, interpolated between the centres of four (`align_corners`
    false)."""

    factor: int


@dataclass(frozen=True, eq=False)
class MaxPool:
    """(C, h, w) to (C, h / r, w / r), rounded down, at least 1: of h' rows the result's row i has
    the largest values of the rows `i h / h'`, rounded down, up to, without, `(i + 1) h / h'`,
    rounded up; likewise of columns."""

    factor: int


@dataclass(frozen=True, eq=False)
class ResizeNearest:
    """To `factor` times as many rows and columns as the picture: of h' rows, row y is row
    `y h / h'`, rounded down, of the h rows."""

    factor: int


@dataclass(frozen=True, eq=False)
class Mean:
    """Over all pixels: (C, 1, 1)."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """`clip(rint(x), 0, 255)` as uint8: pixel values."""


@dataclass(frozen=True, eq=False)
class Offset:
    """`x + values[c]`."""

    values: Float
    """(C,)"""


@dataclass(frozen=True, eq=False)
class Affine:
    """`weight[c] * x + bias[c]`."""

    name: str
    weight: Float
    """(C,)"""
    bias: Float
    """(C,)"""


@dataclass(frozen=True, eq=False)
class ToTokens:
    """(C, h, w) to (L, C), row by row."""

    growth: Fraction = Fraction(1)
    """Of the map's sides over those of the picture, as `side`; 0 of (C, 1, 1)."""


@dataclass(frozen=True, eq=False)
class ToMap:
    """(L, C), row by row, to (C, h, w)."""

    growth: Fraction = Fraction(1)
    """Of the map's sides over those of the picture, as `side`; 0 of (C, 1, 1)."""


Order = int | None
"""Of tokens: None row by row; s window by window (rows of windows, inside row by row), after a
cyclic shift by s up and to the left."""


@dataclass(frozen=True, eq=False)
class Reorder:
    """Tokens in another order."""

    window: int
    old: Order
    new: Order


Op = (
    FirstConv
    | Normalize
    | Quantize
    | Requantize
    | FoldedConv
    | FoldedLinear
    | Norm
    | GroupNorm
    | Attention
    | RectangleAttention
    | ChannelAttention
    | GlobalAttention
    | Activation
    | Scale
    | Binary
    | Offset
    | Affine
    | Concat
    | Slice
    | PixelShuffle
    | PixelUnshuffle
    | UpsampleNearest
    | UpsampleBilinear
    | MaxPool
    | ResizeNearest
    | Mean
    | Pixels
    | ToTokens
    | ToMap
    | Reorder
)


def side(side: int, growth: Fraction) -> int:
    """Rows or columns of a map that is `growth` times as large as a picture of that side."""
    return max(1, side * growth.numerator // growth.denominator)


@dataclass(frozen=True, eq=False)
class Step:
    """One operation on values: 0 is the picture, the others are results of steps."""

    op: Op
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True, eq=False)
class FoldedProgram:
    """A network at one depth. The last step's result is the upscaled picture, as uint8."""

    steps: tuple[Step, ...]
    scale: int
    """The upscaling factor."""
    multiple: int = 1
    """Pictures are continued by reflection to multiples of this, and the result is cropped."""
    tokens: frozenset[int] = field(default_factory=frozenset)
    """Values that are (L, C); empty before `passes.layout`."""

    def readers(self) -> Mapping[int, list[Step]]:
        """The steps that read each value."""
        found: dict[int, list[Step]] = {0: []}
        for step in self.steps:
            for value in step.inputs:
                found[value].append(step)
            found[step.output] = []
        return found

    def growth(self) -> dict[int, Fraction]:
        """How many times as high and wide as the padded picture each value is, as `side`; 0 where
        it is one number for each channel."""
        found = {0: Fraction(1)}
        for step in self.steps:
            op = step.op
            factor = op.factor if isinstance(op, PixelShuffle | UpsampleNearest | UpsampleBilinear) else 1
            largest = max(found[value] for value in step.inputs)
            found[step.output] = largest * factor
            if isinstance(op, MaxPool | PixelUnshuffle):
                found[step.output] = largest / op.factor
            elif isinstance(op, GlobalAttention):
                found[step.output] = found[step.inputs[0]]
            elif isinstance(op, ResizeNearest | Mean):
                found[step.output] = Fraction(0 if isinstance(op, Mean) else op.factor)
        return found

    def convs(self) -> list[FoldedConv]:
        """All convolutions and linear layers in order of execution."""
        ops = [step.op.head if isinstance(step.op, FirstConv) else step.op for step in self.steps]
        return [op for op in ops if isinstance(op, FoldedConv)]
