"""The linear end of a network: convolutions and pixel shuffles with nothing but roundings between
them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from quantsr.deploy.folded import (
    FoldedConv,
    FoldedLinear,
    FoldedProgram,
    Limits,
    Pixels,
    PixelShuffle,
    Quantize,
    Step,
)
from quantsr.deploy.passes import collapse
from quantsr.deploy.passes.collapse import RADIUS, Stage

_KERNEL = 3
_FINE = 2**16 - 1  # steps of a range of codes
_MAX_VALUES = 1 << 27  # of float64 in composing the kernels: 1 GB


@dataclass(frozen=True, eq=False)
class Tail:
    """The last steps of a program."""

    value: int
    """The map of floats that it reads."""
    quantize: Quantize | None
    """Of its first convolution's input."""
    stages: tuple[Stage, ...]
    """The last one gives pixel values before they are rounded, and its shuffle is of pixels."""
    start: int
    """Index of its first step."""


def _is_coarse(limits: Limits) -> bool:
    """Whether rounding to these codes is more than can be left out."""
    return limits[1] - limits[0] < _FINE


def linear_tail(program: FoldedProgram) -> Tail | None:
    """The longest tail that sees at most `RADIUS` pixels of its input on each side; None where the
    program does not end in a 3x3 convolution, or its composed kernels would take too much memory to
    find."""
    steps = {step.output: step for step in program.steps}
    readers = program.readers()

    def alone(value: int, kind: type) -> Step | None:
        """The step of that kind that gives `value`, where only one reads it."""
        step = steps.get(value)
        return step if step is not None and type(step.op) is kind and len(readers[value]) == 1 else None

    last = program.steps[-1]
    shuffle = 1
    if isinstance(last.op, PixelShuffle):
        shuffle, last = last.op.factor, steps[last.inputs[0]]
    if not isinstance(last.op, Pixels):
        return None
    stages: list[Stage] = []
    value, reach, factor = last.inputs[0], 0.0, float(program.scale)
    first: Step | None = None
    while (step := alone(value, FoldedConv)) and isinstance(step.op, FoldedConv):
        coarse = stages and step.op.codes_out is not None and _is_coarse(step.op.codes_out)
        other = step.op.weight.shape[-1] != _KERNEL or step.op.groups > 1
        if other or reach + shuffle / factor > RADIUS or coarse:
            break
        factor /= shuffle
        reach += 1 / factor
        stages.append(Stage(step.op, shuffle))
        first, value, shuffle = step, step.inputs[0], 1
        if shuffled := alone(value, PixelShuffle):
            assert isinstance(shuffled.op, PixelShuffle)
            shuffle, value = shuffled.op.factor, shuffled.inputs[0]
        elif factor <= 1:
            break
    stages.reverse()
    if first is None or factor != 1 or collapse.values(stages) > _MAX_VALUES:
        return None
    assert not isinstance(first.op, FoldedLinear)
    quantize, start = None, first
    if before := alone(first.inputs[0], Quantize):
        assert isinstance(before.op, Quantize)
        quantize, start = before.op, before
    index = next(i for i, step in enumerate(program.steps) if step is start)
    return Tail(start.inputs[0], quantize, tuple(stages), index)
