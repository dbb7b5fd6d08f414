"""What the layers of a network are for, found in its program. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from quantsr.deploy.program import Program

Role = Literal["first", "body", "last"]
"""A layer that reads the picture; one at or behind the enlargement, or with no layer behind it; any
other. Quantizing the first layer of an SRResNet alone costs 14 dB, and the last ones decide the
picture's tones: the body is what low bits are for."""

_LAYERS = ("conv", "linear")
_ENLARGING = ("pixel_shuffle", "upsample_nearest", "upsample_bilinear")


def roles(program: Program) -> Mapping[str, Role]:
    """The role of every layer, in the order of the program."""
    producers = {op.output: op for op in program.operations}
    readers = program.readers()
    large = set()  # values at or behind an enlargement
    for op in program.operations:
        enlarges = op.kind in _ENLARGING and producers[op.inputs[0]].kind != "normalize"
        if enlarges or any(value in large for value in op.inputs):
            large.add(op.output)
    needed: set[int] = set()  # values that a later layer depends on
    for op in reversed(program.operations):
        if op.kind in _LAYERS or op.output in needed:
            needed.update(op.inputs)
    found: dict[str, Role] = {}
    for op in program.operations:
        if op.kind not in _LAYERS:
            continue
        source = producers.get(op.inputs[0])
        enlarged = op.output in large or any(x.kind == "pixel_shuffle" for x in readers[op.output])
        if source is not None and source.kind == "normalize":
            found[op.name] = "first"
        elif enlarged or op.output not in needed:
            found[op.name] = "last"
        else:
            found[op.name] = "body"
    return found
