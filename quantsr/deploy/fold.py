"""Folding: every step, tau, bias, shortcut and skipped block of a converted QuantSR-C becomes one multiplication and one addition per conv.

All engines (integer reference, ONNX, OpenVINO) are written from the same `FoldedNet`, so they share every constant to the last bit.

Notation: S the integer sum of a conv, v its input step, w its weight step, tau its input shift, b its bias, k = v * w.

*Requantization.* Behind conv1 come the ReLU and conv2's quantizer, `clip(rint((max(S1 * k1 + b1, 0) + tau2) / v2), qmin, qmax)`. `rint` and
`clip` are monotone, hence commute with `max`, and this is `clip(rint(S1 * (k1 / v2) + (b1 + tau2) / v2), low, qmax)` with the lower limit per channel
`low = clip(rint(tau2 / v2), qmin, qmax)`.

*Skip stream.* The stream is held in the units of the conv that reads it next, U = (x + tau) / v, so that its codes are `clip(rint(U))`. A block
`x' = s * x + r * (S2 * k2 + b2)` followed by skipped blocks with shortcuts of product p becomes, v' and tau' belonging to the next reader,

    U' = (p * s * v / v') * U + (p * r * k2 / v') * S2 + (p * (r * b2 - s * tau) + tau') / v'

*Long skip.* The head's output is kept as U0 only; x0 = (U0 * v0 - tau0) / p0 is folded into the sum behind `conv_after_body`.

Each identity is exact in real numbers; the constants are computed in float64 and rounded once to float32.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.model import Codes, Float, Header, PackedModel, QuantizedLayer, upsample_stages
from quantsr.errors import InputError

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FoldedConv:
    """`y = scale[o] * conv(input - zero_point, weight) + bias[o]`, padded with 0 by k // 2; float32, product rounded before the sum.

    With `codes_out` the result is `clip(rint(max(y, low)), *codes_out)`, integer codes for the next conv; else y (`max(y, 0)` if `relu`).
    A pixel shuffle by `shuffle` follows (1: none).
    """

    name: str
    weight: Codes | Float | NDArray[np.float16]
    """(O, I, kh, kw) int8 codes, or float32 or float16 values."""
    scale: Float
    bias: Float
    codes_in: tuple[int, int] | None
    """Range of the input's integer codes; None where the input is float."""
    zero_point: NDArray[np.int32] | None = None
    """(I,); only the head has one."""
    codes_out: tuple[int, int] | None = None
    low: Float | None = None
    """(O,) integers within `codes_out`; None where nothing but the range limits the code."""
    relu: bool = False
    shuffle: int = 1

    @property
    def integer(self) -> bool:
        """True where weight and input are both integer codes, so that the sum is an exact integer."""
        return self.weight.dtype == np.int8 and self.codes_in is not None

    @property
    def sum_bound(self) -> int:
        """No partial sum of the integer conv exceeds this magnitude."""
        assert self.codes_in is not None
        low, high = self.codes_in
        zero = np.zeros(1, np.int32) if self.zero_point is None else self.zero_point
        largest = int(max(np.abs(low - zero).max(), np.abs(high - zero).max()))
        return largest * int(np.abs(self.weight.astype(np.int64)).reshape(len(self.weight), -1).sum(1).max())


@dataclass(frozen=True, eq=False)
class FoldedBlock:
    """`U' = stream_scale * U + conv2(conv1(clip(rint(U), *conv1.codes_in)))`; a float conv1 reads U as it is."""

    conv1: FoldedConv
    conv2: FoldedConv
    stream_scale: Float
    """() or, where the next reader's steps differ by channel, (C, 1, 1)."""


@dataclass(frozen=True, eq=False)
class FoldedNet:
    """The network at one depth, from pixels (0..255) to pixels.

    `U0 = head(input)`; blocks; `T = conv_after_body(U) + skip_scale * U0`; tail convs in order, the last one giving pixels as uint8 codes.
    A conv with `codes_in` reads `clip(rint(.), *codes_in)` of a float value, or the codes as they come.
    """

    head: FoldedConv
    pixel_scale: np.float32
    """The head's input is `pixel * pixel_scale + pixel_shift[c]`; (1, 0) where the pixels themselves are its codes."""
    pixel_shift: Float
    blocks: tuple[FoldedBlock, ...]
    conv_after_body: FoldedConv
    skip_scale: Float
    """As `FoldedBlock.stream_scale`."""
    tail: tuple[FoldedConv, ...]
    factor: int
    """Upscaling factor."""

    @property
    def pixels_are_codes(self) -> bool:
        return (
            self.head.codes_in is not None
            and bool(self.pixel_scale == 1)
            and not bool(self.pixel_shift.any())
        )

    def convs(self) -> list[FoldedConv]:
        """All convs in order of execution."""
        body = [conv for block in self.blocks for conv in (block.conv1, block.conv2)]
        return [self.head, *body, self.conv_after_body, *self.tail]


def fold(model: PackedModel, depth: int | None = None) -> FoldedNet:
    """Fold `model` at `depth` (default: its deepest). Raises InputError for an unknown depth or shortcuts that multiply to 0."""
    header, layers = model.header, model.layers
    kept = header.blocks_kept(model.depth_or_default(depth))
    # gaps[k]: product of the shortcuts of the skipped blocks right before kept block k (last: before conv_after_body).
    ends = (-1, *kept, header.num_block)
    shortcuts = np.asarray(header.shortcuts, np.float64)
    gaps = [float(np.prod(shortcuts[a + 1 : b])) for a, b in itertools.pairwise(ends)]
    if abs(gaps[0]) < 1e-6:
        raise InputError(
            "shortcuts: those of the first skipped blocks multiply to 0; this depth carries no picture"
        )

    after, last = layers["conv_after_body"], layers["conv_last"]
    readers = [*(layers[f"body.{i}.conv1"] for i in kept), after]
    stages = upsample_stages(header.scale)
    tail_layers = [*(layers[name] for name, _ in stages), last]

    first_step, first_tau = _units(readers[0])
    head, pixel_scale, pixel_shift = _fold_head(header, layers["conv_first"], readers[0], gaps[0])
    blocks = tuple(
        _fold_block(
            layers[f"body.{i}.conv1"],
            layers[f"body.{i}.conv2"],
            readers[k + 1],
            shortcut=float(shortcuts[i]),
            res_scale=header.res_scale,
            gap=gaps[k + 1],
        )
        for k, i in enumerate(kept)
    )
    next_step, next_tau = _units(tail_layers[0])
    middle = _conv(
        after, _scale(after) / next_step, (after.bias - first_tau / gaps[0] + next_tau) / next_step
    )
    return FoldedNet(
        head=head,
        pixel_scale=pixel_scale,
        pixel_shift=pixel_shift,
        blocks=blocks,
        conv_after_body=middle,
        skip_scale=_factor(first_step / (gaps[0] * next_step)),
        tail=_fold_tail(header, tail_layers, [factor for _, factor in stages]),
        factor=header.scale,
    )


def _fold_head(
    header: Header, layer: QuantizedLayer, reader: QuantizedLayer, gap: float
) -> tuple[FoldedConv, np.float32, Float]:
    """conv_first and how pixels become its input. Its float input is `(pixel / 255 - mean) * img_range`."""
    step, tau = _units(reader)
    scale = _scale(layer) * gap / step
    bias = (layer.bias.astype(np.float64) * gap + tau) / step
    mean = 255.0 * np.asarray(header.rgb_mean, np.float64)
    unit = header.img_range / 255.0
    if layer.bits_a > 8:
        return _conv(layer, scale * unit, bias), np.float32(1), (-mean).astype(np.float32)
    own_step, own_tau = _units(layer)
    pixel_scale = unit / float(own_step)
    pixel_shift = (own_tau - mean * unit) / own_step
    if abs(pixel_scale - 1) * 255 + np.abs(pixel_shift).max() < 0.01:  # far from half way to another code
        pixel_scale, pixel_shift = 1.0, np.zeros_like(pixel_shift)
    return _conv(layer, scale, bias), np.float32(pixel_scale), pixel_shift.astype(np.float32)


def _fold_block(
    first: QuantizedLayer,
    second: QuantizedLayer,
    reader: QuantizedLayer,
    *,
    shortcut: float,
    res_scale: float,
    gap: float,
) -> FoldedBlock:
    own_step, own_tau = _units(first)
    next_step, next_tau = _units(reader)
    conv1 = _requantized(first, second, relu=True)
    scale = _scale(second) * (gap * res_scale / next_step)
    bias = (gap * (res_scale * second.bias.astype(np.float64) - shortcut * own_tau) + next_tau) / next_step
    return FoldedBlock(conv1, _conv(second, scale, bias), _factor(gap * shortcut * own_step / next_step))


def _fold_tail(header: Header, tail: list[QuantizedLayer], factors: list[int]) -> tuple[FoldedConv, ...]:
    convs = [_requantized(tail[i], tail[i + 1], shuffle=factor) for i, factor in enumerate(factors)]
    last = tail[-1]
    unit = 255.0 / header.img_range
    bias = last.bias.astype(np.float64) * unit + 255.0 * np.asarray(header.rgb_mean, np.float64)
    return (*convs, _conv(last, _scale(last) * unit, bias, codes_out=(0, 255)))


def _requantized(
    layer: QuantizedLayer, reader: QuantizedLayer, *, relu: bool = False, shuffle: int = 1
) -> FoldedConv:
    """`layer` giving the codes of `reader` at once (or the float that a float `reader` reads)."""
    # (O,): channel c of the shuffled map is fed by outputs c*r*r .. c*r*r + r*r - 1.
    step, tau = (np.repeat(part, shuffle**2) if part.ndim else part for part in _units(reader))
    scale, bias = _scale(layer) / step, (layer.bias.astype(np.float64) + tau) / step
    if reader.bits_a > 8:
        return _conv(layer, scale, bias, relu=relu, shuffle=shuffle)
    codes_out = reader.act_range
    low = np.clip(np.rint(tau / step), *codes_out).astype(np.float32) if relu else None
    if low is not None and (low == codes_out[0]).all():
        low = None
    return _conv(layer, scale, bias, codes_out=codes_out, low=low, shuffle=shuffle)


def _conv(
    layer: QuantizedLayer,
    scale: Float64,
    bias: Float64,
    *,
    codes_out: tuple[int, int] | None = None,
    low: Float | None = None,
    relu: bool = False,
    shuffle: int = 1,
) -> FoldedConv:
    return FoldedConv(
        layer.name,
        layer.weight.astype(np.float16) if layer.bits_w == 16 else layer.weight,
        np.broadcast_to(scale, bias.shape).astype(np.float32),
        bias.astype(np.float32),
        layer.act_range if layer.bits_a <= 8 else None,
        layer.act_zero_point,
        codes_out,
        low,
        relu,
        shuffle,
    )


def _units(layer: QuantizedLayer) -> tuple[Float64, Float64]:
    """(v, tau) of a layer's input, v () or, equalized, (I,), tau (I,); (1, 0) where it reads float values."""
    if layer.bits_a > 8:
        return np.ones(()), np.zeros(layer.in_channels)
    assert layer.act_step is not None
    step = layer.act_step.astype(np.float64)
    return step * layer.equal() if layer.act_equal is not None else step.reshape(()), layer.tau().astype(
        np.float64
    )


def _scale(layer: QuantizedLayer) -> Float64:
    """(1,) or (O,) real value of one unit of the conv's sum."""
    weight = np.ones(1) if layer.weight_step is None else layer.weight_step.astype(np.float64)
    return weight if layer.act_step is None else weight * layer.act_step.astype(np.float64)


def _factor(value: Float64) -> Float:
    """A factor on feature maps: () or (C, 1, 1) float32."""
    return (
        np.asarray(value, np.float32).reshape(-1, 1, 1) if np.ndim(value) else np.asarray(value, np.float32)
    )
