"""Shared by the benchmarks, in addition to `quantsr.timing`: tables, and CSV files with machine and
commit."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantsr.timing import machine

RESULTS = Path(__file__).parent / "results"
RESULTS_EXCLUDED = ":(top,exclude)benchmarks/results"


def commit(folder: Path = Path(__file__).parent) -> str:
    """The short commit of the checkout that holds `folder`, with ``+`` where tracked files differ
    from it; ``unknown`` outside of git.

    Changed results are ignored; else the second of two benchmarks would always have a ``+``.
    """
    try:
        name = _git(folder, "describe", "--always")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", RESULTS_EXCLUDED)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}+" if changed else name


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_csv(name: str, records: Sequence[Mapping[str, object]], *, folder: Path = RESULTS) -> Path:
    """Write records with the machine and commit added to each; returns the file. Warns where the
    code has uncommitted changes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    columns = list(dict.fromkeys(key for record in records for key in record))
    where = {"machine": machine(), "commit": commit()}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, "machine", "commit"])
        writer.writeheader()
        writer.writerows({**record, **where} for record in records)
    if where["commit"].endswith("+"):
        print(
            f"warning: {path}: measured with changes that are in no commit ({where['commit']}); commit them and measure again",
            file=sys.stderr,
        )
    return path


def table(records: Sequence[Mapping[str, object]]) -> str:
    """Records as an aligned text table."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    cells = [columns] + [[str(record.get(column, "")) for column in columns] for record in records]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in cells)
