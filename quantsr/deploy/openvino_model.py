"""A packed network at one depth as an OpenVINO graph. Imports no torch."""

from __future__ import annotations

from typing import Any

import openvino as ov

from quantsr.deploy import architectures, openvino_graph
from quantsr.deploy.model import PackedModel
from quantsr.deploy.openvino_ops import WideInputs
from quantsr.deploy.quantsr_t import openvino_graph as openvino_graph_t


def build(
    model: PackedModel,
    depth: int | None = None,
    *,
    height: int,
    width: int,
    wide_inputs: WideInputs = "float",
    **options: Any,
) -> ov.Model:
    """The graph for pictures of `height` x `width`: uint8 (batch, H, W, 3) RGB in, uint8 (batch,
    H*s, W*s, 3) out.

    `wide_inputs` says how layers with 16-bit inputs run: in "float", on the dequantized weights and
    with inputs as they come, or exactly as the integer reference, in "bytes": int8 convolutions of
    the high and the low byte. Which is faster, see `wide_inputs_run_in`. Options, all with
    defaults: `batch`, `tail`, `float_io` and `saturates`, as `build_quantsr_c`. Raises InputError
    for an unknown depth.
    """
    depth = model.depth_or_default(depth)
    if wide_inputs == "float":
        model = model.with_wide_inputs_in_float()
    name = architectures.of(model.header).name
    build_graph = openvino_graph_t.build if name == "QuantSR_T" else openvino_graph.build_quantsr_c
    return build_graph(model, depth, height=height, width=width, **options)
