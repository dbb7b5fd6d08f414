"""What the benchmarks share beside `quantsr.analysis.timing`: tables, and CSV files that name machine and commit."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantsr.analysis.timing import machine

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The short commit of the checkout, with ``+`` where files differ from it; ``unknown`` outside of git."""
    try:
        here = Path(__file__).parent
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True, check=True
        )
        return found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_csv(name: str, records: Sequence[Mapping[str, object]], *, folder: Path = RESULTS) -> Path:
    """Write records with the machine and commit added to each; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    columns = list(dict.fromkeys(key for record in records for key in record))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, "machine", "commit"])
        writer.writeheader()
        where = {"machine": machine(), "commit": commit()}
        writer.writerows({**record, **where} for record in records)
    return path


def table(records: Sequence[Mapping[str, object]]) -> str:
    """Records as an aligned text table."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    cells = [columns] + [[str(record.get(column, "")) for column in columns] for record in records]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in cells)
