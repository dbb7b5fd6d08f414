"""Folding: what of a converted QuantSR-C can be one multiplication and one addition per conv, and
what stays as training computes it.

All engines (integer reference, ONNX, OpenVINO) are written from the same `FoldedNet`, so they share
every constant to the last bit.

Notation: S the integer sum of a conv, v its input step, w its weight step, tau its input shift, b
its bias, k = v * w.

*Skip stream.* It stays in the units of training, and so do the float32 operations on it, in their
order: `r = S2 * k2 + b2`, `x' = x * s + r`, `x * s` for a skipped block, `(x + tau) / v` before
rounding. An engine that rounds each of them as IEEE 754 says gets the codes of the training
network's evaluation, bit for bit; a single last bit that differs would flip a few codes in every
picture, and 16 blocks spread them.

*Requantization.* Between conv1 and conv2 nothing but S1 goes in: the code is a staircase of it. It
is computed as `clip(rint(S1 * multiplier + bias), low, qmax)`, `low = clip(rint(tau2 / v2), qmin,
qmax)` being the ReLU, and the bias is moved within a stair, far from every edge, so that the last
bits of the float operations do not matter: see `staircase_bias`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.model import Codes, Float, Header, PackedLayer, PackedModel, tail_stages

_CODE_BITS = 16  # beyond, inputs are float
_HIGH_INPUT = 256.0  # largest integer that the head's input is split into
_FINER = 256.0  # units of the middle part in one of the high part, of inputs and weights alike


@dataclass(frozen=True, eq=False)
class FoldedConv:
    """`y = multiplier[o] * conv(input - zero_point, weight) + bias[o]`, padded with 0 by k // 2;
    float32, product rounded before the sum.

    With `codes_out` the result is `clip(rint(max(y, low)), *codes_out)`, integer codes for the next
    conv; else y (`max(y, 0)` if `relu`). A pixel shuffle by `shuffle` follows (1: none).
    """

    name: str
    weight: Codes | Float | NDArray[np.float16]
    """(O, I, kh, kw) int8 codes, or float32 or float16 values."""
    multiplier: Float
    """(O,)"""
    bias: Float
    """(O,)"""
    codes_in: tuple[int, int] | None
    """Range of the input's integer codes; None where the input is float."""
    step: Float | None = None
    """Where the input is float x and its codes are `clip(rint((x + tau) / step), *codes_in)`: (1,)
    or, equalized, (I,). None: codes come in."""
    tau: Float | None = None
    """(I,), beside `step`."""
    zero_point: NDArray[np.int32] | None = None
    """(I,); only the head has one."""
    codes_out: tuple[int, int] | None = None
    low: Float | None = None
    """(O,) integers within `codes_out`; None where nothing but the range limits the code."""
    relu: bool = False
    shuffle: int = 1

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


@dataclass(frozen=True, eq=False)
class FoldedBlock:
    """`x' = (x * shortcut + conv2(conv1(x))) * gap[0] * gap[1] ...`, multiplied one after the
    other."""

    conv1: FoldedConv
    conv2: FoldedConv
    shortcut: np.float32
    gap: tuple[np.float32, ...]
    """Shortcuts of the skipped blocks between this one and the next that runs."""


@dataclass(frozen=True, eq=False)
class FromPixels:
    """The first conv of a network, and how pixels become its input."""

    head: FoldedConv
    img_range: np.float32
    mean: Float
    """The head's input is `(pixel / 255 - mean[c]) * img_range`, unless its codes are the pixels
    themselves (`pixels_are_codes`)."""

    @property
    def pixels_are_codes(self) -> bool:
        """Whether the head reads the pixels themselves as its codes."""
        return self.head.codes_in is not None and self.head.step is None


@dataclass(frozen=True, eq=False)
class FoldedNet(FromPixels):
    """The network at one depth, from pixels (0..255) to pixels.

    `x0 = head(input)`; blocks on `x0 * gap[0] * ...`; `T = conv_after_body(x) + x0`; tail convs in
    order, the last one giving pixels as uint8 codes.
    """

    gap: tuple[np.float32, ...]
    """Shortcuts of the skipped blocks before the first that runs."""
    blocks: tuple[FoldedBlock, ...]
    conv_after_body: FoldedConv
    tail: tuple[FoldedConv, ...]
    scale: int
    """The upscaling factor."""

    def convs(self) -> list[FoldedConv]:
        """All convs in order of execution."""
        body = [conv for block in self.blocks for conv in (block.conv1, block.conv2)]
        return [self.head, *body, self.conv_after_body, *self.tail]


@dataclass(frozen=True, eq=False)
class SplitHead:
    """A float head as three convs that give its exact sums, rounded once, in whatever order their
    products are added.

    The input is taken apart as x = h + m + l, h and m multiples of 1 / `unit` and of 1 / `finer`,
    the weights likewise; then

        a = conv(h, high)    b = conv([h, m], middle)    c = conv([h, m, l], low)    s = a + b
        y = s + (((a - s) + b) + c)

    float32 adds the products of `a` and of `b` without rounding, (a - s) + b is what rounding took
    from `s`, and `c` is a 2 ** 16th of `a`, so that its own rounding hardly ever reaches the result
    (of the x4 network, in 1 of 8,000 values).
    """

    unit: np.float32
    finer: np.float32
    """Powers of two."""
    high: Float
    """(O, I, kh, kw)"""
    middle: Float
    """(O, 2 * I, kh, kw)"""
    low: Float
    """(O, 3 * I, kh, kw)"""


def split_head(net: FromPixels) -> SplitHead:
    """Split the float weight of `net.head`; each part of the input is `(pixel / 255 - mean) *
    img_range`."""
    weight = net.head.weight.astype(np.float32)
    largest = float(net.img_range) * max(float(np.abs(net.mean).max()), float(np.abs(1 - net.mean).max()))
    unit = np.exp2(np.floor(np.log2(_HIGH_INPUT / largest)))
    room = 2.0**24 / (_HIGH_INPUT * weight[0].size)
    peaks = np.maximum(np.abs(weight).reshape(len(weight), -1).max(1), np.float32(1e-30)).astype(np.float64)
    units = np.exp2(np.floor(np.log2(room / peaks))).reshape(-1, 1, 1, 1)
    high = (np.rint(weight * units) / units).astype(np.float32)
    rest = weight - high
    middle = (np.rint(rest * (units * _FINER)) / (units * _FINER)).astype(np.float32)
    return SplitHead(
        unit=np.float32(unit),
        finer=np.float32(unit * _FINER),
        high=high,
        middle=np.concatenate([middle, high], 1),
        low=np.concatenate([rest - middle, rest, weight], 1),
    )


def fold(model: PackedModel, depth: int | None = None) -> FoldedNet:
    """Fold `model` at `depth` (default: its deepest). Raises InputError for an unknown depth."""
    header, layers = model.header, model.layers
    kept = header.blocks_kept(model.depth_or_default(depth))
    shortcuts = [np.float32(s) for s in header.shortcuts]
    # gaps[k]: shortcuts of the skipped blocks right before kept block k (last: before
    # conv_after_body).
    ends = (-1, *kept, header.num_block)
    gaps = [tuple(shortcuts[a + 1 : b]) for a, b in itertools.pairwise(ends)]
    blocks = tuple(
        FoldedBlock(
            first := _requantized(
                layers[f"body.{i}.conv1"], layers[f"body.{i}.conv2"], relu=True, reads_float=True
            ),
            _plain(layers[f"body.{i}.conv2"], header.res_scale, reads_float=first.codes_out is None),
            shortcuts[i],
            gaps[k + 1],
        )
        for k, i in enumerate(kept)
    )
    stages = tail_stages(header.arch, header.scale)
    return FoldedNet(
        head=fold_head(header, layers["conv_first"]),
        img_range=np.float32(header.img_range),
        mean=np.asarray(header.rgb_mean, np.float32),
        gap=gaps[0],
        blocks=blocks,
        conv_after_body=_plain(layers["conv_after_body"], reads_float=True),
        tail=_fold_tail(header, [layers[name] for name, _ in stages], [factor for _, factor in stages]),
        scale=header.scale,
    )


def staircase_bias(layer: PackedLayer, reader: PackedLayer, multiplier: Float) -> Float:
    """(O,) bias with which `clip(rint(S * multiplier + bias))` is, above the ReLU, the code that
    training computes of the integer sum S.

    Training's code of S, in float32, `rint(clip((max(S * k + b, 0) + tau) / v))`, never falls with
    S: for each code c there is a smallest sum T[c] that reaches it. `T[c] * multiplier + bias` must
    lie above c - 1/2 and `(T[c] - 1) * multiplier + bias` below, for every c; the bias is the
    middle of what that allows. Its distance to every edge, some hundredth of a code, is far more
    than float32 rounds, in whatever order it is computed. (With 8 bits the edges leave less room
    than rounding needs, or none: then a code next to an edge may still fall to either side.)
    """
    k, b, (v, tau) = _multiplier(layer), layer.bias, _units(reader)
    qmin, qmax = reader.act_range
    # (n,) edge below each code but the lowest
    edges = np.arange(qmin + 1, qmax + 1, dtype=np.float64) - 0.5
    column = [np.asarray(part, np.float64).reshape(-1, 1) for part in (k, b, tau, v)]
    # (O, n) sum about at the edge
    near = np.floor((edges * column[3] - column[2] - column[1]) / column[0])
    sums = near[..., None] + np.arange(-1, 3)  # (O, n, 4)
    k, b, tau, v = (part.astype(np.float32)[..., None] for part in column)
    values = np.maximum(sums.astype(np.float32) * k + b, np.float32(0))
    reached = np.rint(np.clip((values + tau) / v, qmin, qmax)) > edges[:, None]
    first = np.take_along_axis(sums, reached.argmax(2)[..., None], 2)[..., 0]  # T, (O, n)
    # the code of 0, which the ReLU gives at least
    least = np.rint(np.clip(tau / v, qmin, qmax))[..., 0]
    counts = reached.any(2) & ~reached.all(2) & (edges > least) & (np.abs(first) <= _sum_bound(layer) + 1)
    width = multiplier.astype(np.float64)[:, None]  # (O, 1)
    above = np.where(counts, edges - first * width, -np.inf).max(1)
    below = np.where(counts, edges - (first - 1) * width, np.inf).min(1)
    plain = (layer.bias.astype(np.float64) + np.ravel(_units(reader)[1])) / np.ravel(_units(reader)[0])
    room = np.isfinite(above) & np.isfinite(below) & (above < below)
    return np.where(room, (np.where(room, above, 0) + np.where(room, below, 0)) / 2, plain).astype(np.float32)


def fold_head(header: Header, layer: PackedLayer) -> FoldedConv:
    """conv_first. Where its codes are so close to the pixels that they are the pixels, it reads
    those."""
    conv = _plain(layer, reads_float=True)
    if conv.step is None:
        return conv
    step, tau = _units(layer)
    unit = header.img_range / 255.0
    pixel_multiplier = unit / float(step[0])
    pixel_shift = (tau - 255.0 * np.asarray(header.rgb_mean, np.float64) * unit) / step
    # Far from half way to another code.
    exact = abs(pixel_multiplier - 1) * 255 + np.abs(pixel_shift).max() < 0.01
    return replace(conv, step=None, tau=None) if exact else conv


def _fold_tail(header: Header, tail: list[PackedLayer], factors: list[int]) -> tuple[FoldedConv, ...]:
    convs: list[FoldedConv] = []
    for i, factor in enumerate(factors[:-1]):
        reads_float = not convs or convs[-1].codes_out is None
        convs.append(_requantized(tail[i], tail[i + 1], shuffle=factor, reads_float=reads_float))
    last = _plain(tail[-1], 255.0 / header.img_range, reads_float=not convs or convs[-1].codes_out is None)
    mean = np.repeat(255.0 * np.asarray(header.rgb_mean, np.float64), factors[-1] ** 2)
    bias = (last.bias + mean).astype(np.float32)
    return (*convs, replace(last, bias=bias, codes_out=(0, 255), shuffle=factors[-1]))


def _requantized(
    layer: PackedLayer,
    reader: PackedLayer,
    *,
    reads_float: bool,
    relu: bool = False,
    shuffle: int = 1,
) -> FoldedConv:
    """`layer` giving the codes of `reader` at once; where `layer` or `reader` is float, the float
    that `reader` reads."""
    conv = replace(_plain(layer, reads_float=reads_float), shuffle=shuffle)
    if not layer.integer or reader.bits_a > _CODE_BITS:
        return replace(conv, relu=relu)
    # (O,): channel c of the shuffled map is fed by outputs c*r*r .. c*r*r + r*r - 1.
    step, tau = (np.repeat(part, shuffle**2) if part.size > 1 else part for part in _units(reader))
    multiplier = (conv.multiplier.astype(np.float64) / step).astype(np.float32)
    if not relu:
        bias = ((layer.bias.astype(np.float64) + tau) / step).astype(np.float32)
        return replace(conv, multiplier=multiplier, bias=bias, codes_out=reader.act_range)
    low = np.rint(np.clip(tau.astype(np.float32) / step.astype(np.float32), *reader.act_range))
    low = low.astype(np.float32)
    return replace(
        conv,
        multiplier=multiplier,
        bias=staircase_bias(layer, reader, multiplier),
        codes_out=reader.act_range,
        low=None if (low == reader.act_range[0]).all() else low,
    )


def _plain(layer: PackedLayer, factor: float = 1.0, reads_float: bool = False) -> FoldedConv:
    """`layer` giving floats, `factor` times what it gives in training; its input is float where
    `reads_float`, else codes."""
    multiplier, bias = _multiplier(layer), layer.bias
    if factor != 1:
        multiplier, bias = (
            (part.astype(np.float64) * factor).astype(np.float32) for part in (multiplier, bias)
        )
    quantized = layer.bits_a <= _CODE_BITS
    step, tau = _units(layer) if quantized and reads_float else (None, None)
    return FoldedConv(
        name=layer.name,
        weight=layer.weight.astype(np.float16) if layer.bits_w == 16 else layer.weight,
        multiplier=np.array(np.broadcast_to(multiplier, bias.shape)),
        bias=bias,
        codes_in=layer.act_range if quantized else None,
        step=step,
        tau=tau,
        zero_point=layer.act_zero_point,
    )


def _units(layer: PackedLayer) -> tuple[Float, Float]:
    """(v, tau) of a layer's quantized input: v (1,) or, equalized, (I,); tau (I,)."""
    assert layer.act_step is not None
    step = layer.act_step if layer.act_equal is None else layer.act_step * layer.act_equal
    return step.astype(np.float32), layer.tau()


def _multiplier(layer: PackedLayer) -> Float:
    """(1,) or (O,) real value of one unit of the conv's sum: the steps' product, in float32 as in
    training."""
    weight = np.ones(1, np.float32) if layer.weight_step is None else layer.weight_step
    return weight if layer.act_step is None else weight * layer.act_step


def _sum_bound(layer: PackedLayer) -> int:
    return FoldedConv(layer.name, layer.weight, layer.bias, layer.bias, layer.act_range).sum_bound
