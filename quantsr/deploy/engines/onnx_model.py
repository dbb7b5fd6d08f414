"""A packed network at one depth as an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import onnx
from onnx import helper

from quantsr.deploy.engines.onnx_graph import Graph
from quantsr.deploy.engines.onnx_integer import DOMAIN, IntegerOps
from quantsr.deploy.engines.onnx_operations import OnnxOps
from quantsr.deploy.engines.onnx_qdq import QdqGraph, QdqOps
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.layout import lay_out
from quantsr.deploy.passes.tail import linear_tail
from quantsr.files import write_atomically

_OPSET, _IR = 17, 8
_OPSET_INT4, _IR_INT4 = 21, 10
_STRIPS = 8  # at most collapse.MIN_SIZE ** 2


def build(model: PackedModel, depth: int | None = None, *, int4: bool = False) -> onnx.ModelProto:
    """The network at `depth` (default: its deepest), uint8 (N, H, W, 3) to uint8 (N, H*s, W*s, 3),
    RGB; checked.

    With `int4`, weights of at most 4 bits are int4 tensors (opset 21, half the file).
    Raises InputError for an unknown depth.
    """
    depth = model.depth_or_default(depth)
    graph = Graph(int4=int4)
    OnnxOps(graph, lay_out(fold(model, depth))).run()
    proto = _proto(model, depth, graph, [("", _OPSET_INT4 if int4 else _OPSET)], _IR_INT4 if int4 else _IR)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def build_integer(
    model: PackedModel, depth: int | None = None, *, tail: Literal["collapsed", "layers"] = "layers"
) -> onnx.ModelProto:
    """The same network in the form that ONNX Runtime's CPU provider computes in integers
    (`onnx_integer`), for that runtime alone; checked.

    "layers" gives the picture that `build`'s graph gives. With "collapsed" pictures must be at
    least `collapse.MIN_SIZE` high and wide; an upsampler of several convolutions, with the last
    convolution, is one convolution of floats (`passes.collapse`), and layers with 16-bit inputs
    then read floats (docs/explanation/derivations.md). Raises InputError for an unknown depth.
    """
    depth = model.depth_or_default(depth)
    graph, found, strips = Graph(channels_last=True), None, 1
    program = lay_out(fold(model, depth))
    if tail == "collapsed":
        strips = _STRIPS
        in_floats = lay_out(fold(model, depth, wide_inputs=False))
        found = linear_tail(in_floats)
        if found is not None and len(found.stages) > 1 and found.stages[0].conv.codes_in is None:
            program = in_floats
        else:
            found = None
    IntegerOps(graph, program, strips=strips, tail=found).run()
    proto = _proto(model, depth, graph, [("", _OPSET), (DOMAIN, 1)], _IR)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def build_qdq(model: PackedModel, depth: int | None = None) -> onnx.ModelProto:
    """The same network with symmetric int8 codes, for runtimes that take explicit Q/DQ
    (`onnx_qdq`); checked. A code next to a tie may differ from the reference's.

    Raises InputError for an unknown depth, and for networks with LayerNorm or attention.
    """
    depth = model.depth_or_default(depth)
    graph = QdqGraph()
    QdqOps(graph, fold(model, depth, wide_inputs=False)).run()
    proto = _proto(model, depth, graph, [("", _OPSET)], _IR)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _proto(
    model: PackedModel, depth: int, graph: Graph, opsets: Sequence[tuple[str, int]], ir: int
) -> onnx.ModelProto:
    header = model.header
    proto = helper.make_model(
        graph.finish(header.scale),
        opset_imports=[helper.make_opsetid(*opset) for opset in opsets],
        ir_version=ir,
        producer_name="quantsr",
    )
    helper.set_model_props(
        proto, {"depth": str(depth), "scale": str(header.scale), "arch": str(header.arch.get("type"))}
    )
    return proto


def save(proto: onnx.ModelProto, path: str | Path) -> None:
    """Write the graph to `path`, whole or not at all; raises as `files.failures_named`."""
    write_atomically(path, proto.SerializeToString())
