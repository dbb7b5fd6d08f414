"""Units of depth: what of a program runs at a depth, and the shortcuts that remain. Imports no
torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from quantsr.deploy.operations import UNITS
from quantsr.deploy.program import Operation, Program, used


def without(program: Program, kept: Collection[int], shortcuts: Sequence[float] | None = None) -> Program:
    """The program in which only the units `kept` run; the others multiply by their shortcut
    (without shortcuts: by 1)."""
    operations = []
    for op in program.operations:
        if op.kind in UNITS and op.attributes["unit"] not in kept:
            factor = 1.0 if shortcuts is None else shortcuts[op.attributes["unit"]]
            op = Operation("scale", op.inputs[:1], op.output, attributes={"factor": factor})
        operations.append(op)
    return replace(program, operations=used(operations, program.operations[-1].output))


def keep(program: Program, kept: Collection[int], shortcuts: Sequence[float]) -> Program:
    """`without`; of the units that run, the attribute `factor` is their shortcut."""
    cut = without(program, kept, shortcuts)
    return replace(
        cut,
        operations=tuple(
            replace(op, attributes={**op.attributes, "factor": shortcuts[op.attributes["unit"]]})
            if op.kind in UNITS
            else op
            for op in cut.operations
        ),
    )
