"""What the benchmarks share: interleaved timing, a description of the machine, CSV files."""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def interleave(
    rows: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 2,
    sync: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call: ``repeats`` rounds in which every row runs once, so that all see the same machine.

    Args:
        rows: what to time, by name.
        repeats: counted rounds.
        warmup: uncounted rounds before.
        sync: waits for the device; called before each reading of the clock.
    """
    wait = sync or (lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for round_ in range(warmup + repeats):
        for name, call in rows.items():
            wait()
            begin = time.perf_counter()
            call()
            wait()
            if round_ >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest, in milliseconds."""
    return {
        "median_ms": round(statistics.median(seconds) * 1e3, 3),
        "min_ms": round(min(seconds) * 1e3, 3),
        "max_ms": round(max(seconds) * 1e3, 3),
    }


def machine() -> str:
    """The processor, its cores and its matrix instructions, in a line."""
    model, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(
            line.split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if ":" in line
        )
        values = {key.strip(): value.strip() for key, value in fields.items()}
        model, flags = values.get("model name", model), values.get("flags", "")
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return f"{model}, {os.cpu_count()} cores, {' '.join(f for f in known if f in flags.split()) or 'no vector flags'}"


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
