"""Cutting a network down to one of its depths: a network with only the units that run. Imports no
torch."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from quantsr.deploy.operations import UNITS, parameters
from quantsr.deploy.packed.description import Header
from quantsr.deploy.packed.model import PackedLayer, PackedModel
from quantsr.deploy.passes import units
from quantsr.deploy.program import Operation, Program, used
from quantsr.errors import InputError


def restrict(model: PackedModel, depth: int) -> PackedModel:
    """The network of `depth` units as one of its own, with the depths below it.

    Units that never run are dropped, the others renumbered. Where the file holds its program, a
    dropped unit stays as an operation `scale` by its shortcut, so that the network computes the
    same, bit for bit. Where its type says the program, the product of dropped shortcuts is folded
    into the layers before them or, at the beginning, behind them, which is exact but for the
    rounding of their constants.

    Raises:
        InputError: an unknown depth; or, without a program in the file, shortcuts whose product is
            not positive, or units that cannot be taken out.
    """
    kept = model.header.blocks_kept(depth)
    if len(kept) == model.header.num_block:
        return model
    if model.written is not None:
        return _Cut(model, depth, kept).run()
    return _cut_of_known_type(model, depth, kept)


class _Cut:
    """The parts that remain. Those of a network with its program in the file."""

    def __init__(self, model: PackedModel, depth: int, kept: tuple[int, ...]) -> None:
        self.model, self.depth, self.kept = model, depth, kept
        self.layers = dict(model.layers)
        self.floats = dict(model.floats)
        self.shortcuts = {i: model.header.shortcuts[i] for i in kept}

    def run(self) -> PackedModel:
        program = _joined(units.without(self.model.program, self.kept, self.model.header.shortcuts))
        layers = {op.name for op in program.operations if op.kind in ("conv", "linear")}
        named = [parameters(op) for op in program.operations]
        operands, floats = ({name for pair in named for name in pair[i]} for i in (0, 1))
        return PackedModel(
            self._header(),
            {n: part for n, part in self.layers.items() if n in layers},
            {n: part for n, part in self.model.operands.items() if n in operands},
            {n: part for n, part in self.floats.items() if n in floats},
            self._renumbered(program),
        )

    def _header(self) -> Header:
        header = self.model.header
        number = {old: new for new, old in enumerate(self.kept)}
        assert header.ranking is not None  # else only the full depth exists
        # Under the released rule a depth of d keeps d + 1 blocks; the cut network counts what it
        # has.
        depths = tuple(len(header.blocks_kept(d)) for d in header.depths if d <= self.depth)
        exact = {"depth_rule": "exact"} if "depth_rule" in header.arch else {}
        return replace(
            header,
            arch={**header.arch, **exact},
            depths=depths,
            num_block=len(self.kept),
            shortcuts=tuple(float(np.float32(self.shortcuts[i])) for i in self.kept),
            ranking=tuple(number[i] for i in header.ranking if i in number),
        )

    def _renumbered(self, program: Program) -> Program:
        number = {old: new for new, old in enumerate(self.kept)}
        return replace(
            program,
            operations=tuple(
                replace(op, attributes={"unit": number[op.attributes["unit"]]}) if op.kind in UNITS else op
                for op in program.operations
            ),
        ).renumbered()


def _cut_of_known_type(model: PackedModel, depth: int, kept: tuple[int, ...]) -> PackedModel:
    shortcuts = np.asarray(model.header.shortcuts, np.float64)
    ends = itertools.pairwise((-1, *kept, model.header.num_block))
    gaps = [float(np.prod(shortcuts[a + 1 : b])) for a, b in ends]
    if min(gaps) <= 0:
        raise InputError(
            f"depth: the shortcuts dropped at depth {depth} are not positive; export the full depth instead"
        )
    return _CutOfKnownType(model, depth, kept, gaps).run()


class _CutOfKnownType(_Cut):
    """Of a network whose type says its program: at the branch and before the first unit it has
    layers of which nothing else reads the result."""

    def __init__(self, model: PackedModel, depth: int, kept: tuple[int, ...], gaps: list[float]) -> None:
        super().__init__(model, depth, kept)
        self.gaps = gaps
        self.full = model.program
        self.ends = {op.attributes["unit"]: op for op in self.full.operations if op.kind in UNITS}
        if any(op.kind == "around" for op in self.ends.values()):
            raise InputError(
                "depth: the units of this network cannot be taken out of a packed file; export all depths, "
                "or one depth as .onnx or .xml"
            )

    def run(self) -> PackedModel:
        for unit, gap in zip(self.kept, self.gaps[1:], strict=True):
            self.multiply_branch(self.ends[unit], gap)
            self.shortcuts[unit] *= gap
        self.multiply_start(self.gaps[0])
        cut, new_name = super().run(), self._names()
        return PackedModel(
            cut.header,
            {new_name(n): replace(part, name=new_name(n)) for n, part in cut.layers.items()},
            {new_name(n): replace(part, name=new_name(n)) for n, part in cut.operands.items()},
            {new_name(n): replace(part, name=new_name(n)) for n, part in cut.floats.items()},
        )

    def _header(self) -> Header:
        header = super()._header()
        arch = {**header.arch, "num_block": len(self.kept), "depths": list(header.depths)}
        return replace(header, arch=arch)

    def multiply_branch(self, end: Operation, gap: float) -> None:
        """The last layer of a unit, times the shortcuts of those that follow it and are dropped."""
        source = self.full.producer(end.inputs[1])
        if source is None or source.kind not in ("conv", "linear"):
            raise InputError(
                f"depth: unit {end.attributes['unit']} does not end in a layer; export all depths, or one depth as .onnx or .xml"
            )
        self.layers[source.name] = multiply_output(self.layers[source.name], gap)

    def multiply_start(self, gap: float) -> None:
        """What the first unit reads, times the shortcuts of those before it: into the LayerNorm
        before, or into the layers that read it."""
        start = self.ends[0].inputs[0]
        source = self.full.producer(start)
        if gap == 1:
            return
        if source is not None and source.kind == "layer_norm":
            for part in ("weight", "bias"):
                tensor = self.floats[f"{source.name}.{part}"]
                values = (tensor.values * np.float64(gap)).astype(np.float32)
                self.floats[tensor.name] = replace(tensor, values=values)
            return
        first = self.ends[self.kept[0]]
        inside = _inside(self.full, first)
        for op in inside:
            if first.inputs[0] in op.inputs and op is not first:
                if op.kind != "conv":
                    raise InputError(
                        "depth: its first unit does not begin with a convolution; export all depths"
                    )
                conv = _multiply_input(self.layers[op.name], gap)
                self.layers[op.name] = multiply_weight(conv, gap)
        self.shortcuts[self.kept[0]] *= gap

    def _names(self) -> Any:
        """The new name of a part: units are named by their number."""
        prefixes = {}
        for new, old in enumerate(self.kept):
            first = next(op.name for op in _inside(self.full, self.ends[old]) if op.name)
            parent = first.partition(f".{old}.")[0]
            prefixes[f"{parent}.{old}."] = f"{parent}.{new}."

        def renamed(name: str) -> str:
            prefix = ".".join(name.split(".")[:2]) + "."
            return name.replace(prefix, prefixes[prefix], 1) if prefix in prefixes else name

        return renamed


def _inside(program: Program, end: Operation) -> list[Operation]:
    """The operations of a unit, from the stream to its end."""
    stream = end.inputs[0]
    before = {op.output for op in used(program.operations, stream)}
    return [op for op in used(program.operations, end.output) if op.output not in before]


def _joined(program: Program) -> Program:
    """Without the factors 1 that stand for dropped units."""
    renamed: dict[int, int] = {}
    operations = []
    for op in program.operations:
        op = replace(op, inputs=tuple(renamed.get(value, value) for value in op.inputs))
        if op.kind == "scale" and op.attributes["factor"] == 1:
            renamed[op.output] = op.inputs[0]
        else:
            operations.append(op)
    return replace(program, operations=tuple(operations))


def multiply_weight(layer: PackedLayer, factor: float) -> PackedLayer:
    """The layer with its weight multiplied by `factor` > 0; its codes stay the same."""
    if factor == 1:
        return layer
    if layer.weight_step is None:
        return replace(layer, weight=(layer.weight * np.float64(factor)).astype(np.float32))
    return replace(layer, weight_step=(layer.weight_step.astype(np.float64) * factor).astype(np.float32))


def multiply_output(layer: PackedLayer, factor: float) -> PackedLayer:
    """The layer with its result multiplied by `factor` > 0; its codes stay the same."""
    return replace(multiply_weight(layer, factor), bias=(layer.bias * np.float64(factor)).astype(np.float32))


def _multiply_input(layer: PackedLayer, factor: float) -> PackedLayer:
    """The layer for an input that has not yet been multiplied by `factor`; its codes stay the
    same."""
    if layer.act_step is None or factor == 1:
        return layer
    step = (layer.act_step.astype(np.float64) / factor).astype(np.float32)
    tau = None if layer.act_tau is None else (layer.act_tau.astype(np.float64) / factor).astype(np.float32)
    return replace(layer, act_step=step, act_tau=tau)
