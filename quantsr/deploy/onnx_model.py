"""A packed network at one depth as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import helper

from quantsr.deploy import architectures, fold
from quantsr.deploy.model import PackedModel
from quantsr.deploy.onnx_graph import Graph
from quantsr.deploy.quantsr_t import fold as fold_t
from quantsr.deploy.quantsr_t import onnx_graph as onnx_graph_t
from quantsr.deploy.quantsr_t import program
from quantsr.files import write_atomically

_OPSET, _IR = 17, 8
_OPSET_INT4, _IR_INT4 = 21, 10


def build(model: PackedModel, depth: int | None = None, *, int4: bool = False) -> onnx.ModelProto:
    """The network at `depth` (default: its deepest), uint8 (N, H, W, 3) to uint8 (N, H*s, W*s, 3),
    RGB; checked.

    With `int4`, weights of at most 4 bits are int4 tensors (opset 21, half the file).
    Raises InputError for an unknown depth.
    """
    header = model.header
    depth = model.depth_or_default(depth)
    graph = Graph(int4=int4)
    if architectures.of(header).name == "QuantSR_T":
        swin = fold_t.fold(model, depth)
        program.upscale(swin, onnx_graph_t.OnnxOps(graph, swin))
    else:
        graph.network(fold.fold(model, depth))
    proto = helper.make_model(
        graph.finish(header.scale),
        opset_imports=[helper.make_opsetid("", _OPSET_INT4 if int4 else _OPSET)],
        ir_version=_IR_INT4 if int4 else _IR,
        producer_name="quantsr",
    )
    helper.set_model_props(
        proto, {"depth": str(depth), "scale": str(header.scale), "arch": str(header.arch.get("type"))}
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def save(proto: onnx.ModelProto, path: str | Path) -> None:
    """Write the graph to `path`, whole or not at all; raises as `files.failures_named`."""
    write_atomically(path, proto.SerializeToString())
