"""Does the shipped network give the trained network's picture? PSNR and pixel differences of every
engine on real pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from quantsr.archs import contract
from quantsr.deploy.engines import reference, select
from quantsr.deploy.packed.model import PackedModel
from quantsr.engine.evaluate import EvalSet, Picture, Upscale, evaluate, evaluating, network_upscaler
from quantsr.errors import InputError

logger = logging.getLogger(__name__)

NETWORK, INTEGER = "network", "integer"


@dataclass
class Difference:
    """How far uint8 pictures lie from others, over all their values."""

    largest: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    """How many values differ by 0, 1, ... 255."""

    def add(self, a: Picture, b: Picture) -> None:
        """Count one pair of pictures of the same size."""
        gap = np.abs(a.astype(np.int16) - b.astype(np.int16))
        self.counts += np.bincount(gap.reshape(-1), minlength=256)
        self.largest = int(self.counts.nonzero()[0].max())

    @property
    def equal(self) -> float:
        """Share of equal values."""
        return float(self.counts[0] / self.counts.sum())

    @property
    def psnr(self) -> float:
        """dB between them, over all values of all pictures; infinite where they are equal."""
        squares = float(self.counts @ np.arange(256.0) ** 2)
        return math.inf if squares == 0 else 10 * math.log10(255.0**2 * self.counts.sum() / squares)

    @property
    def within_one(self) -> float:
        """Share of values at most 1 apart."""
        return float(self.counts[:2].sum() / self.counts.sum())


@dataclass(frozen=True)
class ParityRow:
    """One engine on one set."""

    engine: str
    set: str
    psnr: float
    """dB against the ground truth, on Y, border of `scale` cut off."""
    to_network: Difference | None
    """Against the training network; None where there is none, or for its own row."""
    to_integer: Difference | None
    """Against the integer reference; None for its own row and the network's."""


def parity(
    model: PackedModel,
    sets: Sequence[EvalSet],
    *,
    depth: int | None = None,
    network: nn.Module | None = None,
    engines: Sequence[tuple[str, Upscale]] = (),
) -> list[ParityRow]:
    """Run the training network (where given), the integer reference and `engines` on `sets` at
    `depth` and compare their pictures."""
    depth = model.depth_or_default(depth)
    runs: list[tuple[str, Upscale]] = [(INTEGER, reference.reference(model, depth)), *engines]
    if network is not None:
        depths = (None,) if contract.of(network).depth_dynamic is None else (depth,)
        upscale = network_upscaler(network, depths, scale=model.header.scale)
        runs.insert(0, (NETWORK, lambda picture: upscale(picture)[0]))
        with evaluating(network):
            return _rows(runs, sets, model.header.scale)
    return _rows(runs, sets, model.header.scale)


def engines_at_hand(model: PackedModel, depth: int) -> list[tuple[str, Upscale]]:
    """The engines that are installed and run this network, by name."""
    found: list[tuple[str, Upscale]] = []
    for name in select.ENGINES[1:]:
        try:
            engine = select.create(name, model, depth)
        except InputError as error:
            logger.info("parity leaves %s out: %s", name, error)
            continue
        found.append((name, _one_by_one(engine)))
    return found


def _one_by_one(engine: select.Engine) -> Upscale:
    return lambda picture: engine.run(picture[None])[0]


def table(rows: Sequence[ParityRow], title: str = "", network: str = NETWORK) -> str:
    """The rows as a Markdown table; `network` names the training network in it."""
    head = ["set", "engine", "PSNR (Y)"]
    for other in (network, "integer"):
        head += [f"largest difference to {other}", "equal", "within 1"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row.set, network if row.engine == NETWORK else row.engine, f"{row.psnr:.3f}"]
        for d in (row.to_network, row.to_integer):
            cells += (
                ["", "", ""]
                if d is None
                else [str(d.largest), f"{100 * d.equal:.3f} %", f"{100 * d.within_one:.3f} %"]
            )
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines
    )
    return f"{title}\n\n{text}" if title else text


def _rows(runs: Sequence[tuple[str, Upscale]], sets: Sequence[EvalSet], scale: int) -> list[ParityRow]:
    metrics: dict[str, dict[str, Any]] = {
        "psnr": {"type": "calculate_psnr", "crop_border": scale, "test_y_channel": True}
    }
    rows = []
    for dataset in sets:
        kept: dict[str, list[Picture]] = {}
        for name, upscale in runs:
            seen = Recorder(upscale)
            (record,) = evaluate(seen, [dataset], metrics=metrics, name=name, engine=name)
            to_network, to_integer = (
                difference_of(seen.pictures, kept[other]) if other in kept else None
                for other in (NETWORK, INTEGER)
            )
            rows.append(ParityRow(name, dataset.name, record.value, to_network, to_integer))
            if name in (NETWORK, INTEGER):
                kept[name] = seen.pictures
    return rows


def difference_of(pictures: Sequence[Picture], reference: Sequence[Picture]) -> Difference:
    """Of pictures and those of another network, in the same order."""
    difference = Difference()
    for a, b in zip(pictures, reference, strict=True):
        difference.add(a, b)
    return difference


class Recorder:
    """An upscaler that keeps what it gave."""

    def __init__(self, upscale: Upscale) -> None:
        self.upscale = upscale
        self.pictures: list[Picture] = []

    def __call__(self, picture: Picture) -> Picture:
        """The upscaled picture."""
        self.pictures.append(self.upscale(picture))
        return self.pictures[-1]
