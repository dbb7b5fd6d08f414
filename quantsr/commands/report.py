"""``quantsr report RUN... -o report.html``: tables, pictures and training curves of several runs in
one file."""

from __future__ import annotations

import argparse
import logging

from quantsr.analysis.report.document import report
from quantsr.analysis.report.runs import read_runs
from quantsr.errors import InputError
from quantsr.files import write_text
from quantsr.paths import expanded

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``quantsr report``."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="results/NAME, experiments/NAME or experiments/compare_NAME"
    )
    parser.add_argument(
        "-o", "--output", default="report.html", metavar="FILE", help="the page to write (report.html)"
    )
    parser.add_argument("--title", default="Results", help="its title")
    parser.add_argument(
        "--pictures", type=int, default=3, metavar="N", help="pictures of each set, where runs saved them (3)"
    )
    parser.add_argument(
        "--crop", type=int, default=192, metavar="N", help="side of the crops in pixels (192)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the page; returns 0.

    Raises:
        InputError: a run does not exist or is damaged, or an argument is out of range.
        WorkError: the page cannot be written.
    """
    if args.pictures < 0:
        raise InputError(f"--pictures: must be 0 or more, got {args.pictures}")
    if args.crop < 16:
        raise InputError(f"--crop: must be 16 or more, got {args.crop}")
    output = expanded(args.output)
    if output.is_dir():
        raise InputError(f"-o {args.output}: is a folder; name a file, such as {output / 'report.html'}")
    text = report(read_runs(args.runs), title=args.title, per_set=args.pictures, side=args.crop)
    write_text(output, text)
    logger.info("%s: %.1f MB", output, output.stat().st_size / 1e6)
    return 0
