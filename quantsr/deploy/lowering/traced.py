"""Tensors that refer to values of a program, and the operations that record themselves.

A traced tensor holds no numbers of a picture: each of its elements is a reference to one channel at
one pixel of a value. Views, permutations, windows, rolls, splits, concatenations and padding move
references as they would move numbers, so none of them needs a rule. An operation that computes
looks up what its input refers to, appends itself to the record, and returns references to its
result.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantsr.deploy import windows
from quantsr.deploy.program import PICTURE, Operation
from quantsr.errors import InputError

Size = tuple[int, int]
_COLUMNS = 1 << 32  # above every number of channels


class Traced(torch.Tensor):
    """A tensor of references; to the network it is float32."""

    references: Tensor
    """float64 of the same shape: whole numbers, see `Record`."""
    record: Record

    @staticmethod
    def __new__(cls, record: Record, references: Tensor) -> Traced:
        """A tensor of these references."""
        made: Traced = torch.Tensor._make_wrapper_subclass(
            cls,
            references.shape,
            strides=references.stride(),
            storage_offset=references.storage_offset(),
            dtype=torch.float32,
            device=record.device,
        )
        made.references, made.record = references, record
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        """Its shape, for messages of networks."""
        return f"Traced(shape={tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """One operation of torch."""
        record = next(x.record for x in _flat([*args, *(kwargs or {}).values()]) if isinstance(x, cls))
        return record.run(func, args, kwargs or {})


@dataclass(frozen=True)
class Map:
    """A value that references point to, on the grid of the traced picture."""

    value: int
    channels: int
    size: Size
    """Height and width; (1, 1) of one number for each channel."""


class Pending(Protocol):
    """Something in the making, which only some operations may read."""

    @property
    def misuse(self) -> str:
        """What a network does that reads it elsewhere."""


@dataclass(frozen=True, eq=False)
class Constants:
    """Numbers that a layer gives of zeros beyond a map."""

    misuse = "computes with pixels beyond a map"
    values: NDArray[np.float64]
    """Of each element."""


@dataclass(frozen=True)
class Beyond:
    """What a network computes of pixels beyond a map, and crops."""

    misuse = "reads what its attention gives beyond the map"


@dataclass(frozen=True, eq=False)
class Found:
    """What a tensor refers to."""

    map: Map
    places: NDArray[np.int64]
    """Of the tensor's shape: channel * height * width + pixel, of each element."""


@dataclass
class Record(ABC):
    """The operations so far, and the values that references point to.

    Beside those of programs there are the kinds `offset` and `factors` (plus, and times, `values`,
    one for each channel), `divide` (by `number`) and `unit` (times the shortcut of `unit`), which
    `rewrite` resolves.
    """

    picture: Size
    """Of the traced picture."""
    window: int
    """What sides of pictures may be padded to multiples of."""
    units: dict[int, int]
    """Unit of depth by the address of its shortcut."""
    device: torch.device
    operations: list[Operation] = field(default_factory=list)
    multiple: int = 1
    """`window`, once the picture was padded."""
    modules: list[str] = field(default_factory=list)
    """Names of the modules that run, innermost last."""
    maps: list[Map] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """Reference to the first element of each map; ascending."""
    pointwise: set[int] = field(default_factory=set)
    """Results of 1x1 convolutions."""
    pooled: set[Size] = field(default_factory=set)
    """Sizes of maps that are smaller than those they were computed from."""
    pending: dict[int, Pending] = field(default_factory=dict)
    """What is in the making, by the number of its map, whose value is -1."""
    constants: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Float tensors of operations that are no parameters of the network, by name."""
    multiples: set[int] = field(default_factory=set)
    """To whose multiples zeros continue maps, as far as the traced picture tells."""
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """Of the network, by name."""
    made: dict[tuple[Any, ...], int] = field(default_factory=dict)
    """Slices and concatenations."""

    def input(self) -> Traced:
        """The picture, (1, 3, h, w)."""
        return self.tensor(Map(PICTURE, 3, self.picture), np.arange(3 * math.prod(self.picture))).view(
            1, 3, *self.picture
        )  # type: ignore[return-value]

    @property
    def grid(self) -> Size:
        """Height and width of the picture, padded where it was."""
        height, width = (-(-side // self.multiple) * self.multiple for side in self.picture)
        return height, width

    @property
    def shrink(self) -> int:
        """What sides of maps are divided by, at most, as far as the traced picture tells; no more
        than that where a side has its square."""
        return max(
            (min(a // b for a, b in zip(self.grid, size, strict=True)) for size in self.pooled), default=1
        )

    def is_unrounded(self, size: Size) -> bool:
        """Whether sides of maps are a part of the picture's without rounding, whatever its size."""
        return all(self.multiple * side % whole == 0 for side, whole in zip(size, self.grid, strict=True))

    def refuse(self, what: str) -> InputError:
        """The error for what has no operation."""
        name = self.modules[-1] if self.modules else ""
        return InputError(f"network: {name or 'its forward'} {what}, which no operation of programs does")

    # Values

    def append(self, kind: str, *inputs: int, name: str = "", **attributes: Any) -> int:
        """Record an operation; returns its value."""
        self.operations.append(Operation(kind, inputs, len(self.operations) + 1, name, attributes))
        return len(self.operations)

    def tensor(self, target: Map, places: NDArray[Any]) -> Traced:
        """References to these places of a new value."""
        last = self.maps[-1] if self.maps else None
        start = 1 if last is None else self.starts[-1] + last.channels * math.prod(last.size)
        self.maps.append(target)
        self.starts.append(start)
        return Traced(self, torch.from_numpy(np.asarray(places + start, np.float64)))

    def whole(self, kind: str, found: Found, channels: int, size: Size, **attributes: Any) -> Traced:
        """Record an operation on a whole map; (1, channels, *size)."""
        value = self.append(kind, found.map.value, **attributes)
        places = np.arange(channels * math.prod(size)).reshape(1, channels, *size)
        return self.tensor(Map(value, channels, size), places)

    def find(self, x: Tensor) -> Found:
        """What a tensor refers to: one value, of which slices and concatenations are recorded."""
        if not isinstance(x, Traced):
            raise self.refuse("computes with a constant tensor")
        references = x.references.numpy().astype(np.int64)
        owner = np.searchsorted(self.starts, references, "right") - 1
        used = np.unique(owner)
        if used.size and used[0] < 0:
            raise self.refuse("pads values with zeros")
        if misused := next((self.pending[i] for i in used.tolist() if i in self.pending), None):
            raise self.refuse(misused.misuse)
        if x.dim() == 4 and len(used) == 1 and self._is_padded(self.maps[used[0]], x):
            return self._padded(int(used[0]), references)
        if len({self.maps[i].size for i in used}) > 1:
            raise self.refuse("joins values of different sizes")
        area = math.prod(self.maps[used[0]].size)
        channel, pixel = np.divmod(references - np.asarray(self.starts)[owner], area)
        column = owner * _COLUMNS + channel
        # the channels in the order of the tensor, at one pixel
        known, first = np.unique(column[pixel == pixel.flat[0]], return_index=True)
        rank = np.argsort(np.argsort(first))
        position = np.minimum(np.searchsorted(known, column), len(known) - 1)
        if (known[position] != column).any():
            raise self.refuse("takes other channels of some pixels than of others")
        target = self._joined(known[np.argsort(first)])
        return Found(target, rank[position] * area + pixel)

    def _joined(self, columns: NDArray[np.int64]) -> Map:
        """The value of these channels (owner * _COLUMNS + channel), in this order."""
        breaks = np.flatnonzero(np.diff(columns) != 1) + 1
        parts = []
        for run in np.split(columns, breaks):
            whole, start = self.maps[run[0] // _COLUMNS], int(run[0] % _COLUMNS)
            if len(run) == whole.channels:
                parts.append(whole.value)
            else:
                parts.append(self._once("slice", whole.value, start=start, stop=start + len(run)))
        value = parts[0] if len(parts) == 1 else self._once("concat", *parts)
        return Map(value, len(columns), self.maps[columns[0] // _COLUMNS].size)

    def _once(self, kind: str, *inputs: int, **attributes: Any) -> int:
        key = (kind, inputs, *attributes.values())
        if key not in self.made:
            self.made[key] = self.append(kind, *inputs, **attributes)
        return self.made[key]

    def _is_padded(self, found: Map, x: Tensor) -> bool:
        """Whether a tensor is another size of the picture, or of values computed from it pixel by
        pixel."""
        if x.shape[1] != found.channels or found.size != self.picture or x.shape[2:] == self.picture:
            return False
        value = found.value
        while value != PICTURE:
            op = self.operations[value - 1]
            if op.kind not in ("offset", "scale", "divide") and value not in self.pointwise:
                return False
            value = op.inputs[0]
        return True

    def _padded(self, index: int, references: NDArray[np.int64]) -> Found:
        """A map, continued by reflection to multiples of `window`."""
        whole = self.maps[index]
        rows, columns = (windows.reflected(size, self.window) for size in self.picture)
        every = np.arange(whole.channels * math.prod(self.picture)) + self.starts[index]
        plain = every.reshape(1, whole.channels, *self.picture)
        if not np.array_equal(references, plain[:, :, rows][..., columns]):
            raise self.refuse("changes the picture's size, other than by reflection to whole windows")
        self.multiple = self.window
        padded = Map(whole.value, whole.channels, (len(rows), len(columns)))
        return Found(padded, np.arange(references.size).reshape(references.shape))

    def continued(self, x: Tensor) -> Tensor:
        """References to the map that continues the picture, where a tensor is that."""
        if not isinstance(x, Traced) or x.dim() != 4 or self.window == 1:
            return x
        height, width = (-(-side // self.window) * self.window for side in self.picture)
        owners = np.unique(np.searchsorted(self.starts, x.references.numpy(), "right")) - 1
        if len(owners) > 1 or owners[0] < 0 or x.shape[2:] != (height, width):
            return x
        if owners[0] in self.pending or not self._is_padded(self.maps[owners[0]], x):
            return x
        found = self.find(x)
        return self.tensor(found.map, found.places)

    def find_map(self, x: Tensor) -> Found:
        """What a tensor (1, C, H, W) refers to, which must be a whole map."""
        found = self.find(x)
        if x.dim() != 4 or not (found.places.ravel() == np.arange(found.places.size)).all():
            raise self.refuse("reads a part of a map, or one in another order")
        if found.places.size != found.map.channels * math.prod(found.map.size):
            raise self.refuse("reads a part of a map")
        return found

    def repeated(self, x: Tensor) -> Tensor:
        """The same map (1, C, H, W) or part of a map, of a value of C channels where `x` has some
        channels of a value several times."""
        if not isinstance(x, Traced) or x.dim() != 4 or self.find(x).map.channels == x.shape[1]:
            return x
        references = x.references.numpy().astype(np.int64)
        owner = np.searchsorted(self.starts, references, "right") - 1
        area = math.prod(self.maps[owner.flat[0]].size)
        channel, pixel = np.divmod(references - np.asarray(self.starts)[owner], area)
        column = owner * _COLUMNS + channel
        if (pixel != pixel[:, :1]).any() or (column != column[..., :1, :1]).any():
            return x
        target = self._joined(column[0, :, 0, 0])
        return self.tensor(target, np.arange(x.shape[1])[:, None, None] * area + pixel)

    def refer(self, what: Pending, shape: tuple[int, ...]) -> Traced:
        """References to something in the making."""
        count = math.prod(shape)
        self.pending[len(self.maps)] = what
        return self.tensor(Map(-1, count, (1, 1)), np.arange(count).reshape(shape))

    def numbers(self, x: Traced) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Which elements are zeros or other numbers beyond a map, and these numbers, else 0."""
        references = x.references.numpy().astype(np.int64)
        known, values = references == 0, np.zeros(references.shape)
        for index, what in self.pending.items():
            if isinstance(what, Constants):
                at = references - self.starts[index]
                found = (at >= 0) & (at < what.values.size)
                known, values[found] = known | found, what.values.flat[at[found]]
        return known, values

    def of_constants(self, values: NDArray[np.float64]) -> Tensor:
        """References to numbers beyond a map."""
        found = self.refer(Constants(values), values.shape).references
        found[torch.from_numpy(values == 0)] = 0
        return found

    def beyond(self, x: Traced) -> NDArray[np.bool_]:
        """Which elements are computed of pixels beyond a map."""
        owner = np.searchsorted(self.starts, x.references.numpy().astype(np.int64), "right") - 1
        found: NDArray[np.bool_] = np.isin(
            owner, [i for i, x in self.pending.items() if isinstance(x, Beyond)]
        )
        return found

    def find_channels(self, references: NDArray[np.int64]) -> Found:
        """`find`, of references some of which are to constants; their place is -1."""
        inside = ~self.numbers(Traced(self, torch.from_numpy(references.astype(np.float64))))[0]
        if not inside.any():
            raise self.refuse("computes with zeros")
        found = self.find(Traced(self, torch.from_numpy(references[inside].astype(np.float64))))
        places = np.full(references.shape, -1)
        places[inside] = found.places
        return Found(found.map, places)

    def keep(self, name: str, values: NDArray[np.float32]) -> None:
        """Record a float tensor of an operation."""
        before = self.constants.setdefault(name, values)
        if not np.array_equal(before, values):
            raise self.refuse("runs twice, with other constants")

    # Operations

    @abstractmethod
    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """One operation of torch; one that is not known raises InputError."""

    def elementwise(self, kind: str, x: Tensor, **attributes: Any) -> Traced:
        """Record an operation that computes each element from the same element."""
        found = self.find(x)
        value = self.append(kind, found.map.value, **attributes)
        return self.tensor(Map(value, found.map.channels, found.map.size), found.places)

    def number(self, constant: Any) -> float:
        """A constant that is one number."""
        if not isinstance(constant, Tensor):
            return float(constant)
        values = np.unique(constant.detach().float().cpu().numpy())
        if values.size != 1:
            raise self.refuse("multiplies by a constant tensor")
        return decimal(values[0])


def decimal(value: Any) -> float:
    """The shortest decimal number that float32 rounds to `value`."""
    return float(str(np.float32(value)))


def _flat(args: Sequence[Any]) -> list[Any]:
    return [y for x in args for y in (_flat(x) if isinstance(x, list | tuple) else [x])]
