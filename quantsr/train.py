"""``quantsr train -opt FILE``: trains a network, resumes, and ends in a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantsr.config import Options


def add_option_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `train` and `test` share, under BasicSR's names."""
    from quantsr.config.arguments import add_option_arguments as add_options

    add_options(parser)
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="who started the processes; torchrun is noticed without it",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``quantsr train``."""
    add_option_arguments(parser)
    parser.add_argument(
        "--auto-resume",
        "--auto_resume",
        action="store_true",
        help="go on from the newest complete checkpoint of this run, if there is one",
    )


def main(
    options: Options, auto_resume: bool = False, *, go_on: str | None = None, launcher: str = "none"
) -> int:
    """Trains as ``options`` say, and prints the last validation's tables.

    ``go_on`` is the command that an interrupted run names for going on.

    Returns:
        0.

    Raises:
        InputError, WorkError: see `quantsr.engine.trainer.Trainer.run`.
    """
    from quantsr.engine.results import markdown
    from quantsr.engine.trainer import Trainer

    trainer = Trainer(options, auto_resume=auto_resume, go_on=go_on, launcher=launcher)
    records = trainer.run()
    if records and trainer.world.is_main:
        print(markdown(records))
    return 0


def run(args: argparse.Namespace) -> int:
    """The command."""
    from quantsr.config.arguments import options_from, typed_again

    options = options_from(args, is_train=True)
    go_on = typed_again("train", args, "--auto-resume")
    return main(options, args.auto_resume, go_on=go_on, launcher=args.launcher)


def _command(name: str, words: Sequence[str]) -> int:
    from quantsr.cli import main as command_line

    return command_line([name, *words])


if __name__ == "__main__":
    sys.exit(_command("train", sys.argv[1:]))
