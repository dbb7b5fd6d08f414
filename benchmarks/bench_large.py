"""Wall time, CPU time and peak memory of whole `quantsr upscale` processes: one small picture, and
one very large one.

    python -m benchmarks.bench_large [--megapixels 100] [--network NAME_OR_FILE] \\
        [--depth N] [--runs 5]

The large picture has `--megapixels` million pixels after upscaling. Peak memory is the largest
resident set size of the process (Linux). The small and the large picture are upscaled with an empty
cache of compiled graphs, and the small one once more with the filled cache. These three processes
run in turn, `--runs` times; the table has medians, the distance between the quartiles of wall time,
and the fastest and slowest run.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from benchmarks import timing
from quantsr.commands.upscale import DEFAULT_MODEL
from quantsr.deploy.upscale.upscaler import Upscaler
from quantsr.timing import Timing

SMALL = (90, 120)


MEASURED = """
import sys
from pathlib import Path
from quantsr.cli import main
code = main(sys.argv[2:])
Path(sys.argv[1]).write_text(Path("/proc/self/status").read_text())
sys.exit(code)
"""
"""The command `quantsr`, which writes its own peak memory to a file: the peak that wait4 returns
includes that of the parent process before exec."""


def write_picture(path: Path, height: int, width: int) -> None:
    """A smooth picture with noise, as PNG."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    picture += rng.integers(-4, 5, picture.shape, np.int8)
    cv2.imwrite(str(path), picture.clip(0, 255).astype(np.uint8))


def run(picture: Path, output: Path, network: str, depth: int, cache: Path) -> dict[str, float]:
    """One `quantsr upscale`: seconds of wall and CPU time, and MiB of peak memory."""
    status_file = output.with_suffix(".status")
    command = [sys.executable, "-c", MEASURED, str(status_file), "upscale", str(picture), "-o", str(output)]
    command += ["--model", network, "--depth", str(depth), "--force"]
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "XDG_CACHE_HOME": str(cache)})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    return {
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mib": int(re.findall(r"VmHWM:\s+(\d+) kB", status_file.read_text())[0]) / 1024,
    }


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Several results of `run` as one row of the table."""
    wall = Timing("wall", tuple(found["wall_s"] for found in runs))
    return {
        "wall_s": round(wall.median, 2),
        "wall_spread_s": round(wall.spread, 2),
        "wall_min_s": round(wall.fastest, 2),
        "wall_max_s": round(max(wall.times), 2),
        "cpu_s": round(median(found["cpu_s"] for found in runs), 2),
        "peak_mib": round(median(found["peak_mib"] for found in runs)),
        "peak_max_mib": round(max(found["peak_mib"] for found in runs)),
        "runs": len(runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megapixels", type=float, default=100.0, help="of the large result")
    parser.add_argument("--network", default=DEFAULT_MODEL, help="name or packed file")
    parser.add_argument("--depth", type=int, help="default: the deepest")
    parser.add_argument("--runs", type=int, default=5, help="default: %(default)s")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error(f"--runs: must be at least 1, got {args.runs}")
    upscaler = Upscaler(args.network, depth=args.depth)
    side = round((args.megapixels * 1e6) ** 0.5 / upscaler.scale)
    cases = (("small", SMALL, "a"), ("small, again", SMALL, "a"), ("large", (side, side), "b"))
    found: dict[str, list[dict[str, float]]] = {row: [] for row, _, _ in cases}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for height, width in (SMALL, (side, side)):
            write_picture(folder / f"{width}x{height}.png", height, width)
        for number in range(args.runs):
            for row, (height, width), cache in cases:
                picture = folder / f"{width}x{height}.png"
                own_cache = folder / f"{cache}{number}"
                found[row].append(run(picture, folder / "out.png", args.network, upscaler.depth, own_cache))
    records = [
        {
            "row": row,
            "size": f"{width}x{height} to {width * upscaler.scale}x{height * upscaler.scale}",
            "depth": upscaler.depth,
            **summary(found[row]),
        }
        for row, (height, width), _ in cases
    ]
    print(timing.table(records))
    print(timing.write_csv("large.csv", records))


if __name__ == "__main__":
    main()
