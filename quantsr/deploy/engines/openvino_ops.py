"""Pieces of OpenVINO graphs that compute codes as the integer reference does, and run as int8
convolutions. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, reduce
from typing import Any, Literal

import numpy as np
import openvino as ov
import openvino.opset13 as op
from numpy.typing import ArrayLike, NDArray

from quantsr import cpu
from quantsr.deploy.engines.openvino_core import core
from quantsr.deploy.folded import FoldedConv, Limits, Quantize, is_wide
from quantsr.deploy.passes.reciprocal import reciprocal

Node = Any
"""An openvino.Node or one of its outputs."""

# Level counts the plugin's low-precision passes accept (4 and 8 bits); other widths borrow 256
# levels behind a Minimum.
_NATIVE_LEVELS = (16, 256)

WideInputs = Literal["float", "bytes"]

LARGEST_PAIR = 127 * 256 + 127  # of two signed bytes, high and low


def apart(x: Node) -> Node:
    """`x`, behind a limit that changes nothing, so that the plugin rounds it: it would fuse a
    product with the next sum, or swap them."""
    return op.maximum(x, floats(np.finfo(np.float32).min))


def input_units(x: Node, quantize: Quantize) -> Node:
    """(x + tau) / step"""
    if quantize.tau.any():
        x = apart(op.add(x, floats(column(quantize.tau))))
    for factor in reciprocal(quantize.step, quantize.limits):
        x = apart(op.multiply(x, floats(column(factor))))
    return x


def floats(value: ArrayLike) -> Node:
    """A float32 constant of the value's shape."""
    return op.constant(np.asarray(value, np.float32))


def ints(*values: int) -> Node:
    """An int64 constant (n,)."""
    return op.constant(np.asarray(values, np.int64))


def column(values: ArrayLike) -> NDArray[np.float64]:
    """(C,) -> (1, C, 1, 1)"""
    return np.asarray(values, np.float64).reshape(1, -1, 1, 1)


def codes(name: str, x: Node, limits: Limits, shift: ArrayLike = 0.0, *, as_floats: bool = False) -> Node:
    """clip(rint(x + shift), *limits), in a form that makes what reads it an integer conv, unless
    `as_floats`."""
    low, high = limits
    if not is_wide(limits) and not as_floats:
        return fake_quantize(x, limits, name, shift)
    shifted = np.size(shift) > 1 or np.any(shift)
    y = op.round(op.add(x, floats(shift)) if shifted else x, "half_to_even")
    return op.clamp(y, low, high, name=name)


def fake_quantize(
    x: Node, limits: tuple[int, int], name: str, shift: ArrayLike = 0.0, multiplier: ArrayLike = 1.0
) -> Node:
    """clip(rint(x * multiplier + shift), *limits) as a FakeQuantize; `multiplier` > 0 and `shift`
    are scalars or one per channel of x."""
    low, high = limits
    shift, multiplier = np.asarray(shift, np.float64), np.asarray(multiplier, np.float64)
    if high - low + 1 not in _NATIVE_LEVELS:
        x = op.minimum(x, floats((high - shift) / multiplier))
        high = low + 255
    ends = (
        floats((low - shift) / multiplier),
        floats((high - shift) / multiplier),
        floats(low),
        floats(high),
    )
    return op.fake_quantize(x, *ends, high - low + 1, name=name)


def multiplied_sums(x: Node, conv: FoldedConv, pad: int | None = None) -> Node:
    """multiplier * conv(x, weight): integer where the plugin finds x quantized and the weight
    int8. With groups in floats: the plugin's integer form of those is wrong for some ranges of
    codes."""
    if conv.groups > 1:
        outputs, inputs, *size = conv.weight.shape
        pads = [conv.weight.shape[-1] // 2] * 2
        grouped = conv.weight.reshape(conv.groups, outputs // conv.groups, inputs, *size)
        y = op.group_convolution(x, floats(grouped), [1, 1], pads, pads, [1, 1])
        return op.multiply(apart(y), floats(column(conv.multiplier)))
    weight = op.constant(conv.weight) if conv.weight.dtype == np.int8 else floats(conv.weight)
    if conv.weight.dtype == np.int8:
        weight = op.convert(weight, "f32")
    weight = op.multiply(weight, floats(conv.multiplier.reshape(-1, 1, 1, 1)))
    return convolution(x, weight, conv.weight.shape[-1] // 2 if pad is None else pad)


def code_bytes(x: Node, name: str, limits: Limits, *, as_floats: bool = False) -> list[tuple[Node, float]]:
    """Codes as (operand of an integer conv, its unit) pairs: as they are, or 16-bit ones as their
    high and their low bytes, unless `as_floats`."""
    if not is_wide(limits) or as_floats:
        return [(x, 1.0)]
    x = op.minimum(x, floats(LARGEST_PAIR))
    high = op.floor(op.multiply(op.add(x, floats(128)), floats(1 / 256)))
    low = op.subtract(x, op.multiply(high, floats(256)))
    return [
        (fake_quantize(part, (-128, 127), f"{name}.{byte}"), unit)
        for part, byte, unit in ((high, "high", 256.0), (low, "low", 1.0))
    ]


def multiplied_sums_of_codes(x: Node, conv: FoldedConv, *, as_floats: bool) -> Node:
    """`multiplied_sums` of any codes: of 16-bit ones in two integer convs, unless `as_floats`."""
    if conv.codes_in is None:
        return multiplied_sums(x, conv)
    sums = (
        multiplied_sums(part, replace(conv, multiplier=conv.multiplier * np.float32(unit)))
        for part, unit in code_bytes(x, f"{conv.name}.input", conv.codes_in, as_floats=as_floats)
    )
    return reduce(op.add, sums)


def biased(x: Node, conv: FoldedConv, shift: float | NDArray[np.float64] = 0.0) -> Node:
    """(B, O, H, W) plus bias and `shift`, which is one number or (1, O, 1, 1)."""
    return op.add(x, floats(column(conv.bias) + shift))


def convolution(x: Node, weight: Node, *pad: int) -> Node:
    """Stride 1; one padding for rows and columns, or one each."""
    pads = [pad[0], pad[-1]]
    return op.convolution(x, weight, [1, 1], pads, pads, [1, 1])


@cache
def integer_sums_saturate() -> bool:
    """Whether this processor's integer convs clip the sum of two products to 16 bits, as x86
    without VNNI does. Found by trying."""
    x = op.parameter([1, 16, 4, 4], np.float32)
    weight = op.multiply(op.convert(op.constant(np.full((16, 16, 1, 1), 127, np.int8)), "f32"), floats(1.0))
    y = convolution(fake_quantize(x, (0, 255), "codes"), weight, 0)
    compiled = core().compile_model(ov.Model([y], [x], "probe"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return bool(compiled([np.full((1, 16, 4, 4), 255, np.float32)])[0].max() < 16 * 127 * 255)


def wide_inputs_run_in() -> WideInputs:
    """How this processor does layers with 16-bit inputs faster: with AMX, whose int8 products are
    many times as fast as float32's, in bytes."""
    return "bytes" if "amx_int8" in cpu.describe()[1] else "float"
