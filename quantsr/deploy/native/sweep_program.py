"""A network as a program of sweeps, laid out for the kernels."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import FoldedProgram
from quantsr.deploy.native import structures
from quantsr.deploy.native.arrays import Arrays
from quantsr.deploy.native.match import Unsupported
from quantsr.deploy.native.sweep_end import with_tail_in_float
from quantsr.deploy.native.sweep_steps import StepsToSweeps
from quantsr.deploy.native.sweeps import Channels, Do, Map, Sweep, assign_slots
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes import collapse
from quantsr.deploy.passes.fold import fold

_MAX_FACTOR = 8


class SweepProgram(Arrays):
    """See `arrays.Program`. Of every network whose folded program has nothing but the operations of
    `sweep_steps`."""

    multiple = 1

    def __init__(
        self, program: FoldedProgram, model: PackedModel, isa: str, *, copies_before: int = 0
    ) -> None:
        """`isa` is one of `library.ISAS`; `copies_before` counts those of codes that other kernels
        make. Raises Unsupported."""
        super().__init__()
        if program.scale > _MAX_FACTOR:
            raise Unsupported(f"it upscales by {program.scale}")
        self.multiple = program.multiple
        steps = StepsToSweeps(program, model.layers, isa, self)
        self._reads, self._tail, self._tail_inputs = steps.codes_read, steps.tail, steps.tail_inputs
        self._rings: dict[tuple[int, int], structures.Ring] = {}
        maps = [m for m in steps.maps if m.written]
        slots = assign_slots(maps)
        self._number = {id(m): index for index, m in enumerate(maps)}
        copies: dict[int, int] = {}
        for number, (source, _, _) in enumerate(self._reads.values(), start=1 + copies_before):
            copies.setdefault(id(source), number)
        self._copies = copies
        buffers = [
            structures.Buffer(m.factor, m.channels, m.kind, m.border % 256, slot)
            for m, slot in zip(maps, slots, strict=True)
        ]
        kept = [sweep for sweep in steps.sweeps if sweep.operations]  # what is read
        sweeps = [self._sweep(sweep) for sweep in kept]
        ends = [0, *(sum(bool(sweep.operations) for sweep in made) for _, made in steps.group_ends)]
        self.closings = tuple(
            Closing(end - start, self._number[id(result)])
            for (result, _), (start, end) in zip(steps.group_ends, pairwise(ends), strict=True)
        )
        """Of the groups of Swin layers that its first sweeps close."""
        laid_out = structures.Program(
            buffers=len(buffers),
            slots=max(1, max(slots) + 1),
            sweeps=len(sweeps),
            buffer=self.keep((structures.Buffer * len(buffers))(*buffers)),
            sweep=self.keep((structures.Sweep * len(sweeps))(*sweeps)),
        )
        self.network = structures.Network(factor=program.scale, program=ctypes.pointer(self.keep(laid_out)))

    def for_size(self, height: int, width: int) -> structures.Network:
        """See `arrays.Program`: a collapsed tail has other kernels at the border of small
        pictures."""
        if self._tail is not None and self._tail_inputs is not None:
            size = (min(height, collapse.MIN_SIZE), min(width, collapse.MIN_SIZE))
            if size not in self._rings:
                self._rings[size] = self.ring(self._tail.stages, *size, *self._tail_inputs)
            self.network.ring = self._rings[size]
        return self.network

    def code_maps(self, height: int, width: int) -> dict[str, CodesOfSweep]:
        """See `arrays.Program`; (C, height, width) each, of the map that the layer reads."""
        return {
            name: CodesOfSweep(source, places, conv.codes_in, *_size(source.factor, height, width))
            for name, (source, places, conv) in self._reads.items()
            if conv.codes_in is not None
        }

    def _sweep(self, sweep: Sweep) -> structures.Sweep:
        registers = sweep.registers()
        assert registers is not None
        operations = [
            self._operation(do, *found) for do, found in zip(sweep.operations, registers, strict=True)
        ]
        fields = dict(sweep.fields)
        if "index" in fields:
            fields["index"] = self.pointer(fields["index"], np.int32)
        if "mean" in fields:
            fields["mean"] = self.pointer(fields["mean"])
        return structures.Sweep(
            source=sweep.source,
            input=0 if sweep.input is None else self._number[id(sweep.input)],
            factor=sweep.factor,
            channels=sweep.channels,
            shuffle=sweep.shuffle,
            operations=len(operations),
            operation=self.keep((structures.Elementwise * len(operations))(*operations)),
            **fields,
        )

    def _operation(self, do: Do, result: int, left: int, right: int) -> structures.Elementwise:
        values = (structures.F32 * 3)(*(self.pointer(part) for part in do.values))
        return structures.Elementwise(
            kind=do.kind,
            mode=do.mode,
            result=max(result, 0),
            left=max(left, 0),
            right=right,
            buffer=0 if do.map is None else self._number[id(do.map)],
            channel=do.channel,
            first=do.first,
            last=do.last,
            spread=do.spread,
            values=values,
            low=None if do.low is None else self.pointer(do.low),
            high=do.high,
            offset=do.offset,
            copy=0 if do.map is None else self._copies.get(id(do.map), 0),
        )


@dataclass(frozen=True)
class Closing:
    """What closes a group of Swin layers."""

    sweeps: int
    result: int
    """The buffer that they give."""


def _size(factor: int, height: int, width: int) -> tuple[int, int]:
    return (height * factor, width * factor) if factor else (1, 1)


@dataclass(frozen=True)
class CodesOfSweep:
    """Where the codes that one layer reads lie in bytes that were copied."""

    source: Map
    places: Channels
    limits: tuple[int, int]
    """Of the codes."""
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the bytes."""
        size = {structures.BYTES: 1, structures.WORDS: 2, structures.FLOATS: 4}[self.source.kind]
        return self.height, self.width, self.source.channels, size

    def codes(self, data: NDArray[np.uint8]) -> NDArray[np.int16]:
        """(C, height, width) the codes of copied bytes."""
        kind, low = self.source.kind, self.limits[0]
        types = {structures.BYTES: np.uint8, structures.WORDS: np.int16, structures.FLOATS: np.float32}
        stored = data.view(types[kind]).reshape(self.shape[:3])[:, :, self.places].transpose(2, 0, 1)
        codes = stored.astype(np.int16)
        return (codes - self.source.border - low) % 256 + low if kind == structures.BYTES else codes


def sweep_program(model: PackedModel, depth: int, isa: str) -> SweepProgram:
    """A network at a depth; layers with 16-bit inputs behind all codes of fewer bits run in float.
    Raises Unsupported."""
    return SweepProgram(fold(with_tail_in_float(model), depth), model, isa)
