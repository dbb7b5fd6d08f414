"""What a kind of network provides to deployment, so that everything else is written without naming one. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from quantsr.deploy.model import Float, FloatTensor, Header, Operand, PackedModel, QuantizedLayer

Image = np.ndarray[Any, Any]


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
    """A network's parts without the units that do not run, under their new names, and the shortcuts of the others."""

    layers: Mapping[str, QuantizedLayer]
    shortcuts: tuple[float, ...]
    operands: Mapping[str, Operand]
    floats: Mapping[str, FloatTensor]


class Architecture(Protocol):
    """A kind of network. Every method that takes a depth raises InputError for one that there is not."""

    mostly_products: bool
    """Whether integer products take most of its time in any engine."""

    def expected(self, model: PackedModel) -> Parts:
        """The parts that a model with this header must have. Raises ValueError for an impossible header."""
        ...

    def cut(self, model: PackedModel, kept: tuple[int, ...], gaps: Float) -> Cut:
        """Only the units `kept`, renumbered; `gaps` are the products of dropped shortcuts before the first and behind each, all positive."""
        ...

    def reference(self, model: PackedModel, depth: int) -> Callable[[Image], Image]:
        """The integer reference, folded once: uint8 (H, W, 3) to uint8 (H*s, W*s, 3). Needs torch."""
        ...

    def write_onnx(self, graph: Any, model: PackedModel, depth: int) -> None:
        """The network's nodes into an `onnx_graph.Graph`."""
        ...

    def openvino_graph(self, model: PackedModel, depth: int, **options: Any) -> Any:
        """The network as an OpenVINO model; options as `openvino_graph.build`."""
        ...

    def native_program(self, model: PackedModel, depth: int, isa: str) -> Any:
        """A `native.arrays.Program`. Raises `native.arrays.Unsupported` where the kernels cannot run the network."""
        ...

    def reach(self, model: PackedModel, depth: int) -> Reach:
        """How to cut pictures into tiles."""
        ...

    def costs(self, model: PackedModel, depth: int, size: tuple[int, int]) -> list[LayerCost]:
        """What runs on a (height, width) picture, in order."""
        ...


def of(header: Header) -> Architecture:
    """The architecture of a network. Raises ValueError for one that is unknown."""
    kind = header.arch.get("type")
    if kind in ("QuantSR_C", "QEDSR_Ours"):
        from quantsr.deploy.quantsr_c import ARCHITECTURE as QUANTSR_C

        return QUANTSR_C
    if kind == "QuantSR_T":
        from quantsr.deploy.quantsr_t import ARCHITECTURE as QUANTSR_T

        return QUANTSR_T
    raise ValueError(f"architecture '{kind}' is unknown")
