"""``quantsr queue -opt FILE --budget SECONDS``: trains one network after the other in leased
time."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from quantsr.commands.arguments import above_zero, add_import_argument, import_words
from quantsr.config.queue import load_queue
from quantsr.engine.queue import Queue
from quantsr.paths import expanded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``quantsr queue``."""
    parser.add_argument(
        "-opt", "--opt", dest="opt", required=True, metavar="FILE", help="the queue file (YAML)"
    )
    add_import_argument(parser)
    parser.add_argument(
        "--budget", type=above_zero("seconds"), required=True, metavar="SECONDS", help="duration of this call"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("experiments/queue"),
        metavar="DIR",
        help="folder for networks and training states, kept from call to call (default: %(default)s)",
    )
    parser.add_argument(
        "--last",
        action="store_true",
        help="this is the last call: fit the iterations of every training to its time as well",
    )


def run(args: argparse.Namespace) -> int:
    """Runs ``quantsr queue``; see `quantsr.engine.queue.Queue.run` for errors."""
    words = [
        "quantsr",
        "queue",
        "-opt",
        args.opt,
        *import_words(args),
        "--budget",
        f"{args.budget:g}",
        "--out",
        str(args.out),
    ]
    queue = Queue(
        load_queue(args.opt),
        expanded(args.out),
        seconds=args.budget,
        last=args.last,
        resume_command=shlex.join([*words, *(["--last"] if args.last else [])]),
    )
    queue.run()
    return 0
