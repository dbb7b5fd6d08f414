"""What a kind of network provides to packing, tiling and costs. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from quantsr.deploy.model import Float, FloatTensor, Operand, PackedLayer, PackedModel


@dataclass(frozen=True)
class Parts:
    """Names and shapes of a network's parts; of an operand its channels."""

    layers: Mapping[str, tuple[int, ...]]
    operands: Mapping[str, int]
    floats: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Reach:
    """What tiles of a picture need."""

    halo: int
    """Low-resolution pixels that a tile reads beyond what it keeps."""
    grid: int
    """Tiles start and end at multiples of this many pixels."""
    max_area: int
    """Pixels of low resolution to compute at once where the tile is not given."""


@dataclass(frozen=True)
class LayerCost:
    """One layer, or one pair of attention operands, at one picture size."""

    name: str
    kind: str
    """conv, linear or product (of two activations)."""
    macs: int
    bits_w: int
    bits_a: int


@dataclass(frozen=True)
class Cut:
    """A network's parts without the units that do not run, under their new names, and the shortcuts
    of the others."""

    layers: Mapping[str, PackedLayer]
    shortcuts: tuple[float, ...]
    operands: Mapping[str, Operand]
    floats: Mapping[str, FloatTensor]


class Architecture(Protocol):
    """A kind of network. Every method that takes a depth raises InputError for one that there is
    not."""

    name: str
    """The network's class."""
    mostly_products: bool
    """Whether integer products take most of its time in any engine."""

    def expected(self, model: PackedModel) -> Parts:
        """The parts that a model with this header must have. Raises ValueError for an impossible
        header."""
        ...

    def cut(self, model: PackedModel, kept: tuple[int, ...], gaps: Float) -> Cut:
        """Only the units `kept`, renumbered; `gaps` are the products of dropped shortcuts before
        the first and behind each, all positive."""
        ...

    def reach(self, model: PackedModel, depth: int) -> Reach:
        """How to cut pictures into tiles."""
        ...

    def costs(self, model: PackedModel, depth: int, size: tuple[int, int]) -> list[LayerCost]:
        """What runs on a (height, width) picture, in order."""
        ...
