"""Constants of folded layers. Imports no torch.

Notation: S the integer sum of a layer, v its input step, w its weight step, tau its input shift, b
its bias, k = v * w.

*Exact values* (`exact.py`) stay in the units of training, and so do the float32 operations on them,
in their order: `r = S * k + b`, `x' = x * s + r`, `(x + tau) / v` before rounding. An engine that
rounds each of them as IEEE 754 says gets the codes of the training network's evaluation, bit for
bit; a single last bit that differs would flip a few codes in every picture, and 16 blocks spread
them.

*Requantization.* Between a layer and the next quantizer, where nothing but a ReLU or a pixel
shuffle lies between, the code is a staircase of S. It is computed as `clip(rint(S * multiplier +
bias), low, qmax)`, `low = clip(rint(tau2 / v2), qmin, qmax)` being the ReLU, and the bias is moved
within a stair, far from every edge, so that the last bits of the float operations do not matter:
see `staircase_bias`.

*Other values*: a quantizer `clip(rint((x + tau) / v))` is `clip(rint(x * multiplier + shift))` with
multiplier 1 / v and shift tau / v. Each identity is exact in real numbers; constants are computed
in float64 and rounded once to float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import NORM_EPS, FoldedConv, FoldedLinear, Norm, Quantize, Requantize
from quantsr.deploy.packed.model import Float, FloatTensor, Operand, PackedLayer

Float64 = NDArray[np.float64]

CODE_BITS = 16
"""Of input codes; beyond, inputs are float."""
_STAIRCASE_BITS = 8


def layer(
    packed: PackedLayer, factor: float = 1.0, shift: Float64 | float = 0.0, *, exact: bool
) -> FoldedConv:
    """A layer that gives floats: `factor` times what it gives in training, plus `shift`."""
    multiplier: Float
    bias: NDArray[Any]
    if exact:
        multiplier, bias = unit_of_sum(packed), packed.bias
        if factor != 1:
            multiplier = (multiplier.astype(np.float64) * factor).astype(np.float32)
            bias = (bias.astype(np.float64) * factor).astype(np.float32)
        multiplier = np.array(np.broadcast_to(multiplier, bias.shape))
    else:
        multiplier, bias = multiplier_and_bias(packed, factor)
    if np.any(shift):
        bias = bias + shift
    kind = FoldedLinear if packed.weight.ndim == 2 else FoldedConv
    return kind(
        name=packed.name,
        weight=packed.weight.astype(np.float16) if packed.bits_w == 16 else packed.weight,
        multiplier=multiplier,
        bias=bias.astype(np.float32),
        codes_in=packed.act_range if packed.bits_a <= CODE_BITS else None,
        zero_point=packed.act_zero_point,
        groups=packed.groups,
    )


def requantized(packed: PackedLayer, reader: PackedLayer, *, relu: bool, shuffle: int) -> FoldedConv:
    """A layer that gives the codes of `reader`; between them a ReLU, or a pixel shuffle by
    `shuffle`, or neither (1)."""
    conv = layer(packed, exact=True)
    # (O,): channel c of the shuffled map is fed by outputs c*r*r .. c*r*r + r*r - 1.
    step, tau = (np.repeat(part, shuffle**2) if part.size > 1 else part for part in step_and_tau(reader))
    multiplier = (conv.multiplier.astype(np.float64) / step).astype(np.float32)
    bias: Float = ((packed.bias.astype(np.float64) + tau) / step).astype(np.float32)
    relu_at: Float | None = None
    if relu:
        at_zero = (tau.astype(np.float32) / step.astype(np.float32)).astype(np.float32)
        relu_at = np.array(np.broadcast_to(at_zero, bias.shape))
    if reader.bits_a <= _STAIRCASE_BITS and shuffle == 1 and packed.bits_a <= _STAIRCASE_BITS:
        bias = staircase_bias(packed, reader, multiplier, relu=relu)
    return replace(
        conv,
        multiplier=multiplier,
        bias=bias,
        codes_out=reader.act_range,
        codes_name=input_name(reader),
        relu_at=relu_at,
    )


def staircase_bias(
    packed: PackedLayer, reader: PackedLayer, multiplier: Float, *, relu: bool = True
) -> Float:
    """(O,) bias with which `clip(rint(S * multiplier + bias))` is, above the ReLU, the code that
    training computes of the integer sum S.

    Training's code of S, in float32, `rint(clip((max(S * k + b, 0) + tau) / v))`, without a ReLU
    `rint(clip((S * k + b + tau) / v))`, never falls with S: for each code c there is a smallest sum
    T[c] that reaches it. `T[c] * multiplier + bias` must lie above c - 1/2 and `(T[c] - 1) *
    multiplier + bias` below, for every c; the bias is the middle of what that allows. Its distance
    to every edge, some hundredth of a code, is far more than float32 rounds, in whatever order it
    is computed. (With 8 bits the edges leave less room than rounding needs, or none: then a code
    next to an edge may still fall to either side.)
    """
    k, b, (v, tau) = unit_of_sum(packed), packed.bias, step_and_tau(reader)
    qmin, qmax = reader.act_range
    # (n,) edge below each code but the lowest
    edges = np.arange(qmin + 1, qmax + 1, dtype=np.float64) - 0.5
    column = [np.asarray(part, np.float64).reshape(-1, 1) for part in (k, b, tau, v)]
    # (O, n) sum about at the edge
    near = np.floor((edges * column[3] - column[2] - column[1]) / column[0])
    sums = near[..., None] + np.arange(-1, 3)  # (O, n, 4)
    k, b, tau, v = (part.astype(np.float32)[..., None] for part in column)
    values = sums.astype(np.float32) * k + b
    least = np.full(tau.shape[:2], -np.inf)
    if relu:
        values = np.maximum(values, np.float32(0))
        # the code of 0, which the ReLU gives at least
        least = np.rint(np.clip(tau / v, qmin, qmax))[..., 0]
    reached = np.rint(np.clip((values + tau) / v, qmin, qmax)) > edges[:, None]
    first = np.take_along_axis(sums, reached.argmax(2)[..., None], 2)[..., 0]  # T, (O, n)
    counts = reached.any(2) & ~reached.all(2) & (edges > least) & (np.abs(first) <= _sum_bound(packed) + 1)
    width = multiplier.astype(np.float64)[:, None]  # (O, 1)
    above = np.where(counts, edges - first * width, -np.inf).max(1)
    below = np.where(counts, edges - (first - 1) * width, np.inf).min(1)
    plain = (packed.bias.astype(np.float64) + np.ravel(step_and_tau(reader)[1])) / np.ravel(
        step_and_tau(reader)[0]
    )
    room = np.isfinite(above) & np.isfinite(below) & (above < below)
    return np.where(room, (np.where(room, above, 0) + np.where(room, below, 0)) / 2, plain).astype(np.float32)


def quantize(reader: PackedLayer, *, exact: bool) -> Quantize | Requantize:
    """The quantizer of a layer's input."""
    if exact:
        step, tau = step_and_tau(reader)
        return Quantize(input_name(reader), reader.act_range, step, tau)
    return requantize(reader)


def requantize(reader: PackedLayer, factor: float = 1.0) -> Requantize:
    """The quantizer of a layer's input, which comes as `input / factor`."""
    assert reader.act_step is not None
    # (I,), equal numbers where not equalized
    step = reader.act_step.astype(np.float64) * reader.equal()
    multiplier = factor / (
        step if reader.act_equal is not None else reader.act_step.astype(np.float64).reshape(())
    )
    shift = (reader.tau() / step).astype(np.float32)
    return Requantize(input_name(reader), np.asarray(multiplier, np.float32), shift, reader.act_range)


def requantize_operand(operand: Operand) -> Requantize:
    """The quantizer of an operand of an attention product."""
    step = float(operand.step[0])
    tau = np.zeros(operand.channels) if operand.tau is None else operand.tau.astype(np.float64)
    return Requantize(
        operand.name, np.asarray(1 / step, np.float32), (tau / step).astype(np.float32), operand.range
    )


def norm(
    name: str,
    weight: FloatTensor,
    bias: FloatTensor,
    reader: PackedLayer | None,
    factor: float,
    eps: float = NORM_EPS,
) -> Norm:
    """LayerNorm times `factor`, giving the codes of `reader` where there is one."""
    w, b = (tensor.values.astype(np.float64) * factor for tensor in (weight, bias))
    if reader is None or reader.act_step is None:
        return Norm(name, w.astype(np.float32), b.astype(np.float32), eps=eps)
    step = reader.act_step.astype(np.float64) * reader.equal()
    b = (b + reader.tau()) / step
    w = w / step
    return Norm(input_name(reader), w.astype(np.float32), b.astype(np.float32), reader.act_range, eps)


def part_of_qkv(packed: PackedLayer, part: int, operand: Operand | None, factor: float) -> FoldedConv:
    """The third of a layer that gives q, k or v: in units of the operand's codes where there is
    one, else times `factor`."""
    dim = packed.out_channels // 3
    rows = slice(part * dim, (part + 1) * dim)
    step = packed.weight_step
    third = replace(
        packed,
        name=f"{packed.name}.{'qkv'[part]}",
        weight=packed.weight[rows],
        bias=packed.bias[rows],
        weight_step=step if step is None or step.size == 1 else step[rows],
    )
    if operand is None:
        return layer(third, factor, exact=False)
    tau = np.zeros(dim) if operand.tau is None else operand.tau.astype(np.float64)
    unit = 1 / float(operand.step[0])
    folded = layer(third, unit, tau * unit, exact=False)
    return replace(folded, codes_out=operand.range, codes_name=f"{third.name}.codes")


def multiplier_and_bias(packed: PackedLayer, factor: float) -> tuple[Float, Float64]:
    """(O,) real value of one unit of the sum, and bias, both times `factor`."""
    multiplier = np.full(packed.out_channels, factor)
    for step in (packed.weight_step, packed.act_step):
        if step is not None:
            multiplier = multiplier * step.astype(np.float64)
    return multiplier.astype(np.float32), packed.bias.astype(np.float64) * factor


def step_and_tau(packed: PackedLayer) -> tuple[Float, Float]:
    """(v, tau) of a layer's quantized input: v (1,) or, equalized, (I,); tau (I,)."""
    assert packed.act_step is not None
    step = packed.act_step if packed.act_equal is None else packed.act_step * packed.act_equal
    return step.astype(np.float32), packed.tau()


def unit_of_sum(packed: PackedLayer) -> Float:
    """(1,) or (O,) real value of one unit of the sum: the steps' product, in float32 as in
    training."""
    weight = np.ones(1, np.float32) if packed.weight_step is None else packed.weight_step
    return weight if packed.act_step is None else weight * packed.act_step


def input_name(packed: PackedLayer) -> str:
    """Of the codes that a layer reads."""
    return f"{packed.name}.input"


def _sum_bound(packed: PackedLayer) -> int:
    return FoldedConv(packed.name, packed.weight, packed.bias, packed.bias, packed.act_range).sum_bound
