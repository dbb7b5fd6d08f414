"""Programs that the kernels run, found in folded programs: a trunk of residual blocks of two 3x3
convolutions (EDSR's), or of Swin layers with convolutions behind each group (SwinIR's).

Every function takes the steps in order (`match_steps.py`) and raises Unsupported, naming the step,
where another comes than the kernels have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    Quantize,
    Requantize,
    Scale,
    Step,
)
from quantsr.deploy.native.match_steps import Steps, Unsupported
from quantsr.deploy.native.structures import LAYERS_MAP, START_MAP
from quantsr.deploy.passes.collapse import Stage
from quantsr.deploy.passes.tail import linear_tail

MOST = 4096
"""Channels, and parts of one kind in a row, that the kernels take."""


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
    """At least one, unless the program ends."""

    @property
    def result(self) -> int:
        """Of the last step."""
        return self.steps[-1].output if self.steps else self.value

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
    steps = Steps(program, tail.start)
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


def _block(steps: Steps, x: int) -> tuple[Block, int]:
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
    steps = Steps(program, len(program.steps))
    pictures = steps.skip(Normalize)
    start = steps.take(FirstConv, 0)
    norm_first = steps.take(Norm, start.value)
    x, groups = norm_first.value, []
    while not steps.at(Norm, x) or steps.is_layer(x):
        group, x = _group(steps, x)
        groups.append(group)
    norm = steps.take(Norm, x)
    ending = Ending(norm.value, steps.until_sum(norm.value, start.value))
    total = steps.add(ending.result, start.value)
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
            Step(Binary("add"), (ending.result, start.value), total),
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
            _step(GroupEnd(channels), (ending.result,), output),
        ]
    return found


def _group(steps: Steps, x: int) -> tuple[Rstb, int]:
    first, inner = steps.scale(x)
    layers = []
    while steps.is_layer(inner):
        layer, inner = _swin_layer(steps, inner)
        layers.append(layer)
    ending = Ending(inner, steps.until_sum(inner, x))
    multiplier, scaled = steps.scale(x)
    total = steps.add(scaled, ending.result)
    return Rstb(first, tuple(layers), ending, multiplier), total


def _swin_layer(steps: Steps, x: int) -> tuple[SwinLayer, int]:
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
