"""``quantsr compare -opt FILE``: trains variants with several seeds and tables the results."""

from __future__ import annotations

import argparse
import sys

from quantsr.analysis.compare import compare, dry_run, page
from quantsr.analysis.runs import Ledger
from quantsr.commands.arguments import add_option_arguments, resume_command
from quantsr.config.compare import load_comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``quantsr compare``."""
    add_option_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would run, in order, and run nothing"
    )
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="set runs that were made with other options aside, and train them again",
    )


def run(args: argparse.Namespace) -> int:
    """Runs ``quantsr compare``; see `quantsr.analysis.compare.compare` for errors."""
    comparison = load_comparison(args.opt, args.set, args.force_yml)
    ledger = Ledger(comparison)
    if args.dry_run:
        sys.stdout.write(dry_run(comparison, ledger))
        return 0
    resume_with = resume_command("compare", args, *(["--retrain"] if args.retrain else []))
    records = compare(comparison, ledger, resume_command=resume_with, retrain=args.retrain)
    sys.stdout.write(page(comparison, records))
    return 0
