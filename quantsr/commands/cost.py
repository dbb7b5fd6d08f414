"""``quantsr cost``: counts the storage and the operations of a network."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from quantsr.analysis.cost import SIZES, cost_of_packed
from quantsr.commands.sizes import parse_size
from quantsr.deploy.bench import STAND_INS, load_packed
from quantsr.deploy.packed.header import described_program
from quantsr.errors import InputError
from quantsr.trained_files.names import find_packed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `quantsr cost`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-opt", "--opt", metavar="FILE", help="option file of the network")
    source.add_argument(
        "-m", "--model", metavar="NAME_OR_FILE", help="packed network, 'random' or 'random_t'"
    )
    parser.add_argument(
        "--size", type=parse_size, metavar="HxW", help="input picture (default: 180x320 and 256x256)"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON instead of a table")
    shown.add_argument(
        "--program",
        action="store_true",
        help="print the operations of a packed network, with shapes and bits, instead of a table",
    )


def run(args: argparse.Namespace) -> int:
    """Print the counts as JSON or as a table. Raises InputError for a network or an option file
    that cannot be read."""
    if args.program:
        if not args.model:
            raise InputError("--program: only a packed network has one; name it by -m")
        print(described_program(load_packed(args.model)))
        return 0
    sizes = [args.size] if args.size else list(SIZES)
    if args.opt:
        from quantsr.analysis.module_cost import cost_of_options  # imports torch

        record = cost_of_options(args.opt, sizes)
    else:
        record = cost_of_packed(load_packed(args.model), sizes)
    if args.model and args.model not in STAND_INS:
        record["storage"]["file_bytes"] = find_packed(args.model).stat().st_size
    print(json.dumps(record, indent=2) if args.json else _table(record))
    return 0


def _table(record: Mapping[str, Any]) -> str:
    storage = record["storage"]
    smaller = storage["float_bytes"] / storage["packed_bytes"]
    lines = [
        f"{record['arch']}: {storage['parameters']:,} parameters, {storage['packed_bytes']:,} bytes packed "
        f"({smaller:.1f} x smaller than float32's {storage['float_bytes']:,})"
    ]
    if storage["file_bytes"] is not None:
        lines.append(f"file: {storage['file_bytes']:,} bytes")
    lines += ["", "| depth | picture | GMAC | equivalent GMAC (b/32) | GBitOP |", "|---|---|---|---|---|"]
    for row in record["depths"]:
        depth = "-" if row["depth"] is None else row["depth"]
        for cost in row["sizes"]:
            height, width = cost["size"]
            lines.append(
                f"| {depth} | {width}x{height} | {cost['macs'] / 1e9:.2f} | {cost['equivalent_macs'] / 1e9:.2f} "
                f"| {cost['bitops'] / 1e9:.1f} |"
            )
    return "\n".join([*lines, "", *record["formulas"]])
