"""The end of a network, changed so that it is computed at low resolution: a linear tail as one
convolution, and a pixel shuffle in front of sums with the enlarged picture behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import (
    Binary,
    FoldedConv,
    FoldedProgram,
    Normalize,
    Offset,
    Pixels,
    PixelShuffle,
    Scale,
    Step,
    UpsampleNearest,
)
from quantsr.deploy.native.arrays import MAX_OUTPUTS
from quantsr.deploy.native.match import GroupEnd
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes import collapse
from quantsr.deploy.passes.collapse import Stage
from quantsr.deploy.passes.tail import linear_tail

_WIDE_BITS, _COLOURS = 16, 3


@dataclass(frozen=True, eq=False)
class Select:
    """Some channels, some of them several times."""

    channels: tuple[int, ...]


def with_tail_in_float(model: PackedModel) -> PackedModel:
    """The network with those layers dequantized that have 16-bit inputs and no codes of fewer bits
    behind them: what these inputs round is below what can be seen, and changes no code."""
    needed: set[int] = set()
    floats = {}
    for op in reversed(model.program.operations):
        layer = model.layers.get(op.name) if op.kind in ("conv", "linear") else None
        if op.output in needed or (layer is not None and layer.bits_a < _WIDE_BITS):
            needed.update(op.inputs)
        elif layer is not None and layer.bits_a == _WIDE_BITS:
            floats[op.name] = layer.dequantized()
    return replace(model, layers={**model.layers, **floats})


@dataclass(frozen=True, eq=False)
class CollapsedTail:
    """All steps from some value on, linear but for roundings."""

    stages: tuple[Stage, ...]

    def inner(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight (P, C, 5, 5) and bias of every pixel that is not at the border."""
        position = {"inner": collapse.POSITIONS["inner"]}
        (kernel,) = collapse.collapse(self.stages, position, position).values()
        return kernel.weight, kernel.bias


def with_collapsed_tail(program: FoldedProgram) -> FoldedProgram:
    """The program with a linear tail of several convolutions of floats as one step."""
    tail = linear_tail(program)
    if tail is None or tail.quantize is not None or len(tail.stages) < 2:
        return program
    own, steps = {tail.value}, program.steps[tail.start :]
    for step in steps:
        if not own.issuperset(step.inputs):
            return program
        own.add(step.output)
    if any(stage.conv.codes_in is not None for stage in tail.stages) or 3 * program.scale**2 > MAX_OUTPUTS:
        return program
    last = Step(CollapsedTail(tail.stages), (tail.value,), steps[-1].output)  # type: ignore[arg-type]
    return replace(program, steps=(*program.steps[: tail.start], last))


def with_shuffle_last(program: FoldedProgram) -> FoldedProgram:
    """The program with a pixel shuffle to three colours as its last step where it can be: in front
    of it are sums with values that are enlarged by as much, factors and offsets."""
    steps = {step.output: step for step in program.steps}
    readers = program.readers()
    last = program.steps[-1]
    if not isinstance(last.op, Pixels):
        return program
    between: list[tuple[Step, int]] = []  # what is passed, and the value by which
    value = last.inputs[0]
    while (step := steps.get(value)) is not None and len(readers[value]) == 1:
        if isinstance(step.op, PixelShuffle):
            return _moved(program, step, between, last)
        if isinstance(step.op, Scale | Offset):
            value = step.inputs[0]
        elif isinstance(step.op, Binary):
            shuffled = [v for v in step.inputs if isinstance(getattr(steps.get(v), "op", None), PixelShuffle)]
            if len(shuffled) != 1:
                return program
            value = shuffled[0]
        else:
            return program
        between.append((step, value))
    return program


def _channels(steps: Mapping[int, Step], value: int) -> int | None:
    """Of the normalized picture, or of a convolution's result; None of any other value."""
    op = steps[value].op if value in steps else None
    if isinstance(op, Normalize):
        return _COLOURS
    return len(op.weight) if isinstance(op, FoldedConv) else None


def _moved(
    program: FoldedProgram, shuffle: Step, between: list[tuple[Step, int]], last: Step
) -> FoldedProgram:
    assert isinstance(shuffle.op, PixelShuffle)
    times = shuffle.op.factor**2
    steps = {step.output: step for step in program.steps}
    if _channels(steps, shuffle.inputs[0]) != _COLOURS * times:
        return program
    repeated = tuple(int(c) for c in np.repeat(np.arange(_COLOURS), times))
    changed: dict[int, list[Step]] = {shuffle.output: []}
    number = max(steps) + 1
    renamed = {shuffle.output: shuffle.inputs[0]}
    for step, way in reversed(between):
        op: Any = step.op
        inputs = []
        before = []
        for value in step.inputs:
            if value == way:
                inputs.append(renamed.get(value, value))
                continue
            other = steps.get(value)
            if (
                other is None
                or not isinstance(other.op, UpsampleNearest)
                or other.op.factor != shuffle.op.factor
                or _channels(steps, other.inputs[0]) != _COLOURS
            ):
                return program
            before.append(Step(Select(repeated), other.inputs, number))  # type: ignore[arg-type]
            inputs.append(number)
            number += 1
        if isinstance(op, Offset):
            op = replace(op, values=np.repeat(op.values, times))
        changed[step.output] = [*before, Step(op, tuple(inputs), step.output)]
    value = renamed.get(last.inputs[0], last.inputs[0])
    changed[last.output] = [Step(last.op, (value,), number), Step(shuffle.op, (number,), last.output)]
    found = [x for step in program.steps for x in changed.get(step.output, [step])]
    used: set[int] = {found[-1].output}
    kept = []
    for step in reversed(found):
        if step.output in used or isinstance(step.op, GroupEnd):
            used.update(step.inputs)
            kept.append(step)
    return replace(program, steps=tuple(reversed(kept)))
