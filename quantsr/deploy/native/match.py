"""Programs that the kernels run, found in folded programs: a trunk of residual blocks of two 3x3
convolutions (EDSR's), or of Swin layers with convolutions behind each group (SwinIR's).

Every function takes the steps in order and raises Unsupported, naming the step, where another comes
than the kernels have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from quantsr.deploy.folded import (
    Activation,
    Attention,
    Binary,
    FirstConv,
    FoldedConv,
    FoldedLinear,
    FoldedProgram,
    Limits,
    Norm,
    Normalize,
    Op,
    Quantize,
    Requantize,
    Scale,
    Step,
)
from quantsr.deploy.native.structures import LAYERS_MAP, START_MAP
from quantsr.deploy.passes.collapse import Stage
from quantsr.deploy.passes.tail import linear_tail

T = TypeVar("T")

MOST = 4096
"""Channels, and parts of one kind in a row, that the kernels take."""


class Unsupported(ValueError):
    """A network that the kernels cannot run; the message says why."""


@dataclass(frozen=True, eq=False)
class Block:
    """`x' = (x * shortcut + conv2(conv1(codes of x))) * gap[0] * gap[1] ...`, multiplied one after
    the other."""

    quantize: Quantize
    conv1: FoldedConv
    conv2: FoldedConv
    shortcut: np.float32
    gap: tuple[np.float32, ...]
    """Shortcuts of the skipped units between this one and the next that runs."""


@dataclass(frozen=True, eq=False)
class ConvNet:
    """`x0 = first(picture)`; blocks on `x0 * gap[0] * ...`; `after_body(x) + x0`; the tail."""

    first: FirstConv
    gap: tuple[np.float32, ...]
    blocks: tuple[Block, ...]
    after_body: FoldedConv
    tail: tuple[Stage, ...]


@dataclass(frozen=True, eq=False)
class SwinLayer:
    """`m = x + proj(attention(norm1(x))); out = middle_multiplier * m + input_multiplier * x +
    fc2(codes(gelu(fc1(norm2(m)))))`."""

    norm1: Norm
    q: FoldedLinear
    k: FoldedLinear
    v: FoldedLinear
    attention: Attention
    proj: FoldedLinear
    norm2: Norm
    fc1: FoldedLinear
    gelu: Requantize
    fc2: FoldedLinear
    middle_multiplier: np.float32
    input_multiplier: np.float32


@dataclass(frozen=True, eq=False)
class ConvStage:
    """A conv on a map, its input quantized first where it reads codes."""

    quantize: Requantize | None
    conv: FoldedConv


@dataclass(frozen=True, eq=False)
class Ending:
    """What a group of layers, or the body, ends in before the sum with what it started from."""

    value: int
    """That its steps read beside each other's results."""
    steps: tuple[Step, ...]
    """At least one."""

    def stage(self, channels: int) -> ConvStage | None:
        """As one 3x3 convolution of so many channels; None where it is anything else."""
        first, last = self.steps[0].op, self.steps[-1].op
        quantize = first if isinstance(first, Requantize) else None
        if len(self.steps) != 1 + (quantize is not None) or type(last) is not FoldedConv:
            return None
        square = last.weight.shape == (channels, channels, 3, 3) and last.groups == 1
        return ConvStage(quantize, last) if square else None


@dataclass(frozen=True, eq=False)
class Rstb:
    """`stream_multiplier * x + ending(layers(start_multiplier * x))`."""

    start_multiplier: np.float32
    layers: tuple[SwinLayer, ...]
    ending: Ending
    stream_multiplier: np.float32


@dataclass(frozen=True, eq=False)
class SwinNet:
    """`x0 = first(picture)`; groups on norm_first(x0); `ending(norm(x)) + x0`; the tail, or any
    other steps."""

    first: FirstConv
    norm_first: Norm
    groups: tuple[Rstb, ...]
    norm: Norm
    stages: tuple[ConvStage, ...]
    """The endings of the groups and of the body, where each is one convolution; else none, and all
    of them are in `rest`."""
    tail: ConvStage | None
    """None: `rest` stands in its place."""
    rest: FoldedProgram
    """What runs in sweeps: the endings, if any, each from a `SwinMap` to a `GroupEnd`, and what
    follows the body, from `SwinMap`s."""


@dataclass(frozen=True, eq=False)
class SwinMap:
    """A map that the kernels of Swin layers give to sweeps."""

    channels: int
    slot: int
    """START_MAP or LAYERS_MAP."""
    limits: Limits | None = None
    """Of its codes."""


@dataclass(frozen=True, eq=False)
class GroupEnd:
    """The result of an ending, which the kernels of Swin layers add to what its group started
    from."""

    channels: int


def has_windows(program: FoldedProgram) -> bool:
    """Whether it is to be matched by `swin_net` instead of `conv_net`."""
    return program.multiple > 1


def conv_net(program: FoldedProgram) -> ConvNet:
    """The network as the kernels of convolutions run it."""
    tail = linear_tail(program)
    if tail is None or tail.quantize is not None:
        raise Unsupported("it does not end in 3x3 convolutions of floats")
    steps = _Steps(program, tail.start)
    start = steps.take(FirstConv, 0)
    gap, x = steps.scales(start.value)
    blocks = []
    while not steps.at(FoldedConv, x):
        block, x = _block(steps, x)
        blocks.append(block)
    if not blocks:
        raise Unsupported("it has no blocks")
    after = steps.take(FoldedConv, x)
    total = steps.add(after.value, start.value)
    steps.end()
    if total != tail.value:
        raise Unsupported("its tail reads another value than the sum behind its blocks")
    gaps = [gap, *(block.gap for block in blocks)]
    if max(len(start.op.head.weight), len(blocks), *map(len, gaps)) > MOST:
        raise Unsupported(f"it has more than {MOST} channels, blocks or factors in a row")
    return ConvNet(start.op, gap, tuple(blocks), after.op, tail.stages)


def _block(steps: _Steps, x: int) -> tuple[Block, int]:
    quantize = steps.take(Quantize, x)
    conv1 = steps.take(FoldedConv, quantize.value)
    conv2 = steps.take(FoldedConv, conv1.value)
    if not conv1.op.integer or not conv2.op.integer or conv1.op.codes_out is None:
        raise Unsupported("its blocks are not integer")
    shortcut, scaled = steps.scale(x)
    total = steps.add(scaled, conv2.value)
    gap, total = steps.scales(total)
    return Block(quantize.op, conv1.op, conv2.op, shortcut, gap), total


def swin_net(program: FoldedProgram) -> SwinNet:
    """The network as the kernels of Swin layers run it."""
    steps = _Steps(program, len(program.steps))
    pictures = steps.skip(Normalize)
    start = steps.take(FirstConv, 0)
    norm_first = steps.take(Norm, start.value)
    x, groups = norm_first.value, []
    while not steps.at(Norm, x) or steps.is_layer(x):
        group, x = _group(steps, x)
        groups.append(group)
    norm = steps.take(Norm, x)
    ending, value = steps.ending(norm.value, start.value)
    total = steps.add(value, start.value)
    channels = len(start.op.head.weight)
    stages = _stages([*(group.ending for group in groups), ending], channels)
    if stages:
        before, behind = [], [_step(SwinMap(channels, START_MAP), (0,), total), *pictures, *steps.left()]
    else:
        before = _endings(groups, channels, program)
        behind = [
            _step(SwinMap(channels, START_MAP), (0,), start.value),
            _step(SwinMap(channels, LAYERS_MAP, norm.op.limits), (0,), norm.value),
            *pictures,
            *ending.steps,
            Step(Binary("add"), (value, start.value), total),
            *steps.left(),
        ]
    known = {0, *(step.output for step in behind)}
    if any(not known.issuperset(step.inputs) for step in behind):
        raise Unsupported("what follows its groups reads other values than the sum behind them")
    rest = replace(program, steps=(*before, *behind))
    found, tail = linear_tail(program) if stages else None, None
    if found is not None and found.value == total and found.quantize is None and len(found.stages) == 1:
        tail = ConvStage(None, found.stages[0].conv)
    return SwinNet(start.op, norm_first.op, tuple(groups), norm.op, stages, tail, rest)


def _stages(endings: list[Ending], channels: int) -> tuple[ConvStage, ...]:
    """The endings of groups and, the last, of the body, which a LayerNorm gives codes; none unless
    each is one convolution."""
    stages = [ending.stage(channels) for ending in endings]
    found = tuple(stage for stage in stages if stage is not None)
    return found if len(found) == len(stages) and found[-1].quantize is None else ()


def _step(op: SwinMap | GroupEnd, inputs: tuple[int, ...], output: int) -> Step:
    return Step(op, inputs, output)  # type: ignore[arg-type]


def _endings(groups: list[Rstb], channels: int, program: FoldedProgram) -> list[Step]:
    """The endings of the groups as steps of sweeps."""
    found: list[Step] = []
    unused = 1 + max(step.output for step in program.steps)
    for output, group in enumerate(groups, start=unused):
        ending = group.ending
        found += [
            _step(SwinMap(channels, LAYERS_MAP), (0,), ending.value),
            *ending.steps,
            _step(GroupEnd(channels), (ending.steps[-1].output,), output),
        ]
    return found


def _group(steps: _Steps, x: int) -> tuple[Rstb, int]:
    first, inner = steps.scale(x)
    layers = []
    while steps.is_layer(inner):
        layer, inner = _swin_layer(steps, inner)
        layers.append(layer)
    ending, value = steps.ending(inner, x)
    multiplier, scaled = steps.scale(x)
    total = steps.add(scaled, value)
    return Rstb(first, tuple(layers), ending, multiplier), total


def _swin_layer(steps: _Steps, x: int) -> tuple[SwinLayer, int]:
    norm1 = steps.take(Norm, x)
    q, k, v = (steps.take(FoldedLinear, norm1.value) for _ in "qkv")
    attention = steps.take(Attention, q.value, k.value, v.value)
    proj = steps.take(FoldedLinear, attention.value)
    middle = steps.add(x, proj.value)
    norm2 = steps.take(Norm, middle)
    fc1 = steps.take(FoldedLinear, norm2.value)
    gelu = steps.take(Activation, fc1.value)
    if gelu.op.kind != "gelu" or not steps.at(Requantize, gelu.value):
        raise Unsupported("its linear layers are not integer")
    codes = steps.take(Requantize, gelu.value)
    fc2 = steps.take(FoldedLinear, codes.value)
    middle_multiplier, scaled = steps.scale(middle)
    out = steps.add(scaled, fc2.value)
    input_multiplier = np.float32(0)
    if steps.at(Scale, x) and steps.is_added(x, out):
        input_multiplier, scaled = steps.scale(x)
        out = steps.add(out, scaled)
    layer = SwinLayer(
        norm1.op,
        q.op,
        k.op,
        v.op,
        attention.op,
        proj.op,
        norm2.op,
        fc1.op,
        codes.op,
        fc2.op,
        middle_multiplier,
        input_multiplier,
    )
    return layer, out


@dataclass(frozen=True, eq=False)
class _Taken(Generic[T]):
    op: T
    value: int


class _Steps:
    """The steps of a program up to `end`, taken one after the other."""

    def __init__(self, program: FoldedProgram, end: int) -> None:
        self._steps = program.steps[:end]
        self._readers = program.readers()
        self._next = 0

    def _peek(self, ahead: int = 0) -> Step | None:
        at = self._next + ahead
        return self._steps[at] if at < len(self._steps) else None

    def at(self, kind: type[Op], *inputs: int) -> bool:
        """Whether the next step is of that kind and reads these values."""
        step = self._peek()
        return step is not None and type(step.op) is kind and step.inputs == inputs

    def take(self, kind: type[T], *inputs: int) -> _Taken[T]:
        """The next step, which must be of that kind and read these values."""
        step = self._peek()
        if step is None or type(step.op) is not kind or step.inputs != inputs:
            found = "its tail" if step is None else described(step.op)
            found = f"{found} of other values" if isinstance(step, Step) and type(step.op) is kind else found
            raise Unsupported(f"{found} comes where its kernels have {kind.__name__}")
        if isinstance(step.op, FoldedConv) and step.op.groups > 1:
            raise Unsupported(f"{step.op.name} has {step.op.groups} groups")
        self._next += 1
        return _Taken(step.op, step.output)

    def scale(self, x: int) -> tuple[np.float32, int]:
        """`x` times a constant: the constant, 1 where there is none, and the product."""
        if not self.at(Scale, x):
            return np.float32(1), x
        scale = self.take(Scale, x)
        return scale.op.factor, scale.value

    def scales(self, x: int) -> tuple[tuple[np.float32, ...], int]:
        """`x` times constants in turn, of which no one else reads a product."""
        factors: list[np.float32] = []
        while self.at(Scale, x) and (len(self._readers[x]) == 1 or not factors):
            factor, x = self.scale(x)
            factors.append(factor)
        return tuple(factors), x

    def add(self, a: int, b: int) -> int:
        """The sum of two values, in either order."""
        a, b = (b, a) if self.at(Binary, b, a) else (a, b)
        taken = self.take(Binary, a, b)
        if taken.op.kind != "add":
            raise Unsupported(f"{taken.op.kind} comes where its kernels have a sum")
        return taken.value

    def ending(self, value: int, start: int) -> tuple[Ending, int]:
        """The next steps from `value` on up to the sum of their result with `start`, and that
        result."""
        known, result = {value}, value
        taken: list[Step] = []
        while (step := self._peek()) is not None:
            scaled = isinstance(step.op, Scale) and step.inputs == (start,)
            added = isinstance(step.op, Binary) and set(step.inputs) == {start, result}
            if taken and (scaled or added):
                break
            if not known.issuperset(step.inputs):
                raise Unsupported(f"{described(step.op)} comes where its kernels have a convolution")
            result = step.output
            known.add(result)
            taken.append(step)
            self._next += 1
        return Ending(value, tuple(taken)), result

    def is_layer(self, x: int) -> bool:
        """Whether a Swin layer comes next."""
        following = self._peek(1)
        return self.at(Norm, x) and following is not None and type(following.op) is FoldedLinear

    def is_added(self, x: int, total: int) -> bool:
        """Whether the next step is `x` times a constant, to be added to `total`."""
        scale, following = self._peek(), self._peek(1)
        return (
            scale is not None
            and following is not None
            and scale.inputs == (x,)
            and isinstance(following.op, Binary)
            and following.inputs == (total, scale.output)
        )

    def skip(self, kind: type[Op]) -> tuple[Step, ...]:
        """The next steps, as long as they are of that kind."""
        first = self._next
        while (step := self._peek()) is not None and type(step.op) is kind:
            self._next += 1
        return self._steps[first : self._next]

    def left(self) -> tuple[Step, ...]:
        """The steps that are left."""
        return self._steps[self._next :]

    def end(self) -> None:
        """Raises Unsupported where steps are left."""
        if step := self._peek():
            raise Unsupported(f"{described(step.op)} comes where its kernels have the tail")


def described(op: Op) -> str:
    """An operation in a message."""
    name = getattr(op, "name", "") or getattr(op, "kind", "")
    return f"{type(op).__name__} {name}".strip()
