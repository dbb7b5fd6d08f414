"""The tables of a comparison: mean and spread over seeds, differences paired by seed, and costs.
Pure arithmetic, no torch."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantsr.config.comparison import Comparison
from quantsr.engine.results import Record, aligned
from quantsr.files import read_text

logger = logging.getLogger(__name__)

COSTS = "costs.json"
"""The file of costs in a comparison's folder."""
COST_SIZE = (180, 320)
"""Height and width of the low-resolution picture that costs are for."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of some numbers.

    Attributes:
        mean: arithmetic mean.
        deviation: sample standard deviation (divisor n - 1); None for one number, or where one is
            not finite.
        n: the number of values.
    """

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The mean and deviation of ``values``. Raises ``ValueError`` where there are none."""
        if not values:
            raise ValueError("no values")
        finite = all(math.isfinite(value) for value in values)
        deviation = statistics.stdev(values) if finite and len(values) > 1 else None
        mean = math.fsum(values) / len(values) if finite else sum(values) / len(values)
        return cls(mean, deviation, len(values))


@dataclass(frozen=True)
class Cost:
    """The costs of one variant, of the network of its first seed that is finished.

    Attributes:
        identity: of the run (`Ledger.identity`).
        packed_bytes: size of the packed file with 8-bit head and tail; where the network cannot be
            packed, the sum of its parameters at their bits.
        gbitops: billions of BitOPs for a picture of `COST_SIZE`, by depth (docs: ``quantsr cost``).
        ms: median milliseconds for such a picture, by depth; empty where it was not measured.
        engine: that was measured; empty where none was.
        machine: the processor.
        note: why the network is not packed; empty where it is.
    """

    identity: str
    packed_bytes: int
    gbitops: dict[int, float]
    ms: dict[int, float]
    engine: str = ""
    machine: str = ""
    note: str = ""

    def at(self, depth: int | None, values: Mapping[int, float]) -> float | None:
        """The value of `gbitops` or `ms` at a depth, None standing for the only one; None where
        there is none."""
        return values.get(max(values, default=0) if depth is None else depth)


def read_costs(folder: Path) -> dict[str, Cost]:
    """The costs by variant of a comparison's folder; empty where they are not known or damaged."""
    path = folder / COSTS
    if not path.exists():
        return {}
    try:
        rows = json.loads(read_text(path))
        return {str(variant): _from_json(row) for variant, row in rows.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.warning("%s: damaged (%s); left out", path, error)
        return {}


def _from_json(row: dict[str, Any]) -> Cost:
    gbitops, ms = ({int(d): float(value) for d, value in row[key].items()} for key in ("gbitops", "ms"))
    identity, engine, machine, note = (str(row[key]) for key in ("identity", "engine", "machine", "note"))
    return Cost(identity, int(row["packed_bytes"]), gbitops, ms, engine, machine, note)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Spread | None:
    """Mean and spread of ``ours - theirs`` over the seeds that both have; None without a common
    seed.

    Args:
        ours, theirs: values by seed.
    """
    seeds = [seed for seed in ours if seed in theirs]
    return Spread.of([ours[seed] - theirs[seed] for seed in seeds]) if seeds else None


Row = tuple[str, str, int | None]
"""Variant, network and depth."""


def by_row(records: Sequence[Record], set_name: str, metric: str) -> dict[Row, dict[int, float]]:
    """For one set and metric the values of every row by seed, in the order of the records."""
    found: dict[Row, dict[int, float]] = {}
    for record in records:
        if (record.set, record.metric) == (set_name, metric) and record.variant is not None:
            assert record.seed is not None
            found.setdefault((record.variant, record.network, record.depth), {})[record.seed] = record.value
    return found


def table(
    records: Sequence[Record], set_name: str, reference: str, costs: Mapping[str, Cost] | None = None
) -> str:
    """The Markdown table of one set, see `table_cells`."""
    return aligned(table_cells(records, set_name, reference, costs), left=2)


def table_cells(
    records: Sequence[Record], set_name: str, reference: str, costs: Mapping[str, Cost] | None = None
) -> list[list[str]]:
    """The cells of the table of one set, the header first: a row per variant and depth, two columns
    per metric, and three of costs where they are known.

    The second column of a metric is the paired difference to the same depth of ``reference``.
    """
    chosen = [record for record in records if record.set == set_name]
    metrics = list(dict.fromkeys(record.metric for record in chosen))
    values = {metric: by_row(chosen, set_name, metric) for metric in metrics}
    rows = list(dict.fromkeys(row for metric in metrics for row in values[metric]))
    head = ["variant", "network", "depth", "n"]
    for metric in metrics:
        head += [metric.upper(), f"{metric.upper()} - {reference}"]
    cells = [head + (["kB", "GBitOP", "ms"] if costs else [])]
    baseline = {r.metric: r.value for r in chosen if r.variant is None}
    if baseline:
        line = ["bicubic", "", "", ""]
        for metric in metrics:
            line += [number(baseline.get(metric), metric), ""]
        cells.append(line + ([""] * 3 if costs else []))
    for row in rows:
        variant, network, depth = row
        n = max(len(values[metric].get(row, {})) for metric in metrics)
        line = [variant, network, "" if depth is None else str(depth), str(n)]
        for metric in metrics:
            own = values[metric].get(row, {})
            reference_values = next(
                (v for (name, _, d), v in values[metric].items() if (name, d) == (reference, depth)), {}
            )
            line.append(shown(Spread.of(list(own.values())), metric) if own else "-")
            difference = None if variant == reference else paired_difference(own, reference_values)
            line.append("" if variant == reference else shown(difference, metric, signed=True, row_n=n))
        cells.append(line + (_cost_cells(costs.get(variant), depth) if costs else []))
    return cells


def _cost_cells(cost: Cost | None, depth: int | None) -> list[str]:
    if cost is None:
        return ["-"] * 3
    operations, ms = cost.at(depth, cost.gbitops), cost.at(depth, cost.ms)
    return [
        f"{cost.packed_bytes / 1e3:.1f}",
        "-" if operations is None else f"{operations:.0f}",
        "-" if ms is None else f"{ms:.1f}",
    ]


def number(value: float | None, metric: str, *, signed: bool = False) -> str:
    """A value as text, with one decimal more than in other tables, as differences between variants
    are small."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    digits = 3 if "psnr" in metric.lower() else 5
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def shown(spread: Spread | None, metric: str, *, signed: bool = False, row_n: int | None = None) -> str:
    """``32.526 ± 0.004``; the number of values is added where it is not ``row_n``."""
    if spread is None:
        return "-"
    text = number(spread.mean, metric, signed=signed)
    if spread.deviation is not None:
        text += f" ± {number(spread.deviation, metric)}"
    return f"{text} (n={spread.n})" if row_n not in (None, spread.n) else text


def markdown(
    name: str,
    records: Sequence[Record],
    *,
    reference: str,
    about: Mapping[str, str],
    missing: Sequence[str] = (),
    costs: Mapping[str, Cost] | None = None,
) -> str:
    """The page ``results.md``.

    Args:
        name: of the comparison.
        records: of all finished runs; those without a variant are the baseline.
        reference: the variant to which differences are taken.
        about: a description of each variant in one line.
        missing: runs that are not finished.
        costs: by variant, where they are known.
    """
    seeds = sorted({record.seed for record in records if record.seed is not None})
    commits = ", ".join(sorted({record.commit for record in records if record.commit is not None}))
    parts = [
        f"# {name}\n",
        "Mean ± sample standard deviation over n seeds "
        f"({', '.join(map(str, seeds)) or 'none yet'}). Differences to `{reference}` at the same depth are paired by "
        "seed: mean ± sample standard deviation of the differences."
        + (f" Source: {commits}." if commits else "")
        + "\n",
    ]
    if missing:
        parts.append(f"Not finished ({len(missing)}): {', '.join(missing)}.\n")
    for set_name in dict.fromkeys(record.set for record in records):
        first = next(record for record in records if record.set == set_name)
        title = f"## {set_name}, x{first.scale}, {first.pictures} pictures\n"
        parts.append(f"{title}\n{table(records, set_name, reference, costs)}\n")
    if costs:
        parts.append(f"{about_costs(costs)}\n")
        notes = [
            f"- `{variant}` is not packed: {cost.note}\n" for variant, cost in costs.items() if cost.note
        ]
        parts += ["".join(notes)] if notes else []
    parts.append("## Variants\n\n" + "".join(f"- `{variant}`: {text}\n" for variant, text in about.items()))
    return "\n".join(parts)


def about_costs(costs: Mapping[str, Cost]) -> str:
    """What the columns of costs mean."""
    height, width = COST_SIZE
    engines = sorted({f"{cost.engine} on {cost.machine}" for cost in costs.values() if cost.engine})
    return (
        f"Costs: kB (1000 bytes) of the packed file; GBitOP and median ms for a picture of {width}x{height} pixels, "
        f"ms measured with {', '.join(engines) or 'no engine'}. Of networks that are not packed kB are counted."
    )


def about_variants(comparison: Comparison) -> dict[str, str]:
    """The iterations and changes of each variant, in the order of the file."""
    first = {run.variant: run for run in reversed(comparison.runs)}
    found = {}
    for variant, changes in comparison.changes.items():
        train = first[variant].training.train
        assert train is not None
        words = [
            f"{train.total_iter} iterations",
            *(f"`{key}={_shown(value)}`" for key, value in changes.items()),
        ]
        found[variant] = ", ".join(words)
    return found


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
