"""``quantsr train -opt FILE``: trains a network, or resumes a training, and prints the results."""

from __future__ import annotations

import argparse

from quantsr.commands.arguments import (
    add_launcher_arguments,
    add_option_arguments,
    options_from,
    resume_command,
)
from quantsr.config import Options
from quantsr.engine.results import markdown
from quantsr.engine.trainer import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``quantsr train``."""
    add_option_arguments(parser)
    add_launcher_arguments(parser)
    parser.add_argument(
        "--auto-resume",
        "--auto_resume",
        action="store_true",
        help="resume from the newest complete checkpoint of this run, if there is one",
    )


def main(
    options: Options, auto_resume: bool = False, *, resume_with: str | None = None, launcher: str = "none"
) -> int:
    """Trains by ``options``, and prints the tables of the last validation.

    ``resume_with`` is the command that resumes the run, for the message of an interrupted run.

    Returns:
        0.

    Raises:
        InputError, WorkError: see `quantsr.engine.trainer.Trainer.run`.
    """
    trainer = Trainer(options, auto_resume=auto_resume, resume_command=resume_with, launcher=launcher)
    records = trainer.run()
    if records and trainer.world.is_main:
        print(markdown(records))
    return 0


def run(args: argparse.Namespace) -> int:
    """Runs ``quantsr train``; see `main`."""
    options = options_from(args, is_train=True)
    resume_with = resume_command("train", args, "--auto-resume")
    return main(options, args.auto_resume, resume_with=resume_with, launcher=args.launcher)
