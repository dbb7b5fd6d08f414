"""The OpenVINO graph of a converted network, laid out so that the CPU plugin runs it as int8 convolutions. Imports no torch.

It has the integer reference's arithmetic (see `fold`): the stream is held in units of the next conv's codes, so every quantization is a
FakeQuantize from a range of integers to itself, and every weight an int8 constant times one scale per output. The plugin's low-precision
passes make each pair an integer convolution, with the bias, the ReLU and, where nothing else reads the result, the next quantization
fused into it; a block's scaled skip, its addition and the next block's quantization become one pass over the float32 stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache, reduce
from typing import Any, Literal

import numpy as np
import openvino as ov
import openvino.opset13 as op
from numpy.typing import ArrayLike, NDArray

from quantsr.deploy import architectures, collapse
from quantsr.deploy.fold import FoldedConv, FoldedNet, FromPixels, fold, split_head
from quantsr.deploy.model import PackedModel
from quantsr.deploy.openvino_core import core

Tail = Literal["collapsed", "layers"]
Node = Any
"""An openvino.Node or one of its outputs."""

# Level counts the plugin's low-precision passes accept (4 and 8 bits); other widths borrow 256 levels behind a Minimum.
_NATIVE_LEVELS = (16, 256)

_PAIRS = 1000  # of factors tried by `reciprocal`
_LARGEST_CODE = 255  # of 8 bits; 16-bit codes are beyond
_LARGEST_PAIR = 127 * 256 + 127  # of two signed bytes, high and low
_PAIR_LIMIT = 2**15 - 1  # of the sum of two products, on processors without VNNI


def build(
    model: PackedModel, depth: int | None = None, *, height: int, width: int, **options: Any
) -> ov.Model:
    """The graph for pictures of `height` x `width`: uint8 (batch, H, W, 3) RGB in, uint8 (batch, H*s, W*s, 3) out.

    Options, all with defaults: `batch`, `tail`, `float_io` and `saturates`, as `build_quantsr_c`. Raises InputError for an unknown depth.
    """
    depth = model.depth_or_default(depth)
    return architectures.of(model.header).openvino_graph(model, depth, height=height, width=width, **options)


def build_quantsr_c(
    model: PackedModel,
    depth: int,
    *,
    height: int,
    width: int,
    batch: int = 1,
    tail: Tail = "collapsed",
    float_io: bool = False,
    saturates: bool = False,
) -> ov.Model:
    """`build` for QuantSR-C.

    `tail="layers"` runs upsampler and `conv_last` layer by layer, their inputs quantized as in the integer reference. "collapsed" runs
    their composition (see `collapse`): of a float tail it gives the same picture to float rounding; of an 8-bit tail it keeps the
    quantization of the first input, drops those inside, and quantizes the composed kernel to 16 bits per output.
    `saturates=True` is for processors that add two 8-bit products in 16 bits (see `integer_sums_saturate`): convs whose products could
    exceed that, those of 8-bit codes with 8-bit weights, are then done in float32, on the same codes.
    `float_io=True` takes and gives float32 in 0..255, and rounds neither the input nor the output to integers (for 16-bit pictures).
    The integer codes that a conv reads are the value of the node `CONV.input`.
    """
    net = fold(model, depth)
    limit = _PAIR_LIMIT if saturates else None
    taus = {
        name: layer.tau() / layer.act_step
        for name, layer in model.layers.items()
        if layer.act_step is not None
    }
    image = op.parameter([batch, height, width, 3], np.float32 if float_io else np.uint8, name="image")
    x = (
        image if float_io else _apart(op.convert(image, "f32"))
    )  # else the head's first steps pass for dequantization
    x = _features(op.transpose(x, _ints(0, 3, 1, 2)), net, taus, limit, round_input=not float_io)
    if tail == "collapsed" and len(net.tail) > 1 and min(height, width) >= collapse.MIN_SIZE:
        grid = [[_pixels(cell, float_io) for cell in row] for row in _collapsed_tail(x, net, limit)]
        x = _phases_to_space(
            op.concat([op.concat(row, 3) for row in grid], 2), batch, height, width, net.factor
        )
    else:
        x = op.transpose(_pixels(_layered_tail(x, net, limit), float_io), _ints(0, 2, 3, 1))
    return ov.Model(
        [op.result(x, name="upscaled")], [image], f"quantsr_x{net.factor}_{len(net.blocks)}_blocks"
    )


def _features(
    x: Node, net: FoldedNet, taus: dict[str, NDArray[np.float32]], limit: int | None, *, round_input: bool
) -> Node:
    """(B, 3, H, W) pixels -> (B, C, H, W), the tail's input in units of its codes."""
    start = _head(x, net, round_input=round_input)
    stream = _times(start, net.gap)
    for block in net.blocks:
        y = _sums(_codes(stream, block.conv1, limit), block.conv1)
        if block.conv1.codes_out is None:
            y = _codes(op.relu(_bias(y, block.conv1)), block.conv2, limit)
        else:
            # ReLU before the shift by tau, so that it fuses: equal to the reference's per-channel lower limit on the codes.
            shift = _column(taus[block.conv2.name])
            y = op.relu(_bias(y, block.conv1, -shift))
            y = _quantize(y, block.conv2, limit, shift)
        branch = _bias(_sums(y, block.conv2), block.conv2)
        stream = _times(op.add(_times(stream, (block.shortcut,)), branch), block.gap)
    after = net.conv_after_body
    y = _bias(_sums_of_codes(_codes(stream, after, limit), after, limit), after)
    return op.add(y, start)


def _head(x: Node, net: FromPixels, *, round_input: bool) -> Node:
    """conv_first in float32: integer codes are summed exactly, float weights in two parts (see `fold.SplitHead`)."""
    head = net.head
    pad = head.weight.shape[-1] // 2
    if not net.pixels_are_codes:
        # Divided by 255: the plugin would multiply by the reciprocal, which rounds otherwise. `large` has 16 bits, so its products are exact.
        large = np.float32(np.rint(2.0**23 / 255) / 2.0**23)
        x = op.add(op.multiply(x, _floats(large)), op.multiply(x, _floats(1 / 255 - float(large))))
        x = op.multiply(_apart(op.subtract(x, _floats(_column(net.mean)))), _floats(net.img_range))
        if head.codes_in is None:
            parts = split_head(net)
            high = _apart(op.multiply(x, _floats(parts.unit)))
            high = op.multiply(op.round(high, "half_to_even"), _floats(1 / parts.unit))
            both = op.concat([high, op.subtract(x, high)], 1)
            sums = (
                _convolution(part, _floats(w), pad) for part, w in ((high, parts.high), (both, parts.low))
            )
            return _bias(_apart(op.add(*sums)), head)
        x = _units(x, head)
        x = op.clamp(op.round(x, "half_to_even") if round_input else x, *map(float, head.codes_in))
    if head.zero_point is not None:
        x = op.subtract(x, _floats(_column(head.zero_point)))
    return _bias(op.multiply(_convolution(x, _floats(head.weight), pad), _floats(_column(head.scale))), head)


def _apart(x: Node) -> Node:
    """`x`, behind a limit that changes nothing, so that the plugin rounds it: it would fuse a product with the next sum, or swap them."""
    return op.maximum(x, _floats(np.finfo(np.float32).min))


def _times(x: Node, factors: Iterable[np.float32]) -> Node:
    """`x` times every factor in turn, each product rounded."""
    for factor in factors:
        x = x if factor == 1 else _apart(op.multiply(x, _floats(factor)))
    return x


def _units(x: Node, reader: FoldedConv) -> Node:
    """(x + tau) / step of `reader`."""
    assert reader.step is not None
    assert reader.tau is not None
    assert reader.codes_in is not None
    if reader.tau.any():
        x = _apart(op.add(x, _floats(_column(reader.tau))))
    for factor in reciprocal(reader.step, reader.codes_in):
        x = _apart(op.multiply(x, _floats(_column(factor))))
    return x


def reciprocal(step: NDArray[np.float32], limits: tuple[int, int]) -> list[NDArray[np.float32]]:
    """What to multiply by, in turn, instead of dividing by `step` (1,), a division being several times as slow, so that codes between `limits` stay the same.

    `rint(x * (1 / step))` differs from `rint(x / step)` for a few single float32 numbers next to edges between codes. Of the numbers next to `1 / step`
    and a thousand pairs whose product it is, these are the first with which the fewest differ: with 4 bits none, as a rule. Of several steps, the plain reciprocals.
    """
    plain = np.float32(1) / step
    if step.size != 1 or max(limits) > _LARGEST_CODE:
        return [plain]
    edges = np.arange(*limits, dtype=np.float64) + 0.5
    near = (edges * step).astype(np.float32)
    values = (near.view(np.int32)[:, None] + np.arange(-4, 5, dtype=np.int32)).view(np.float32).ravel()
    wanted = np.rint(values / step)
    first = np.concatenate([np.ones(5), np.linspace(0.5, 1, _PAIRS, endpoint=False)]).astype(np.float32)
    second = (1 / (step.astype(np.float64) * first)).astype(np.float32)
    second[:5] = (plain.view(np.int32) + np.array([0, 1, -1, 2, -2], np.int32)).view(np.float32)
    codes = np.rint(values * first[:, None] * second[:, None])
    best = int(np.argmin((codes != wanted).sum(1)))
    return [part[best : best + 1] for part in (first, second) if part[best] != 1]


def _floats(value: ArrayLike) -> Node:
    return op.constant(np.asarray(value, np.float32))


def _ints(*values: int) -> Node:
    return op.constant(np.asarray(values, np.int64))


def _column(values: ArrayLike) -> NDArray[np.float64]:
    """(C,) -> (1, C, 1, 1)"""
    return np.asarray(values, np.float64).reshape(1, -1, 1, 1)


def _codes(x: Node, reader: FoldedConv, limit: int | None) -> Node:
    """The float value `x` as `reader`'s input codes, or as it is where the reader is float."""
    if reader.codes_in is None:
        return x
    # FakeQuantize adds the lower limit before it rounds, which rounds too.
    return _quantize(op.round(_units(x, reader), "half_to_even"), reader, limit)


def _quantize(x: Node, reader: FoldedConv, limit: int | None, shift: ArrayLike = 0.0) -> Node:
    """clip(rint(x + shift), *reader.codes_in), in a form that makes `reader` an integer conv unless its products exceed `limit`."""
    assert reader.codes_in is not None
    name = f"{reader.name}.input"
    low, high = reader.codes_in
    if high > _LARGEST_CODE:
        x = op.round(
            x if np.size(shift) == 1 and not np.any(shift) else op.add(x, _floats(shift)), "half_to_even"
        )
        return op.clamp(x, low, high, name=name)
    pair = 2 * (high - low) * int(np.abs(reader.weight.astype(np.int64)).max(initial=0))
    if limit is None or reader.weight.dtype != np.int8 or pair <= limit:
        return _fake_quantize(x, reader.codes_in, name, shift)
    y = op.round(op.add(x, _floats(shift)), "half_to_even")
    return op.clamp(y, low, high, name=name)


def _fake_quantize(
    x: Node, limits: tuple[int, int], name: str, shift: ArrayLike = 0.0, scale: ArrayLike = 1.0
) -> Node:
    """clip(rint(x * scale + shift), *limits) as a FakeQuantize; `scale` > 0 and `shift` are scalars or one per channel of x."""
    low, high = limits
    shift, scale = np.asarray(shift, np.float64), np.asarray(scale, np.float64)
    if high - low + 1 not in _NATIVE_LEVELS:
        x = op.minimum(x, _floats((high - shift) / scale))
        high = low + 255
    ends = (_floats((low - shift) / scale), _floats((high - shift) / scale), _floats(low), _floats(high))
    return op.fake_quantize(x, *ends, high - low + 1, name=name)


def _sums(x: Node, conv: FoldedConv, pad: int | None = None) -> Node:
    """scale * conv(x, weight): integer where the plugin finds x quantized and the weight int8."""
    weight = op.constant(conv.weight) if conv.weight.dtype == np.int8 else _floats(conv.weight)
    if conv.weight.dtype == np.int8:
        weight = op.convert(weight, "f32")
    weight = op.multiply(weight, _floats(conv.scale.reshape(-1, 1, 1, 1)))
    return _convolution(x, weight, conv.weight.shape[-1] // 2 if pad is None else pad)


def _bytes(x: Node, reader: FoldedConv, limit: int | None) -> list[tuple[Node, float]]:
    """Codes as (operand of an integer conv, its unit) pairs: as they are, or 16-bit ones as their high and their low bytes."""
    assert reader.codes_in is not None
    if reader.codes_in[1] <= _LARGEST_CODE or limit is not None:
        return [(x, 1.0)]
    x = op.minimum(x, _floats(_LARGEST_PAIR))
    high = op.floor(op.multiply(op.add(x, _floats(128)), _floats(1 / 256)))
    low = op.subtract(x, op.multiply(high, _floats(256)))
    return [
        (_fake_quantize(part, (-128, 127), f"{reader.name}.{name}"), unit)
        for part, name, unit in ((high, "high", 256.0), (low, "low", 1.0))
    ]


def _sums_of_codes(x: Node, conv: FoldedConv, limit: int | None) -> Node:
    """`_sums` of any codes: of 16-bit ones in two integer convs."""
    if conv.codes_in is None:
        return _sums(x, conv)
    sums = (
        _sums(part, replace(conv, scale=conv.scale * np.float32(unit)))
        for part, unit in _bytes(x, conv, limit)
    )
    return reduce(op.add, sums)


def _bias(x: Node, conv: FoldedConv, shift: float | NDArray[np.float64] = 0.0) -> Node:
    return op.add(x, _floats(_column(conv.bias) + shift))


def _convolution(x: Node, weight: Node, *pad: int) -> Node:
    """Stride 1; one padding for rows and columns, or one each."""
    pads = [pad[0], pad[-1]]
    return op.convolution(x, weight, [1, 1], pads, pads, [1, 1])


def _layered_tail(x: Node, net: FoldedNet, limit: int | None) -> Node:
    """(B, C, H, W) -> (B, 3, H*s, W*s) before its last rounding. Shuffles move codes, not floats."""
    x = _codes(x, net.tail[0], limit)
    for conv, reader in zip(net.tail, [*net.tail[1:], None], strict=True):
        x = _bias(_sums(x, conv), conv)
        if reader is not None and conv.codes_out is not None:
            x = _quantize(x, reader, limit)
        if conv.shuffle > 1:
            x = op.depth_to_space(x, "depth_first", conv.shuffle)
    return x


def _collapsed_tail(x: Node, net: FoldedNet, limit: int | None) -> list[list[Node]]:
    """(B, C, H, W) -> 3 rows of 3 parts (B, s*s*3, ., .), channels in the order (row phase, column phase, colour)."""
    kernels = collapse.collapse(net.tail)
    inner = kernels["inner", "inner"]
    if net.tail[0].codes_in is None:
        middle = _convolution(x, _floats(inner.weight), 1)
    else:
        # The composed kernel to 16 bits: its high byte with all of the input, its low byte with the input's high byte.
        step = np.maximum(np.abs(inner.weight).max((1, 2, 3)) / _LARGEST_PAIR, np.finfo(np.float32).tiny)
        steps = np.rint(inner.weight / step.reshape(-1, 1, 1, 1))
        high = np.floor((steps + 128) / 256)  # leaves -128..127
        kernel = {256.0: high.astype(np.int8), 1.0: (steps - 256 * high).astype(np.int8)}
        first = replace(net.tail[0], weight=kernel[256.0])
        x = _units(x, first)
        parts = _bytes(_quantize(x, first, limit), first, limit)
        pairs = [*((part, unit, 256.0) for part, unit in parts), (*parts[0], 1.0)]
        middle = reduce(
            op.add,
            (
                _sums(
                    part,
                    replace(first, weight=kernel[byte], scale=step * np.float32(unit * byte)),
                    pad=1,
                )
                for part, unit, byte in pairs
            ),
        )
    # The ring is one pixel wide: its kernels stay in float.
    rows = {"first": _cut(x, 2, first=True), "last": _cut(x, 2, first=False)}
    columns = {"first": _cut(x, 3, first=True), "last": _cut(x, 3, first=False)}

    def cell(y_position: str, x_position: str) -> Node:
        kernel = kernels[y_position, x_position]
        bias = _floats(_column(kernel.bias))
        pads = (int(y_position == "inner"), int(x_position == "inner"))
        if pads == (1, 1):
            return op.add(middle, bias)
        if pads == (1, 0):
            part = columns[x_position]
        elif pads == (0, 1):
            part = rows[y_position]
        else:
            part = _cut(rows[y_position], 3, first=x_position == "first")
        return op.add(_convolution(part, _floats(kernel.weight), *pads), bias)

    return [
        [cell(y_position, x_position) for x_position in collapse.POSITIONS]
        for y_position in collapse.POSITIONS
    ]


def _cut(x: Node, axis: int, *, first: bool) -> Node:
    """The first or last three rows (axis 2) or columns (axis 3): what the collapsed tail sees at a border."""
    size = collapse.RADIUS + 1
    start, stop = (0, size) if first else (-size, np.iinfo(np.int64).max)
    return op.slice(x, _ints(start), _ints(stop), _ints(1), _ints(axis))


def _pixels(x: Node, float_io: bool) -> Node:
    """Pixel values, limited to 0..255 and, unless `float_io`, rounded to uint8."""
    if float_io:
        return op.clamp(x, 0, 255)
    return op.convert(_fake_quantize(x, (0, 255), "pixels"), "u8")


def _phases_to_space(x: Node, batch: int, height: int, width: int, factor: int) -> Node:
    """(B, s*s*3, H, W) with channels (row phase, column phase, colour) -> (B, H*s, W*s, 3)."""
    x = op.transpose(x, _ints(0, 2, 3, 1))
    x = op.reshape(x, _ints(batch, height, width, factor, factor * 3), False)
    x = op.transpose(x, _ints(0, 1, 3, 2, 4))  # (B, H, row phase, W, column phase and colour)
    return op.reshape(x, _ints(batch, height * factor, width * factor, 3), False)


@cache
def integer_sums_saturate() -> bool:
    """Whether this processor's integer convs clip the sum of two products to 16 bits, as x86 without VNNI does. Found by trying."""
    x = op.parameter([1, 16, 4, 4], np.float32)
    weight = op.multiply(op.convert(op.constant(np.full((16, 16, 1, 1), 127, np.int8)), "f32"), _floats(1.0))
    y = _convolution(_fake_quantize(x, (0, 255), "codes"), weight, 0)
    compiled = core().compile_model(ov.Model([y], [x], "probe"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return bool(compiled([np.full((1, 16, 4, 4), 255, np.float32)])[0].max() < 16 * 127 * 255)
