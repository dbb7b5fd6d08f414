"""The layout of values: maps for convolutions, tokens in the order of their windows for attention.
Imports no torch.

Tokens move by one step between windows of different shifts, by two between windows of different
sizes. A value that several steps read in one layout is moved once; one that is read in several is
moved from each to the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantsr.deploy.folded import (
    Attention,
    ChannelAttention,
    FirstConv,
    FoldedConv,
    FoldedLinear,
    FoldedProgram,
    GlobalAttention,
    GroupNorm,
    MaxPool,
    Mean,
    Norm,
    Normalize,
    Op,
    Order,
    PixelShuffle,
    PixelUnshuffle,
    RectangleAttention,
    Reorder,
    ResizeNearest,
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

    order: Order = None
    window: int = 1
    """Side of the windows that order them; 1 row by row."""


_Layout = _Map | _Tokens

_FINDING_PIXELS = RectangleAttention | ChannelAttention | GlobalAttention
"""Operations on tokens row by row, which take what they need of them."""


def lay_out(program: FoldedProgram) -> FoldedProgram:
    """The program with tokens where its layers read them; one without attention and LayerNorm stays
    as it is, and its linear layers are of maps."""
    if not any(isinstance(step.op, Attention | Norm | _FINDING_PIXELS) for step in program.steps):
        return program
    return _LayOut(program).run()


def _wants_map(op: Op) -> bool:
    sizes = PixelShuffle | PixelUnshuffle | UpsampleNearest | UpsampleBilinear | MaxPool | ResizeNearest
    return isinstance(op, FirstConv | Normalize | GroupNorm | sizes | Mean) or (
        isinstance(op, FoldedConv) and not isinstance(op, FoldedLinear)
    )


class _LayOut:
    def __init__(self, program: FoldedProgram) -> None:
        self.program = program
        self.steps: list[Step] = []
        self.free = max(step.output for step in program.steps) + 1
        self.place: dict[int, int] = {0: 0}  # where each value is now
        self.layout: dict[int, _Layout] = {0: _Map()}
        self.growth = program.growth()
        self.windows = _windows_behind(program)

    def run(self) -> FoldedProgram:
        for step in self.program.steps:
            wanted = self.wanted(step)
            for value in step.inputs:
                if wanted is not None and self.layout[value] != wanted:
                    self.move(value, wanted)
            if isinstance(step.op, RectangleAttention):
                step = replace(step, op=replace(step.op, growth=self.growth[step.inputs[0]]))
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
            return _Tokens(step.op.shift, step.op.window)
        if isinstance(step.op, Norm | FoldedLinear):
            now = self.layout[step.inputs[0]]
            return self.windows.get(step.output) or (now if isinstance(now, _Tokens) else _Tokens())
        if isinstance(step.op, _FINDING_PIXELS):
            return _Tokens()
        layouts = [self.layout[value] for value in step.inputs]
        if all(layout == layouts[0] for layout in layouts):
            return None
        # One number for each channel goes with any order, so maps decide.
        maps = [self.layout[value] for value in step.inputs if self.growth[value]] or layouts
        return next((layout for layout in maps if isinstance(layout, _Tokens)), maps[0])

    def move(self, value: int, wanted: _Layout) -> None:
        now, growth = self.layout[value], self.growth[value]
        if isinstance(now, _Map):
            now = _Tokens()
            self.append(value, ToTokens(growth), now)
        if isinstance(wanted, _Tokens) and growth == 1:
            for window, old, new in _moves(now, wanted):
                self.append(value, Reorder(window, old, new), _Tokens(new, window))
        elif isinstance(wanted, _Map):
            if now.order is not None and growth == 1:
                self.append(value, Reorder(now.window, now.order, None), _Tokens())
            self.append(value, ToMap(growth), wanted)
        self.layout[value] = wanted

    def append(self, value: int, op: Op, layout: _Layout) -> None:
        self.steps.append(Step(op, (self.place[value],), self.free))
        self.place[value], self.layout[value] = self.free, layout
        self.free += 1


def _moves(now: _Tokens, wanted: _Tokens) -> list[tuple[int, Order, Order]]:
    """(window, old order, new order) of the steps from one order of tokens to another."""
    if now == wanted:
        return []
    if now.order is None or wanted.order is None or now.window == wanted.window:
        return [(wanted.window if now.order is None else now.window, now.order, wanted.order)]
    return [(now.window, now.order, None), (wanted.window, None, wanted.order)]


def _windows_behind(program: FoldedProgram) -> dict[int, _Tokens]:
    """For each value the order of the attention that reads it, with linear layers at most between;
    of several the first."""
    readers, found = program.readers(), dict[int, _Tokens]()
    for step in reversed(program.steps):
        for reader in readers[step.output]:
            if isinstance(reader.op, Attention):
                found[step.output] = _Tokens(reader.op.shift, reader.op.window)
            elif isinstance(reader.op, FoldedLinear) and reader.output in found:
                found[step.output] = found[reader.output]
            else:
                continue
            break
    return found
