"""Results of an evaluation: records, their table per set, and the files ``results.json`` and
``results.md``."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import subprocess
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path

from quantsr.files import read_text, write_text


@dataclasses.dataclass(frozen=True)
class Record:
    """One number: a metric, averaged over the pictures of one set, of one network at one depth.

    Attributes:
        set: name of the data set.
        scale: upscaling factor.
        network: the row's name, e.g. ``bicubic``, ``float EDSR`` or ``QuantSR_C W4A4``.
        depth: number of blocks kept, None where the network has one depth only.
        metric: the metric's name in the options, e.g. ``psnr`` (dB) or ``ssim``.
        value: the mean over the pictures.
        pictures: the number of pictures.
        engine: that upscaled the pictures: ``torch``, ``numpy`` (bicubic), ``native``,
            ``openvino``, ``onnxruntime`` or ``ncnn``.
        self_ensemble: whether eight flips and rotations were averaged.
        iteration: training iteration of the network, where known.
        config_hash: of the options of the run.
        commit: git commit of the source, with ``+`` where it had changes; None outside a
            repository.
        version: of quantsr.
        variant, seed: of a comparison (`quantsr.analysis.compare`), None elsewhere.
    """

    set: str
    scale: int
    network: str
    depth: int | None
    metric: str
    value: float
    pictures: int
    engine: str = "torch"
    self_ensemble: bool = False
    iteration: int | None = None
    config_hash: str | None = None
    commit: str | None = None
    version: str | None = None
    variant: str | None = None
    seed: int | None = None

    @property
    def row(self) -> str:
        """The name of the record's row in a table."""
        name = self.network if self.depth is None else f"{self.network}, depth {self.depth}"
        if self.engine not in ("torch", "numpy"):
            name += f", {self.engine}"
        return f"{name}, self-ensemble" if self.self_ensemble else name


@functools.cache
def source_commit() -> str | None:
    """The git commit of the source tree of this package, with ``+`` if it has uncommitted changes;
    None outside a repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        run = functools.partial(
            subprocess.run, cwd=root, capture_output=True, text=True, check=True, timeout=20
        )
        commit = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changed = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+" if changed else commit


def table(records: Sequence[Record], set_name: str) -> str:
    """The Markdown table of one set: a row per network and depth in the order of the records, a
    column per metric."""
    chosen = [record for record in records if record.set == set_name]
    metrics = list(dict.fromkeys(record.metric for record in chosen))
    rows = list(dict.fromkeys(record.row for record in chosen))
    values = {(record.row, record.metric): record.value for record in chosen}
    cells = [["network", *(metric.upper() for metric in metrics)]]
    cells += [[row, *(number(values.get((row, metric)), metric) for metric in metrics)] for row in rows]
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table of ``cells``, the first row being the header; the first ``left`` columns are
    left-aligned, the others right-aligned."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]

    def padded(line: Sequence[str]) -> str:
        sides = (
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        return "| " + " | ".join(sides) + " |"

    lines = [padded(line) for line in cells]
    lines.insert(
        1, "|" + "|".join("-" * (w + 1) + ("-" if i < left else ":") for i, w in enumerate(widths)) + "|"
    )
    return "\n".join(lines)


def number(value: float | None, metric: str) -> str:
    """A value as text for tables: PSNR with two decimals, others with four, ``-`` for None."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}" if "psnr" in metric.lower() else f"{value:.4f}"


def markdown(records: Sequence[Record]) -> str:
    """All tables, each under the name of its set, scale and number of pictures."""
    parts = []
    for name in dict.fromkeys(record.set for record in records):
        first = next(record for record in records if record.set == name)
        parts.append(f"## {name}, x{first.scale}, {first.pictures} pictures\n\n{table(records, name)}\n")
    return "\n".join(parts)


def write_results(records: Sequence[Record], folder: str | Path, tables: str | None = None) -> None:
    """Writes ``results.json`` (see `write_records`) and ``results.md`` (``tables``, or `markdown`),
    atomically.

    Raises:
        WorkError: the folder is not writable or the disk is full.
    """
    folder = Path(folder)
    write_records(records, folder / "results.json")
    write_text(folder / "results.md", markdown(records) if tables is None else tables)


def write_records(records: Iterable[Record], path: Path) -> None:
    """Writes a JSON list with one object per record, atomically.

    An infinite value (PSNR of equal pictures) is written as the string ``"inf"``, since JSON has no
    such number.

    Raises:
        WorkError: the folder is not writable or the disk is full.
    """
    rows = []
    for record in records:
        row = dataclasses.asdict(record)
        if not math.isfinite(record.value):
            row["value"] = str(record.value)
        rows.append(row)
    write_text(path, json.dumps(rows, indent=1, allow_nan=False) + "\n")


def read_results(path: str | Path) -> list[Record]:
    """The records of a ``results.json``.

    Raises:
        OSError, ValueError, TypeError, KeyError, AttributeError: it cannot be read, or is no
            file of `write_records`.
    """
    try:
        rows = json.loads(read_text(Path(path)))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    records = [Record(**{**row, "value": float(row["value"])}) for row in rows]
    kinds = typing.get_type_hints(Record)
    for record in records:
        for name, value in vars(record).items():
            if not isinstance(value, kinds[name]):
                raise ValueError(f"{name} is {value!r}")
    return records


def mean_value(records: Iterable[Record], metric: str, depths: Sequence[int | None] | None = None) -> float:
    """The mean of ``metric`` over the sets (and ``depths``, all if None) in ``records``.

    Raises:
        ValueError: no record has that metric.
    """
    values = [r.value for r in records if r.metric == metric and (depths is None or r.depth in depths)]
    if not values:
        raise ValueError(f"no record of metric {metric!r}")
    return math.fsum(values) / len(values)
