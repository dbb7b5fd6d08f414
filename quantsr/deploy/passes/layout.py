"""The layout of values: maps for convolutions, tokens in the order of their windows for attention.
Imports no torch.

Tokens move by one step between windows of different shifts. A value that several steps read is
moved once, for the first of them, and stays so for the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantsr.deploy.folded import (
    Attention,
    FirstConv,
    FoldedConv,
    FoldedLinear,
    FoldedProgram,
    Mean,
    Norm,
    Normalize,
    Op,
    Order,
    PixelShuffle,
    Reorder,
    Step,
    ToMap,
    ToTokens,
    UpsampleBilinear,
    UpsampleNearest,
)


@dataclass(frozen=True)
class _Map:
    """(C, H, W)"""


@dataclass(frozen=True)
class _Tokens:
    """(L, C)"""

    order: Order


_Layout = _Map | _Tokens


def lay_out(program: FoldedProgram) -> FoldedProgram:
    """The program with tokens where its layers read them; one without attention and LayerNorm stays
    as it is, and its linear layers are of maps."""
    if not any(isinstance(step.op, Attention | Norm) for step in program.steps):
        return program
    return _LayOut(program).run()


def _wants_map(op: Op) -> bool:
    maps = FirstConv | Normalize | PixelShuffle | UpsampleNearest | UpsampleBilinear | Mean
    return isinstance(op, maps) or (isinstance(op, FoldedConv) and not isinstance(op, FoldedLinear))


class _LayOut:
    def __init__(self, program: FoldedProgram) -> None:
        self.program, self.readers = program, program.readers()
        self.steps: list[Step] = []
        self.free = max(step.output for step in program.steps) + 1
        self.place: dict[int, int] = {0: 0}  # where each value is now
        self.layout: dict[int, _Layout] = {0: _Map()}
        windows = {step.op.window for step in program.steps if isinstance(step.op, Attention)}
        self.window = max(windows, default=1)

    def run(self) -> FoldedProgram:
        for step in self.program.steps:
            wanted = self.wanted(step)
            for value in step.inputs:
                if wanted is not None and self.layout[value] != wanted:
                    self.move(value, wanted)
            self.steps.append(replace(step, inputs=tuple(self.place[value] for value in step.inputs)))
            self.place[step.output] = step.output
            self.layout[step.output] = wanted or self.layout[step.inputs[0]]
        tokens = frozenset(value for value, layout in self.final.items() if isinstance(layout, _Tokens))
        return replace(self.program, steps=tuple(self.steps), tokens=tokens)

    @property
    def final(self) -> dict[int, _Layout]:
        """The layout of every value of the result."""
        found: dict[int, _Layout] = {0: _Map()}
        for step in self.steps:
            op = step.op
            if isinstance(op, ToTokens):
                found[step.output] = _Tokens(None)
            elif isinstance(op, Reorder):
                found[step.output] = _Tokens(op.new)
            elif isinstance(op, ToMap):
                found[step.output] = _Map()
            else:
                found[step.output] = found[step.inputs[0]]
        return found

    def wanted(self, step: Step) -> _Layout | None:
        """The layout that a step reads; None where any will do."""
        if _wants_map(step.op):
            return _Map()
        if isinstance(step.op, Attention):
            return _Tokens(step.op.shift)
        if isinstance(step.op, Norm | FoldedLinear):
            now = self.layout[step.inputs[0]]
            return self.windows_behind(step) or (now if isinstance(now, _Tokens) else _Tokens(None))
        layouts = [self.layout[value] for value in step.inputs]
        if all(layout == layouts[0] for layout in layouts):
            return None
        return next(layout for layout in layouts if isinstance(layout, _Tokens))

    def windows_behind(self, step: Step) -> _Tokens | None:
        """The order of the attention that reads what a step gives, with linear layers at most
        between; None where none does."""
        for reader in self.readers[step.output]:
            if isinstance(reader.op, Attention):
                return _Tokens(reader.op.shift)
            if isinstance(reader.op, FoldedLinear) and (found := self.windows_behind(reader)):
                return found
        return None

    def move(self, value: int, wanted: _Layout) -> None:
        now = self.layout[value]
        if isinstance(now, _Map):
            self.append(value, ToTokens(), _Tokens(None))
            now = _Tokens(None)
        order = wanted.order if isinstance(wanted, _Tokens) else None
        if now.order != order:
            self.append(value, Reorder(self.window, now.order, order), _Tokens(order))
        if isinstance(wanted, _Map):
            self.append(value, ToMap(), wanted)

    def append(self, value: int, op: Op, layout: _Layout) -> None:
        self.steps.append(Step(op, (self.place[value],), self.free))
        self.place[value], self.layout[value] = self.free, layout
        self.free += 1
