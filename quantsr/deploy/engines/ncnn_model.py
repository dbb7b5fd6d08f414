"""A packed network at one depth as ncnn's two files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantsr.deploy.engines.ncnn_graph import Graph
from quantsr.deploy.engines.ncnn_operations import NcnnOps
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.tail import linear_tail
from quantsr.files import failures_named, replace_file
from quantsr.temporary import folder_beside


@dataclass(frozen=True)
class NcnnModel:
    """The contents of a .param and a .bin file."""

    param: str
    weights: bytes


def build(
    model: PackedModel,
    depth: int | None = None,
    *,
    tail: Literal["collapsed", "layers"] = "collapsed",
    half: bool = False,
    white: float = 1.0,
) -> NcnnModel:
    """The network at `depth` (default: its deepest): blob `data` (3, H, W), RGB in 0..1, to blob
    `output` (3, H*s, W*s) in 0..`white`, neither rounded nor limited.

    Args:
        tail: with "collapsed", an upsampler of several convolutions is one convolution with the
            last (`passes.collapse`), and pictures must be `collapse.MIN_SIZE` pixels high and wide.
        half: store the float convolutions on which no code depends as float16.

    Raises InputError for an unknown depth, and for operations that ncnn does not have.
    """
    program = fold(model, model.depth_or_default(depth), wide_inputs=False)
    found = linear_tail(program) if tail == "collapsed" else None
    if found is not None and (len(found.stages) == 1 or found.stages[0].conv.codes_in is not None):
        found = None
    graph = Graph(half=half)
    return NcnnModel(*graph.finish(NcnnOps(graph, program, white=white).run(found)))


def save(model: NcnnModel, path: Path) -> list[Path]:
    """Write `path` and, beside it, the weights with the suffix .bin, each renamed into place when
    complete; returns both. An earlier `path` is removed first: it would not fit the new
    weights. Raises as `files.failures_named`."""
    binary = path.with_suffix(".bin")
    with failures_named(path), folder_beside(path, make_parent=False) as folder:
        replace_file(folder / "weights", model.weights)
        replace_file(folder / "param", model.param.encode())
        path.unlink(missing_ok=True)
        os.replace(folder / "weights", binary)
        os.replace(folder / "param", path)
    return [path, binary]
