"""What every engine offers, and what several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

Key = TypeVar("Key")
Images = NDArray[Any]
"""(N, h, w, 3) RGB: uint8, or float32 in 0..255 where the engine takes it."""


class Engine(Protocol):
    """A network at one depth, ready to run."""

    name: str
    """As in ENGINES, with the device where it is not the CPU: "torch:cuda"."""
    takes_float: bool
    """Whether float32 pictures (0..255, not rounded) are taken beside uint8."""

    def run(self, images: Images) -> Images:
        """(N, h, w, 3) -> (N, h*s, w*s, 3), same type; any h, w >= 1."""
        ...

    def run_tiles(self, tiles: Iterable[tuple[Key, Images]]) -> Iterator[tuple[Key, Images]]:
        """Run (key, (h, w, 3)) pairs, several at a time where the engine can, and give them back in
        order."""
        ...


class OneByOne(ABC):
    """`run_tiles` for engines that use all cores for one picture."""

    @abstractmethod
    def run(self, images: Images) -> Images:
        """See `Engine.run`."""

    def run_tiles(self, tiles: Iterable[tuple[Key, Images]]) -> Iterator[tuple[Key, Images]]:
        """See `Engine.run_tiles`; one after the other."""
        for key, tile in tiles:
            yield key, self.run(tile[None])[0]
