"""``quantsr compare -opt FILE``: trains variants with several seeds and tables the results."""

from __future__ import annotations

import argparse
import shlex
import sys

from quantsr.analysis import cluster, workers
from quantsr.analysis.compare import dry_run, finish, page, prepare, work
from quantsr.analysis.compare_tables import read_costs
from quantsr.analysis.runs import Ledger
from quantsr.commands.arguments import add_option_arguments, resume_command
from quantsr.config.compare import load_comparison
from quantsr.errors import InputError
from quantsr.hardware import processes
from quantsr.locks import LOCKS_EXIST


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
    parser.add_argument(
        "--workers",
        type=_count,
        default=1,
        metavar="N",
        help="processes that train runs side by side (default: %(default)s)",
    )
    parser.add_argument(
        "--slurm",
        nargs="*",
        metavar="KEY=VALUE",
        help="submit the workers as an array of Slurm jobs, with such parameters as partition=gpu gpus_per_node=1 "
        "timeout_min=600",
    )
    # a process that stops when its standard input ends
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of processes, at least 1, got {word!r}")
    return int(word)


def run(args: argparse.Namespace) -> int:
    """Runs ``quantsr compare``; see `quantsr.analysis.compare` for errors."""
    comparison = load_comparison(args.opt, args.set, args.force_yml)
    ledger = Ledger(comparison)
    if args.dry_run:
        sys.stdout.write(dry_run(comparison, ledger))
        return 0
    world = processes.detect("none")
    if not LOCKS_EXIST and (args.workers > 1 or args.slurm is not None or args.worker or world.size > 1):
        raise InputError(
            "compare: this system has no file locks, by which processes share runs; use --workers 1"
        )
    again = resume_command(
        "compare",
        args,
        *(["--retrain"] if args.retrain else []),
        *(["--workers", str(args.workers)] if args.workers > 1 else []),
    )
    if args.worker:
        workers.stop_with_parent()
        work(comparison, ledger, resume_command=again)
        return 0
    if world.size > 1:
        if args.workers > 1 or args.slurm is not None:
            raise InputError("compare: torchrun starts the workers; leave --workers and --slurm out")
        workers.leave_group(world)
    prepare(comparison, ledger, retrain=args.retrain, again=world.is_main)
    words = shlex.split(resume_command("compare", args, "--worker"))[1:]
    command = [sys.executable, "-m", "quantsr", *words]
    if args.slurm is not None:
        jobs = cluster.submit(
            command,
            count=args.workers,
            parameters=cluster.parse_parameters(args.slurm),
            folder=ledger.folder / "slurm",
        )
        print(
            f"submitted {', '.join(jobs)}; progress: {again} --dry-run; the table, when all are finished: {again}"
        )
        return 0
    if args.workers > 1:
        workers.Workers(command, args.workers, comparison, ledger).run(again)
    else:
        work(comparison, ledger, resume_command=again)
    if world.is_main:
        records = finish(comparison, ledger)
        sys.stdout.write(page(comparison, records, read_costs(ledger.folder)))
    return 0
