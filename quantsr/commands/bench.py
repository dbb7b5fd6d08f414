"""``quantsr bench``: measures the speed of a network on this machine."""

from __future__ import annotations

import argparse
import json

from quantsr.commands.sizes import parse_size
from quantsr.deploy.bench import load_packed, measure
from quantsr.deploy.engines.names import ENGINES
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
    parser.add_argument(
        "--depth", type=int, metavar="N", help="depth to run (default: all depths of the network)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="timed runs (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the times as JSON or as a table of ms per picture.

    Raises:
        InputError: `--runs` is below 1, or see `load_packed` and `Upscaler`.
    """
    if args.runs < 1:
        raise InputError(f"--runs: must be at least 1, got {args.runs}")
    record = measure(
        load_packed(args.model),
        args.engine,
        args.size,
        depth=args.depth,
        threads=args.threads,
        runs=args.runs,
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
