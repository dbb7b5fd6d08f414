"""Sweeps of a folded program: every convolution, enlargement or mean starts one, and what is
element by element joins the sweep that gives its last operand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import Quantize, Requantize
from quantsr.deploy.native import structures
from quantsr.deploy.native.arrays import padded
from quantsr.deploy.native.match import Unsupported
from quantsr.deploy.native.sweep_convs import Form
from quantsr.deploy.native.sweeps import Channels, Do, Map, Root, Sweep, Value
from quantsr.deploy.passes.reciprocal import exact_factors

_BINARY = {"add": structures.DO_ADD, "subtract": structures.DO_SUBTRACT, "multiply": structures.DO_MULTIPLY}
_MOST_CHANNELS = 1 << 14


@dataclass(eq=False)
class Codes:
    """Codes of a value, and the maps in which they are stored, each in the form of its reader."""

    value: Value
    """What is rounded."""
    target: Value
    """The same where its channels lie when they are stored."""
    mode: int
    constants: tuple[NDArray[Any], ...]
    """(C,) or (1,) each, as DO_CODES has them."""
    low: NDArray[Any]
    """(C,) or (1,)"""
    limits: tuple[int, int]
    stored: dict[tuple[int, int], tuple[Map, Channels]] = field(default_factory=dict)


@dataclass(eq=False)
class Scaled:
    """A value times a constant, to be computed where it is read."""

    value: Value
    factor: np.float32


class Builder:
    """Sweeps and maps in the making."""

    def __init__(self) -> None:
        self.sweeps: list[Sweep] = []
        self.maps: list[Map] = []
        self._indexed: dict[tuple[Any, ...], Root] = {}

    # Maps

    def map(self, factor: int, channels: int, kind: int, border: int = 0, slot: int | None = None) -> Map:
        """A new map."""
        if channels > _MOST_CHANNELS:
            raise Unsupported(f"a map has {channels} channels")
        found = Map(factor, channels, kind, border, slot)
        self.maps.append(found)
        return found

    def stored(self, root: Root) -> Map:
        """The map that a root is in."""
        if root.stored is None:
            root.stored = self.map(root.sweep.result_factor, root.channels, structures.FLOATS)
            store = Do(structures.DO_STORE, left=root, map=root.stored, last=root.channels)
            root.sweep.insert(root, store)
            root.stored.written.append(root.sweep)
        return root.stored

    def in_one_map(self, value: Value) -> tuple[Map, Channels]:
        """A map of floats that has all channels of a value, and where."""
        if value.only is not None:
            return self.stored(value.only), value.channel
        runs, places = value.blocks()
        found = self.map(value.factor, sum(run[2] for run in runs), structures.FLOATS)
        self._write(value, runs, found, lambda index: {"kind": structures.DO_STORE})
        return found, places

    def codes_in_map(self, codes: Codes, form: Form | None) -> tuple[Map, Channels]:
        """The map of codes as a convolution of that form reads them (None: as floats), and where
        the channels are."""
        kind, offset = (structures.FLOATS, 0) if form is None else (form.kind, form.offset)
        if (kind, offset) not in codes.stored:
            assert not codes.value.repeats
            runs, places = codes.target.blocks()
            found = self.map(codes.target.factor, sum(run[2] for run in runs), kind, -offset)

            def operation(index: int) -> dict[str, Any]:
                return {
                    "kind": structures.DO_CODES,
                    "mode": codes.mode,
                    "values": tuple(codes.value.constant(index, values) for values in codes.constants),
                    "low": codes.value.constant(index, codes.low),
                    "high": float(codes.limits[1]),
                    "offset": offset,
                }

            self._write(codes.target, runs, found, operation)
            codes.stored[kind, offset] = found, places
        return codes.stored[kind, offset]

    def _write(
        self,
        value: Value,
        runs: list[tuple[int, int, int]],
        into: Map,
        operation: Callable[[int], dict[str, Any]],
    ) -> None:
        """Insert operations that write runs of blocks into a map, one behind the other."""
        at = 0
        for index, first, count in runs:
            root = value.roots[index]
            do = Do(left=root, map=into, channel=at, first=first, last=first + count, **operation(index))
            root.sweep.insert(root, do)
            into.written.append(root.sweep)
            at += count

    # Sweeps

    def sweep(self, source: int, factor: int, channels: int, shuffle: int = 1, **more: Any) -> Sweep:
        """A new sweep; `more` are its input and fields."""
        if channels > _MOST_CHANNELS:
            raise Unsupported(f"a convolution has {channels} channels")
        found = Sweep(len(self.sweeps), source, factor, channels, shuffle, **more)
        self.sweeps.append(found)
        if found.input is not None:
            found.input.read.append(found)
        return found

    def indexed(
        self, value: Value, times: int, index: NDArray[np.int64], before: Sweep | None = None
    ) -> Root:
        """Channels of a value, each pixel `times` x `times` as often.

        Args:
            index: (times * times, P) channel of the value for every channel of the result, -1 for
                none.
            before: a sweep in front of which it is to be made where it can be.
        """
        source, places = self.in_one_map(value)
        table = np.where(index >= 0, places[np.maximum(index, 0)], -1)
        key = (id(source), times, table.shape, table.tobytes())
        if key not in self._indexed:
            same = table.shape[1] == source.channels and (table == np.arange(source.channels)).all()
            fields = {"enlarge": times} if same else {"enlarge": times, "index": table}
            sweep = self.sweep(
                structures.FROM_INDEX, value.factor * times, table.shape[1], input=source, fields=fields
            )
            if before is not None and all(writer.number < before.number for writer in source.written):
                self.sweeps.insert(before.number, self.sweeps.pop())
                for number, other in enumerate(self.sweeps):
                    other.number = number
            self._indexed[key] = sweep.root()
        return self._indexed[key]

    def gathered(
        self,
        value: Value,
        channel: Channels | None = None,
        width: int | None = None,
        before: Sweep | None = None,
    ) -> Value:
        """The same value as one root, in which its channels lie in order or as `channel` says."""
        channel = np.arange(len(value.root)) if channel is None else channel
        index = np.full((1, padded(len(channel)) if width is None else width), -1)
        index[0, channel] = np.arange(len(channel))
        return Value.of(self.indexed(value, 1, index, before), channel, value.factor)

    # Element by element

    def unary(self, kind: int, value: Value, *constants: Any) -> Value:
        """An operation with constants (C,) or (1,) on each channel."""
        if value.repeats:
            value = self.gathered(value)
        roots = tuple(
            self._joined(
                root, kind, values=tuple(value.constant(index, values) for values in constants), left=root
            )
            for index, root in enumerate(value.roots)
        )
        return value.with_roots(roots)

    def _joined(self, root: Root, kind: int, **fields: Any) -> Root:
        """An operation on a root in its own sweep or, where that has no register left, in a new
        one."""
        sweep = root.sweep
        made = sweep.add(kind, **fields)
        if sweep.registers() is not None:
            return made
        sweep.operations.pop()
        if sweep.shuffle > 1:
            raise Unsupported("too many values are needed at once in front of a pixel shuffle")
        sweep = self.sweep(structures.FROM_MAPS, sweep.result_factor, root.channels)
        return sweep.add(kind, **{**fields, "left": self._loaded(sweep, root)})

    def _loaded(self, sweep: Sweep, root: Root) -> Root:
        """A root of an earlier sweep in a register of this one."""
        if root.sweep is sweep:
            return root
        source = self.stored(root)
        source.read.append(sweep)
        return sweep.add(structures.DO_LOAD, map=source)

    def binary(self, kind: str, left: Value | Scaled, right: Value | Scaled) -> Value:
        """add, subtract or multiply; one pixel, or one channel, of one operand goes with all of the
        other's."""
        values = [x.value if isinstance(x, Scaled) else x for x in (left, right)]
        large = max(values, key=lambda value: (value.factor, len(value.root)))
        if large.only is None or large.repeats:
            regular = self.gathered(large)
            left, right = (_replaced(x, large, regular) for x in (left, right))
            large = regular
        first, second = (self._operand(x, large) for x in (left, right))
        if not first.whole:
            first, second = second, first
        found = self._binary(kind, first, second, large)
        found = found or self._binary(kind, first, second, large, alone=True)
        if found is None:
            raise Unsupported(f"{kind} takes too many registers")
        return large.with_roots((found,))

    def _operand(self, x: Value | Scaled, large: Value) -> _Operand:
        """An operand whose channels lie as those of the large one."""
        value, factor = (x.value, x.factor) if isinstance(x, Scaled) else (x, None)
        whole = value.factor == large.factor and len(value.root) == len(large.root)
        if factor is not None and not whole:
            value, factor = self.unary(structures.DO_SCALE, value, factor), None
        lead = large.only
        assert lead is not None
        spread = len(value.root) == 1 and len(large.root) > 1
        same = value.only is not None and value.only.channels == lead.channels
        if not spread and not (same and np.array_equal(value.channel, large.channel)):
            value = self.gathered(value, large.channel, lead.channels, lead.sweep)
        if value.only is None:
            value = self.gathered(value)
        assert value.only is not None
        return _Operand(value.only, whole, factor, int(value.channel[0]) if spread else None)

    def _binary(
        self, kind: str, left: _Operand, right: _Operand, large: Value, *, alone: bool = False
    ) -> Root | None:
        """In the latest sweep of an operand or, `alone`, in a new one; None where it has no place
        there."""
        lead = large.only
        assert lead is not None
        if alone:
            sweep = self.sweep(structures.FROM_MAPS, large.factor, lead.channels)
        else:
            sweep = max((left.root.sweep, right.root.sweep), key=lambda sweep: sweep.number)
            size = sweep.channels // sweep.shuffle**2
            if (sweep.result_factor, size) != (large.factor, lead.channels):
                return None
            if any(not x.whole and x.root.sweep is sweep for x in (left, right)):
                return None  # registers have no other pixel's and no other channel's values
        if kind != "subtract" and right.whole and right.root.sweep is sweep and left.root.sweep is not sweep:
            left, right = right, left
        before, read = list(sweep.operations), [x.root for x in (left, right) if x.root.sweep is not sweep]

        def register(x: _Operand) -> Root:
            root = x.root
            if root.sweep is not sweep:
                root = sweep.add(structures.DO_LOAD, map=self.stored(root))
            if x.factor is None:
                return root
            factors = np.full(sweep.channels, x.factor, np.float32)
            return sweep.add(structures.DO_SCALE, left=root, values=(factors,))

        first = register(left)
        if right.root.sweep is sweep or right.factor is not None:
            result = sweep.add(_BINARY[kind], left=first, right=register(right))
        else:
            spread = right.channel is not None
            result = sweep.add(_BINARY[kind], left=first, map=self.stored(right.root), spread=spread)
            if result.made_by is not None and right.channel is not None:
                result.made_by.channel = right.channel
        if sweep.registers() is None:
            sweep.operations[:] = before
            return None
        for root in read:
            self.stored(root).read.append(sweep)
        return result


@dataclass(frozen=True, eq=False)
class _Operand:
    root: Root
    whole: bool
    """Whether it has as many pixels and channels as the other."""
    factor: np.float32 | None
    """What it is multiplied by first."""
    channel: int | None
    """The one that goes with all of the other's; None: each goes with its own."""


def _replaced(x: Value | Scaled, old: Value, new: Value) -> Value | Scaled:
    if isinstance(x, Scaled):
        return Scaled(new, x.factor) if x.value is old else x
    return new if x is old else x


def codes_of(op: Quantize | Requantize, value: Value) -> Codes:
    """The codes that a quantizer gives, bit for bit those of the reference."""
    low = np.array([op.limits[0]])
    if isinstance(op, Requantize):
        constants = (op.shift, np.atleast_1d(op.multiplier))
        return Codes(value, value, structures.AFFINE, constants, low, op.limits)
    factors = exact_factors(op.step, op.limits)
    if factors is None:
        return Codes(value, value, structures.DIVIDED, (op.tau, op.step), low, op.limits)
    return Codes(value, value, structures.MULTIPLIED, (op.tau, *factors), low, op.limits)
