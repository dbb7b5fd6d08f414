"""A packed network at one depth as an OpenVINO graph. Imports no torch."""

from __future__ import annotations

from typing import Literal

import openvino as ov
import openvino.opset13 as op

from quantsr.deploy.costs import has_attention
from quantsr.deploy.engines.openvino_graph import OpenVinoOps
from quantsr.deploy.engines.openvino_ops import WideInputs
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.layout import lay_out

Tail = Literal["collapsed", "layers"]


def build(
    model: PackedModel,
    depth: int | None = None,
    *,
    height: int,
    width: int,
    batch: int = 1,
    wide_inputs: WideInputs = "float",
    tail: Tail = "collapsed",
    float_io: bool = False,
    saturates: bool = False,
) -> ov.Model:
    """The graph for pictures of `height` x `width`: uint8 (batch, H, W, 3) RGB in, uint8 (batch,
    H*s, W*s, 3) out. The codes that a layer reads are the value of the node `LAYER.input`.

    Args:
        depth: default: the network's deepest.
        wide_inputs: how layers with 16-bit inputs run: in "float", on the dequantized weights and
            with inputs as they come, or exactly as the integer reference, in "bytes": int8
            convolutions of the high and the low byte. Which is faster, see `wide_inputs_run_in`.
            Those of networks with attention run in float in any case.
        tail: "layers" runs a linear tail layer by layer, its inputs quantized as in the integer
            reference; "collapsed" runs its composition (see `openvino_tail`).
        float_io: take and give float32 in 0..255, neither input nor output rounded to integers (for
            16-bit pictures).
        saturates: for processors that add two 8-bit products in 16 bits (`integer_sums_saturate`):
            layers whose products could exceed that run in float32, on the same codes.

    Raises:
        InputError: there is no such depth.
    """
    wide = wide_inputs == "bytes" and not has_attention(model)
    program = lay_out(fold(model, model.depth_or_default(depth), wide_inputs=wide))
    ops = OpenVinoOps(program, (batch, height, width), tail=tail, float_io=float_io, saturates=saturates)
    result = op.result(ops.result(), name="upscaled")
    return ov.Model([result], [ops.image], f"quantsr_x{program.scale}_{len(program.steps)}_steps")
