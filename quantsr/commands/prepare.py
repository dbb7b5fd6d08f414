"""``quantsr prepare``: bicubic LR folders, sub-images, LMDB, benchmark layout, downloads."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from quantsr.data import preparation
from quantsr.data.download import ARCHIVES, BY_HAND, download
from quantsr.errors import InputError
from quantsr.paths import expanded
from quantsr.temporary import remove_leftovers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands."""
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)

    bicubic = commands.add_parser("bicubic", help="LR pictures by MATLAB's bicubic: OUT/X2/NAMEx2.png ...")
    _add_folders(bicubic)
    _add_scales(bicubic)

    benchmark = commands.add_parser(
        "benchmark", help="a benchmark set: OUT/HR (sides multiples of 12), OUT/LR_bicubic/X2 ..."
    )
    _add_folders(benchmark)
    _add_scales(benchmark)

    sub = commands.add_parser(
        "subimages", help="cut large pictures into overlapping ones, GT and LR at the same places"
    )
    _add_folders(sub)
    sub.add_argument("--size", type=_positive, default=480, help="side of a sub-image (default 480)")
    sub.add_argument("--step", type=_positive, default=240, help="distance of their corners (default 240)")
    sub.add_argument("--scale", type=_positive, default=1, help="upscaling factor, with --lq-output")
    sub.add_argument("--lq", type=Path, help="folder of LR pictures; without it they are made by bicubic")
    sub.add_argument("--lq-output", type=Path, help="folder for the LR sub-images")
    sub.add_argument("--filename-tmpl", default="{}", help="names in --lq, e.g. '{}x4' (default '{}')")

    lmdb = commands.add_parser("lmdb", help="put a folder of pictures into an LMDB of BasicSR's format")
    _add_folders(lmdb, output="OUT.lmdb")
    lmdb.add_argument(
        "--strip", default="", metavar="TEXT", help="end of the names left out of the keys, e.g. x4 for LR"
    )
    lmdb.add_argument(
        "--compression", type=int, choices=range(10), default=1, metavar="0-9", help="of PNG (default 1)"
    )

    fetch = commands.add_parser("download", help="download DIV2K, or list the addresses")
    fetch.add_argument(
        "name",
        nargs="?",
        choices=[*ARCHIVES, *BY_HAND],
        help="what to download; without it a list",
    )
    fetch.add_argument(
        "-o", "--output", type=Path, default=Path("datasets/DIV2K"), help="folder (default datasets/DIV2K)"
    )
    fetch.add_argument("--force", action="store_true", help="even if the folder is there already")


def _add_folders(parser: argparse.ArgumentParser, output: str = "OUT") -> None:
    parser.add_argument("input", type=Path, metavar="FOLDER", help="folder of pictures")
    parser.add_argument("output", type=Path, metavar=output, help="where the result goes")
    parser.add_argument(
        "-j", "--jobs", type=_positive, default=os.cpu_count() or 1, help="processes (default: cores)"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace existing files; by default they are kept and skipped"
    )


def _add_scales(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scale", type=_positive, nargs="+", default=[2, 3, 4], help="scales (default 2 3 4)"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Runs one of the subcommands; returns 0.

    Raises:
        InputError, WorkError: with the problem and the remedy in one line.
    """
    if args.what == "download":
        return _download(args)
    jobs, force = args.jobs, args.force
    source, target = expanded(args.input), expanded(args.output)
    lq_source, lq_target = (_expanded_or_none(getattr(args, key, None)) for key in ("lq", "lq_output"))
    for folder in filter(None, (target, lq_target)):
        remove_leftovers(folder)
    if args.what == "bicubic":
        count = preparation.make_bicubic(source, target, args.scale, jobs=jobs, force=force)
    elif args.what == "benchmark":
        count = preparation.make_benchmark(source, target, args.scale, jobs=jobs, force=force)
    elif args.what == "subimages":
        if (lq_source is not None or args.scale > 1) and lq_target is None:
            raise InputError("--lq-output: missing; --lq and --scale need a folder for the LR sub-images")
        count = preparation.make_subimages(
            source,
            target,
            lq_source=lq_source,
            lq_target=lq_target,
            filename_tmpl=args.filename_tmpl,
            scale=args.scale,
            size=args.size,
            step=args.step,
            jobs=jobs,
            force=force,
        )
    else:
        count = preparation.make_lmdb(
            source, target, strip=args.strip, compression=args.compression, jobs=jobs, force=force
        )
    _print_line(f"{target}: {count} written" + ("" if count else ", all were there already"))
    return 0


def _expanded_or_none(path: Path | None) -> Path | None:
    return None if path is None else expanded(path)


def _download(args: argparse.Namespace) -> int:
    if args.name is None:
        for name, archive in ARCHIVES.items():
            _print_line(f"{name:<16} {archive.url}  md5 {archive.md5}")
    if args.name is None or args.name in BY_HAND:
        for name, text in BY_HAND.items():
            if args.name in (None, name):
                _print_line(f"{name:<16} {text}")
        return 0
    _print_line(f"{download(args.name, expanded(args.output), force=args.force)}: ready")
    return 0


def _print_line(text: str) -> None:
    sys.stdout.write(text + "\n")
