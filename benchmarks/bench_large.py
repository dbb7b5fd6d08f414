"""Wall time, CPU time and peak memory of whole `quantsr upscale` processes: one small picture, and one very large one.

    python -m benchmarks.bench_large [--megapixels 100] [--network NAME_OR_FILE] [--depth N]

The large picture has `--megapixels` million pixels after upscaling. Peak memory is the process's largest resident set, as Linux counts it.
Every process starts with an empty cache of compiled graphs, and the small picture is upscaled once more with it full.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks import timing
from quantsr.deploy.upscale_cli import DEFAULT_MODEL
from quantsr.deploy.upscaler import Upscaler

SMALL = (90, 120)


def write_picture(path: Path, height: int, width: int) -> None:
    """A smooth picture with noise, as PNG."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    picture += rng.integers(-4, 5, picture.shape, np.int8)
    cv2.imwrite(str(path), picture.clip(0, 255).astype(np.uint8))


def run(picture: Path, output: Path, network: str, depth: int, cache: Path) -> dict[str, float]:
    """One `quantsr upscale`: seconds of wall and CPU time, and MiB of peak memory."""
    command = [
        sys.executable,
        "-m",
        "quantsr",
        "upscale",
        str(picture),
        "-o",
        str(output),
        "--model",
        network,
    ]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--depth", str(depth), "--force"], env={**os.environ, "XDG_CACHE_HOME": str(cache)}
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    return {
        "wall_s": round(time.perf_counter() - start, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megapixels", type=float, default=100.0, help="of the large result")
    parser.add_argument("--network", default=DEFAULT_MODEL, help="name or packed file")
    parser.add_argument("--depth", type=int, help="default: the deepest")
    args = parser.parse_args()
    upscaler = Upscaler(args.network, depth=args.depth)
    side = round((args.megapixels * 1e6) ** 0.5 / upscaler.scale)
    records = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for row, (height, width), cache in (
            ("small", SMALL, "a"),
            ("small, again", SMALL, "a"),
            ("large", (side, side), "b"),
        ):
            picture = folder / "picture.png"
            write_picture(picture, height, width)
            found = run(picture, folder / "out.png", args.network, upscaler.depth, folder / cache)
            size = f"{width}x{height} to {width * upscaler.scale}x{height * upscaler.scale}"
            records.append({"row": row, "size": size, "depth": upscaler.depth, **found})
    print(timing.table(records))
    print(timing.write_csv("large.csv", records))


if __name__ == "__main__":
    main()
