"""The first convolution in OpenVINO graphs. Imports no torch."""

from __future__ import annotations

import numpy as np
import openvino.opset13 as op

from quantsr.deploy.engines.openvino_ops import (
    Node,
    apart,
    biased,
    column,
    convolution,
    floats,
    input_units,
)
from quantsr.deploy.folded import FirstConv, Normalize
from quantsr.deploy.passes.first import SplitHead, split_head


def normalized(x: Node, how: FirstConv | Normalize) -> Node:
    """`(pixel / 255 - mean) * img_range`, each operation rounded."""
    # Divided by 255: the plugin would multiply by the reciprocal, which rounds otherwise.
    # `large` has 16 bits, so its products are exact.
    large = np.float32(np.rint(2.0**23 / 255) / 2.0**23)
    x = op.add(op.multiply(x, floats(large)), op.multiply(x, floats(1 / 255 - float(large))))
    x = op.multiply(apart(op.subtract(x, floats(column(how.mean)))), floats(how.img_range))
    return x


def first_conv(x: Node, first: FirstConv, *, round_input: bool, exact: bool = True) -> Node:
    """The first convolution in float32: integer codes are summed exactly; so are float weights, if
    `exact`, and rounded once."""
    head = first.head
    pad = head.weight.shape[-1] // 2
    if not first.pixels_are_codes:
        x = normalized(x, first)
        if head.codes_in is None:
            if not exact:
                return biased(convolution(x, floats(head.weight), pad), head)
            return biased(split_sums(x, split_head(first), pad), head)
        assert first.quantize is not None
        x = input_units(x, first.quantize)
        x = op.clamp(op.round(x, "half_to_even") if round_input else x, *map(float, head.codes_in))
    if head.zero_point is not None:
        x = op.subtract(x, floats(column(head.zero_point)))
    return biased(
        op.multiply(convolution(x, floats(head.weight), pad), floats(column(head.multiplier))), head
    )


def split_sums(x: Node, split: SplitHead, pad: int) -> Node:
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
