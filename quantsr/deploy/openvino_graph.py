"""The OpenVINO graph of a converted network, laid out so that the CPU plugin runs it as int8
convolutions. Imports no torch.

It has the integer reference's arithmetic (see `fold`): the stream is held in the units of training
and brought into those of a conv's codes in front of it, so every quantization is a FakeQuantize
from a range of integers to itself, and every weight an int8 constant times one multiplier per
output. The plugin's low-precision passes make each pair an integer convolution, with the bias, the
ReLU and, where nothing else reads the result, the next quantization fused into it; a block's skip
times its shortcut, its addition and the next block's quantization become one pass over the float32
stream.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Literal

import numpy as np
import openvino as ov
import openvino.opset13 as op
from numpy.typing import NDArray

from quantsr.deploy import collapse
from quantsr.deploy.fold import FoldedNet, FromPixels, SplitHead, fold, split_head
from quantsr.deploy.model import PackedModel
from quantsr.deploy.openvino_ops import (
    LARGEST_PAIR,
    PAIR_LIMIT,
    Node,
    apart,
    biased,
    code_bytes,
    column,
    convolution,
    fake_quantize,
    floats,
    input_codes,
    input_units,
    ints,
    multiplied_sums,
    multiplied_sums_of_codes,
    quantize,
    times,
)

Tail = Literal["collapsed", "layers"]


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
    """`openvino_model.build` for QuantSR-C.

    `tail="layers"` runs upsampler and `conv_last` layer by layer, their inputs quantized as in the
    integer reference. "collapsed" runs their composition (see `collapse`): of a float tail it gives
    the same picture to float rounding; of an 8-bit tail it keeps the quantization of the first
    input, drops those inside, and quantizes the composed kernel to 16 bits per output.
    `saturates=True` is for processors that add two 8-bit products in 16 bits (see
    `integer_sums_saturate`): convs whose products could exceed that, those of 8-bit codes with
    8-bit weights, are then done in float32, on the same codes. `float_io=True` takes and gives
    float32 in 0..255, and rounds neither the input nor the output to integers (for 16-bit
    pictures). The integer codes that a conv reads are the value of the node `CONV.input`.
    """
    net = fold(model, depth)
    limit = PAIR_LIMIT if saturates else None
    taus = {
        name: layer.tau() / layer.act_step
        for name, layer in model.layers.items()
        if layer.act_step is not None
    }
    image = op.parameter([batch, height, width, 3], np.float32 if float_io else np.uint8, name="image")
    x = (
        image if float_io else apart(op.convert(image, "f32"))
    )  # else the head's first steps pass for dequantization
    x = _features(op.transpose(x, ints(0, 3, 1, 2)), net, taus, limit, round_input=not float_io)
    if tail == "collapsed" and len(net.tail) > 1 and min(height, width) >= collapse.MIN_SIZE:
        grid = [[_pixels(cell, float_io) for cell in row] for row in _collapsed_tail(x, net, limit)]
        x = _phases_to_space(
            op.concat([op.concat(row, 3) for row in grid], 2), batch, height, width, net.scale
        )
    else:
        x = op.transpose(_pixels(_layered_tail(x, net, limit), float_io), ints(0, 2, 3, 1))
    return ov.Model(
        [op.result(x, name="upscaled")], [image], f"quantsr_x{net.scale}_{len(net.blocks)}_blocks"
    )


def _features(
    x: Node, net: FoldedNet, taus: dict[str, NDArray[np.float32]], limit: int | None, *, round_input: bool
) -> Node:
    """(B, 3, H, W) pixels -> (B, C, H, W), the tail's input in units of its codes."""
    # From 7 bits on, codes next to an edge may differ anyway (see `fold.staircase_bias`).
    ranges = (block.conv1.codes_in for block in net.blocks)
    coarse = all(codes is None or codes[1] - codes[0] < 2**7 for codes in ranges)
    start = _head(x, net, round_input=round_input, exact=coarse)
    stream = times(start, net.gap)
    for block in net.blocks:
        y = multiplied_sums(input_codes(stream, block.conv1, limit), block.conv1)
        if block.conv1.codes_out is None:
            y = input_codes(op.relu(biased(y, block.conv1)), block.conv2, limit)
        else:
            # ReLU before the shift by tau, so that it fuses: equal to the reference's per-channel
            # lower limit on the codes.
            shift = column(taus[block.conv2.name])
            y = op.relu(biased(y, block.conv1, -shift))
            y = quantize(y, block.conv2, limit, shift)
        branch = biased(multiplied_sums(y, block.conv2), block.conv2)
        stream = times(op.add(times(stream, (block.shortcut,)), branch), block.gap)
    after = net.conv_after_body
    y = biased(multiplied_sums_of_codes(input_codes(stream, after, limit), after, limit), after)
    return op.add(y, start)


def _head(x: Node, net: FromPixels, *, round_input: bool, exact: bool = True) -> Node:
    """conv_first in float32: integer codes are summed exactly; so are float weights, if `exact`,
    and rounded once."""
    head = net.head
    pad = head.weight.shape[-1] // 2
    if not net.pixels_are_codes:
        # Divided by 255: the plugin would multiply by the reciprocal, which rounds otherwise.
        # `large` has 16 bits, so its products are exact.
        large = np.float32(np.rint(2.0**23 / 255) / 2.0**23)
        x = op.add(op.multiply(x, floats(large)), op.multiply(x, floats(1 / 255 - float(large))))
        x = op.multiply(apart(op.subtract(x, floats(column(net.mean)))), floats(net.img_range))
        if head.codes_in is None:
            if not exact:
                return biased(convolution(x, floats(head.weight), pad), head)
            return biased(_split_sums(x, split_head(net), pad), head)
        x = input_units(x, head)
        x = op.clamp(op.round(x, "half_to_even") if round_input else x, *map(float, head.codes_in))
    if head.zero_point is not None:
        x = op.subtract(x, floats(column(head.zero_point)))
    return biased(
        op.multiply(convolution(x, floats(head.weight), pad), floats(column(head.multiplier))), head
    )


def _split_sums(x: Node, split: SplitHead, pad: int) -> Node:
    """conv(x, weight) as `SplitHead` says."""
    parts = []
    for unit in (split.unit, split.finer):
        units = op.round(apart(op.multiply(x, floats(unit))), "half_to_even")
        parts.append(op.multiply(units, floats(1 / unit)))
        x = op.subtract(x, parts[-1])
    inputs = [parts[0], op.concat(parts, 1), op.concat([*parts, x], 1)]
    a, b, c = (
        convolution(part, floats(weight), pad)
        for part, weight in zip(inputs, (split.high, split.middle, split.low), strict=True)
    )
    total = apart(op.add(a, b))
    return apart(op.add(total, op.add(apart(op.add(op.subtract(a, total), b)), c)))


def _layered_tail(x: Node, net: FoldedNet, limit: int | None) -> Node:
    """(B, C, H, W) -> (B, 3, H*s, W*s) before its last rounding. Shuffles move codes, not
    floats."""
    x = input_codes(x, net.tail[0], limit)
    for conv, reader in zip(net.tail, [*net.tail[1:], None], strict=True):
        x = biased(multiplied_sums(x, conv), conv)
        if reader is not None and conv.codes_out is not None:
            x = quantize(x, reader, limit)
        if conv.shuffle > 1:
            x = op.depth_to_space(x, "depth_first", conv.shuffle)
    return x


def _collapsed_tail(x: Node, net: FoldedNet, limit: int | None) -> list[list[Node]]:
    """(B, C, H, W) -> 3 rows of 3 parts (B, s*s*3, ., .), channels in the order (row phase, column
    phase, colour)."""
    kernels = collapse.collapse(net.tail)
    inner = kernels["inner", "inner"]
    if net.tail[0].codes_in is None:
        middle = convolution(x, floats(inner.weight), 1)
    else:
        # The composed kernel to 16 bits: its high byte with all of the input, its low byte with the
        # input's high byte.
        step = np.maximum(np.abs(inner.weight).max((1, 2, 3)) / LARGEST_PAIR, np.finfo(np.float32).tiny)
        steps = np.rint(inner.weight / step.reshape(-1, 1, 1, 1))
        high = np.floor((steps + 128) / 256)  # leaves -128..127
        kernel = {256.0: high.astype(np.int8), 1.0: (steps - 256 * high).astype(np.int8)}
        first = replace(net.tail[0], weight=kernel[256.0])
        x = input_units(x, first)
        parts = code_bytes(quantize(x, first, limit), first, limit)
        pairs = [*((part, unit, 256.0) for part, unit in parts), (*parts[0], 1.0)]
        middle = reduce(
            op.add,
            (
                multiplied_sums(
                    part,
                    replace(first, weight=kernel[byte], multiplier=step * np.float32(unit * byte)),
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
        bias = floats(column(kernel.bias))
        pads = (int(y_position == "inner"), int(x_position == "inner"))
        if pads == (1, 1):
            return op.add(middle, bias)
        if pads == (1, 0):
            part = columns[x_position]
        elif pads == (0, 1):
            part = rows[y_position]
        else:
            part = _cut(rows[y_position], 3, first=x_position == "first")
        return op.add(convolution(part, floats(kernel.weight), *pads), bias)

    return [
        [cell(y_position, x_position) for x_position in collapse.POSITIONS]
        for y_position in collapse.POSITIONS
    ]


def _cut(x: Node, axis: int, *, first: bool) -> Node:
    """The first or last three rows (axis 2) or columns (axis 3): what the collapsed tail sees at a
    border."""
    size = collapse.RADIUS + 1
    start, stop = (0, size) if first else (-size, np.iinfo(np.int64).max)
    return op.slice(x, ints(start), ints(stop), ints(1), ints(axis))


def _pixels(x: Node, float_io: bool) -> Node:
    """Pixel values, limited to 0..255 and, unless `float_io`, rounded to uint8."""
    if float_io:
        return op.clamp(x, 0, 255)
    return op.convert(fake_quantize(x, (0, 255), "pixels"), "u8")


def _phases_to_space(x: Node, batch: int, height: int, width: int, scale: int) -> Node:
    """(B, s*s*3, H, W) with channels (row phase, column phase, colour) -> (B, H*s, W*s, 3)."""
    x = op.transpose(x, ints(0, 2, 3, 1))  # (B, H, W, s*s*3)
    # (B, H, W, row phase, s*3)
    x = op.reshape(x, ints(batch, height, width, scale, scale * 3), False)
    x = op.transpose(x, ints(0, 1, 3, 2, 4))  # (B, H, row phase, W, column phase and colour)
    return op.reshape(x, ints(batch, height * scale, width * scale, 3), False)  # (B, H*s, W*s, 3)
