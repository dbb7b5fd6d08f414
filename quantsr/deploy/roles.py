"""What the layers of a network are for, found in its program. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Literal

from quantsr.deploy.program import PICTURE, Operation, Program

Role = Literal["first", "depthwise", "body", "last"]
"""A layer that reads the picture, or other colours of it, as a layer with at most three outputs
gives; of the others one at or behind the enlargement, or with no layer behind it (last); one whose
outputs each read a single input (depthwise); any other. A body layer behind which only last ones
lie is one of them where no path of the picture avoids it, as shortcuts do: it carries the picture's
tones too. Quantizing the first layer of an SRResNet alone costs 14 dB, the last ones decide the
picture's tones, and a sum of a depthwise layer has few products for their errors to cancel: the
body is what low bits are for."""

_LAYERS = ("conv", "linear")
_ENLARGING = ("pixel_shuffle", "upsample_nearest", "upsample_bilinear")
_SHRINKING = ("max_pool", "pixel_unshuffle")


def roles(
    program: Program, depthwise: Collection[str] = (), colours: Collection[str] = ()
) -> Mapping[str, Role]:
    """The role of every layer, in the order of the program.

    Args:
        depthwise: names of the convolutions with one input for each output.
        colours: names of those with at most three outputs.
    """
    readers = program.readers()
    large = _large(program)
    needed: set[int] = set()  # values that a later layer depends on
    for op in reversed(program.operations):
        if op.kind in _LAYERS or op.output in needed:
            needed.update(op.inputs)
    found: dict[str, Role] = {}
    pictures = {op.output for op in program.operations if op.kind == "normalize"}
    plain = {PICTURE}  # values with no layer before
    for op in program.operations:
        if op.kind not in _LAYERS and plain.issuperset(op.inputs):
            plain.add(op.output)
            if op.kind == "concat" and not pictures.isdisjoint(op.inputs):
                pictures.add(op.output)
        if op.kind in ("scale", "pixel_unshuffle") and op.inputs[0] in pictures:
            pictures.add(op.output)
        if op.kind not in _LAYERS:
            continue
        shuffled = (x.output for x in readers[op.output] if x.kind == "pixel_shuffle")
        enlarged = op.output in large or any(value in large for value in shuffled)
        if op.inputs[0] in pictures:
            found[op.name] = "first"
            if op.name in colours:
                pictures.add(op.output)
        elif enlarged or op.output not in needed:
            found[op.name] = "last"
        else:
            found[op.name] = "depthwise" if op.name in depthwise else "body"
    body = [op for op in program.operations if found.get(op.name) == "body"]
    # One layer stays, whatever it carries: a network of a single body layer is quantized there.
    if body and body[-1].name != body[0].name and _carries_all(program, body[-1]):
        found[body[-1].name] = "last"
    return found


def _large(program: Program) -> set[int]:
    """Values at or behind the enlargement: maps larger than those of all layers before. Where maps
    were shrunk, their enlargement to the size before is none."""
    producers = {op.output: op for op in program.operations}
    growth, most = {PICTURE: Fraction(1)}, Fraction(0)
    large: set[int] = set()
    for op in program.operations:
        size = max(growth[value] for value in op.inputs)
        factor = op.attributes.get("factor", 1)
        if op.kind in _ENLARGING:
            size *= factor
            if size > most and producers[op.inputs[0]].kind != "normalize":
                large.add(op.output)
        elif op.kind in _SHRINKING:
            size /= factor
        elif op.kind in ("resize_nearest", "mean"):
            size = Fraction(factor if op.kind == "resize_nearest" else 0)
        growth[op.output] = size
        if any(value in large for value in op.inputs):
            large.add(op.output)
        elif op.kind in _LAYERS:
            most = max(most, size)
    return large


def _carries_all(program: Program, layer: Operation) -> bool:
    """Whether the picture reaches the result through this operation alone."""
    reached = {PICTURE}
    for op in program.operations:
        if op is not layer and reached.intersection(op.inputs):
            reached.add(op.output)
    return program.operations[-1].output not in reached
