"""Sweeps: what a program of the kernels consists of, before it is laid out for them.

A *sweep* goes once over a map. For every pixel it has a source of values (a convolution, the
picture, a smaller map enlarged) and then element-wise operations on vectors of channels, held in
registers. A *root* is a value in such a register. What a network concatenates or splits is never
moved: a `Value` says for each of its channels which channel of which root it is, and whoever reads
it reads it there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.native import structures
from quantsr.deploy.native.arrays import CHANNELS, padded

Channels = NDArray[np.int64]
"""(C,) indices."""


@dataclass(eq=False)
class Map:
    """A map in memory; `structures.Buffer`."""

    factor: int
    channels: int
    kind: int
    border: int = 0
    slot: int | None = None
    """Of a map of Swin layers: START_MAP or LAYERS_MAP."""
    written: list[Sweep] = field(default_factory=list)
    """By which sweeps."""
    read: list[Sweep] = field(default_factory=list)


@dataclass(eq=False)
class Root:
    """A value that a sweep computes in a register."""

    sweep: Sweep
    channels: int
    """Multiple of 16; of a sweep that shuffles, those of a pixel of its result."""
    made_by: Do | None = None
    """None: it is the sweep's source."""
    stored: Map | None = None


@dataclass(eq=False)
class Do:
    """An element-wise operation; `structures.Elementwise`."""

    kind: int
    result: Root | None = None
    left: Root | None = None
    right: Root | None = None
    map: Map | None = None
    channel: int = 0
    first: int = 0
    last: int = 0
    spread: bool = False
    mode: int = 0
    values: tuple[NDArray[Any], ...] = ()
    """(P,) each, P being the channels of the sweep's source."""
    low: NDArray[Any] | None = None
    high: float = 0.0
    offset: int = 0


@dataclass(eq=False)
class Sweep:
    """A source, and operations on its values; `structures.Sweep`."""

    number: int
    """Its place in the program."""
    source: int
    factor: int
    channels: int
    """P, multiple of 16."""
    shuffle: int = 1
    input: Map | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    """Of the structure, as the source needs them."""
    operations: list[Do] = field(default_factory=list)

    @property
    def result_factor(self) -> int:
        """Of the pixels of its roots."""
        return self.factor * self.shuffle

    def root(self) -> Root:
        """Its source, as a root."""
        return Root(self, self.channels // self.shuffle**2)

    def add(self, kind: int, **fields: Any) -> Root:
        """Append an operation that gives a root."""
        operation = Do(kind, last=self.channels // self.shuffle**2, **fields)
        root = Root(self, operation.last, operation)
        operation.result = root
        self.operations.append(operation)
        return root

    def insert(self, root: Root, operation: Do) -> None:
        """Insert an operation that reads one of its roots, right behind what gives that root."""
        at = 0 if root.made_by is None else self.operations.index(root.made_by) + 1
        self.operations.insert(at, operation)

    def registers(self) -> list[tuple[int, int, int]] | None:
        """(result, left, right) of each operation; -1 where there is none. None where there are too
        few registers."""
        operands = [[x for x in (do.left, do.right) if x is not None] for do in self.operations]
        last_use = {id(root): at for at, roots in enumerate(operands) for root in roots}
        held = {id(root): 0 for roots in operands for root in roots if root.made_by is None}
        free = [register for register in range(structures.REGISTERS) if register not in held.values()]
        found = []
        for at, do in enumerate(self.operations):
            left, right = (-1 if root is None else held[id(root)] for root in (do.left, do.right))
            for root in {id(root) for root in operands[at]}:
                if last_use[root] == at:
                    free.insert(0, held.pop(root))
            result = -1
            if do.result is not None:
                if not free:
                    return None
                result = free[0]
                if id(do.result) in last_use:
                    held[id(do.result)] = free.pop(0)
            found.append((result, left, right))
        return found


@dataclass(frozen=True, eq=False)
class Value:
    """C channels, each one of a root's."""

    roots: tuple[Root, ...]
    root: Channels
    """(C,) index of its root."""
    channel: Channels
    """(C,) its channel there."""
    factor: int
    unshuffled: bool = False
    """Whether `channel` counts all channels of a sweep that shuffles, before it does."""

    @classmethod
    def of(cls, root: Root, channel: Channels, factor: int | None = None, unshuffled: bool = False) -> Value:
        """Channels of one root."""
        factor = root.sweep.result_factor if factor is None else factor
        return cls((root,), np.zeros(len(channel), np.int64), channel, factor, unshuffled)

    @property
    def only(self) -> Root | None:
        """Its root, where it has but one."""
        return self.roots[0] if len(self.roots) == 1 else None

    @property
    def repeats(self) -> bool:
        """Whether a channel of a root is several of its channels."""
        return len(set(zip(self.root.tolist(), self.channel.tolist(), strict=True))) < len(self.root)

    def select(self, which: Channels) -> Value:
        """Some of its channels."""
        kept, root = np.unique(self.root[which], return_inverse=True)
        return Value(tuple(self.roots[k] for k in kept), root, self.channel[which], self.factor)

    def with_roots(self, roots: tuple[Root, ...]) -> Value:
        """The same channels of other roots."""
        return Value(roots, self.root, self.channel, self.factor, self.unshuffled)

    def constant(self, index: int, values: Any) -> NDArray[np.float32]:
        """(P,) for the sweep of a root: `values` (C,) or (1,) where their channels are, else 0."""
        root = self.roots[index]
        given = np.broadcast_to(np.asarray(values, np.float32), (len(self.root),))
        mine = self.root == index
        size = root.sweep.channels if self.unshuffled else root.channels
        laid_out = np.zeros(size, np.float32)
        laid_out[self.channel[mine]] = given[mine]
        return laid_out if self.unshuffled else np.tile(laid_out, root.sweep.shuffle**2)

    def blocks(self) -> tuple[list[tuple[int, int, int]], Channels]:
        """Where its channels lie if the blocks of 16 that they are in are put one behind the other.

        Returns:
            (index of the root, first channel, channels) of each run of neighbouring blocks, in
            order, and (C,) the place of every channel.
        """
        found: dict[tuple[int, int], int] = {}
        places = np.empty(len(self.root), np.int64)
        for c, (root, channel) in enumerate(zip(self.root.tolist(), self.channel.tolist(), strict=True)):
            block = found.setdefault((root, channel // CHANNELS), len(found))
            places[c] = CHANNELS * block + channel % CHANNELS
        runs: list[tuple[int, int, int]] = []
        for root, block in found:
            if runs and runs[-1][0] == root and sum(runs[-1][1:]) == CHANNELS * block:
                runs[-1] = (root, runs[-1][1], runs[-1][2] + CHANNELS)
            else:
                runs.append((root, CHANNELS * block, CHANNELS))
        return runs, places


def concatenated(values: list[Value]) -> Value:
    """Channels of several values, one behind the other."""
    roots = list({id(root): root for value in values for root in value.roots}.values())
    index = {id(root): i for i, root in enumerate(roots)}
    root = np.concatenate([np.array([index[id(r)] for r in value.roots])[value.root] for value in values])
    channel = np.concatenate([value.channel for value in values])
    return Value(tuple(roots), root, channel, values[0].factor)


def assign_slots(maps: list[Map]) -> list[int]:
    """A slot of memory for each map, but for maps of Swin layers: those of the same slot are never
    needed at once. Large maps share with large ones as far as they can."""
    slots: list[tuple[int, int]] = []  # (bytes for each pixel of the picture, last sweep that needs it)
    found = [0] * len(maps)
    sizes = [m.factor**2 * m.channels * (1, 2, 4)[m.kind] for m in maps]
    first = [min(sweep.number for sweep in m.written) for m in maps]
    for at in sorted(range(len(maps)), key=first.__getitem__):
        slot = maps[at].slot
        if slot is not None:
            found[at] = slot
            continue
        start, end = first[at], max(sweep.number for sweep in maps[at].written + maps[at].read)
        free = [i for i, (_, last) in enumerate(slots) if last < start]
        if free:
            slot = min(free, key=lambda i: (abs(slots[i][0] - sizes[at]), i))
            slots[slot] = (max(slots[slot][0], sizes[at]), end)
        else:
            slot = len(slots)
            slots.append((sizes[at], end))
        found[at] = slot
    return found


def shuffled_outputs(outputs: int, factor: int) -> tuple[Channels, int]:
    """(O,) places of a convolution's outputs whose pixel shuffle by `factor` a sweep is to do, and
    P: groups of padded channels, one for each pixel."""
    channels, pixel = np.divmod(np.arange(outputs), factor**2)
    group = padded(outputs // factor**2)
    return pixel * group + channels, group * factor**2


def shown_outputs(factor: int) -> Channels:
    """(3 * factor * factor,) places in the order that DO_SHOW has."""
    colour, pixel = np.divmod(np.arange(3 * factor**2), factor**2)
    return pixel * 3 + colour
