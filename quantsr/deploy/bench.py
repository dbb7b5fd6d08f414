"""`quantsr bench`: how fast a network runs on this machine, from uint8 array to uint8 array."""

from __future__ import annotations

import argparse
import json
import re
from importlib import import_module
from typing import Any

import numpy as np

from quantsr.analysis import timing
from quantsr.deploy import packing
from quantsr.deploy.model import PackedModel
from quantsr.deploy.runtimes import ENGINES
from quantsr.deploy.upscaler import Upscaler, find_model
from quantsr.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `quantsr bench`."""
    parser.add_argument(
        "-m",
        "--model",
        required=True,
        metavar="NAME_OR_FILE",
        help="packed network, or 'random' for QuantSR-C x4 with 16 blocks, 'random_t' for QuantSR-T x4 with 4 RSTBs, "
        "both W4A4 with random weights and an 8-bit head and tail",
    )
    parser.add_argument("--engine", default="auto", choices=ENGINES, help="default: %(default)s")
    parser.add_argument(
        "--size",
        type=parse_size,
        default="180x320",
        metavar="HxW",
        help="input picture (default: %(default)s)",
    )
    parser.add_argument("--depth", type=int, metavar="N", help="depth to run (default: each there is)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="timed runs (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the times as JSON or as a table of ms per picture. Raises InputError for `--runs` below 1 and what `load` and `Upscaler` refuse."""
    if args.runs < 1:
        raise InputError(f"--runs: must be at least 1, got {args.runs}")
    record = measure(
        load(args.model), args.engine, args.size, depth=args.depth, threads=args.threads, runs=args.runs
    )
    if args.json:
        print(json.dumps(record, indent=2))
        return 0
    height, width = record["size"]
    print(
        f"{record['machine']}; {record['engine']}; {width}x{height} -> x{record['scale']}; {args.runs} runs"
    )
    print("| depth | median ms | quartile distance | fastest |\n|---|---|---|---|")
    for row in record["depths"]:
        print(
            f"| {row['depth']} | {row['median_ms']:.1f} | {row['spread_ms']:.1f} | {row['fastest_ms']:.1f} |"
        )
    return 0


def measure(
    model: PackedModel,
    engine: str,
    size: tuple[int, int],
    *,
    depth: int | None = None,
    threads: int | None = None,
    runs: int = 20,
) -> dict[str, Any]:
    """Time `runs` upscalings of a `size` (height, width) picture at `depth`, or at every depth, interleaved. Times in ms."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    depths = model.header.depths if depth is None else (model.depth_or_default(depth),)
    upscalers = {str(d): Upscaler(model, engine, d, threads=threads) for d in depths}
    contenders = {name: (lambda u=u: u(image)) for name, u in upscalers.items()}
    load = timing.load_per_core()
    results = timing.interleaved(contenders, runs)
    return {
        "machine": timing.machine(),
        "load_per_core_before": round(load, 2),
        "engine": next(iter(upscalers.values())).engine,
        "threads": threads,
        "size": list(size),
        "scale": model.header.scale,
        "depths": [
            {
                "depth": int(result.name),
                "median_ms": round(result.median, 3),
                "spread_ms": round(result.spread, 3),
                "fastest_ms": round(result.fastest, 3),
                "runs": runs,
            }
            for result in results
        ],
    }


STAND_INS = {"random": "quantsr.deploy.stand_in", "random_t": "quantsr.deploy.quantsr_t.stand_in"}
"""Names that stand for a network with random weights, and the modules that make it."""


def load(name: str) -> PackedModel:
    """A packed network by name or file, or one of STAND_INS."""
    if name in STAND_INS:
        model: PackedModel = import_module(STAND_INS[name]).random_model()
        return model
    return packing.load(find_model(name))


def parse_size(text: str) -> tuple[int, int]:
    """ "180x320" -> (180, 320): height, then width."""
    match = re.fullmatch(r"([1-9]\d{0,5})[xX]([1-9]\d{0,5})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, e.g. 180x320")
    return int(match[1]), int(match[2])
