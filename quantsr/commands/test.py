"""``quantsr test -opt FILE``: evaluates a network at its depths on any number of sets."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from quantsr.analysis.evaluation import evaluate_options
from quantsr.commands.arguments import add_launcher_arguments, add_option_arguments, options_from
from quantsr.config import Options
from quantsr.engine.results import markdown, write_results
from quantsr.engine.run_folder import dated_log, log_file, owned, write_options
from quantsr.errors import InputError
from quantsr.hardware import processes

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``quantsr test``."""
    add_option_arguments(parser)
    add_launcher_arguments(parser)


def main(options: Options) -> int:
    """Evaluates a network by ``options``, prints a table per set, and writes ``results.json``,
    ``results.md`` and ``options.yml``.

    Returns:
        0.

    Raises:
        InputError, WorkError: see `quantsr.analysis.evaluation.evaluate_options`.
    """
    folder = Path(options.results_folder)
    with owned(folder), log_file(dated_log(folder, "test", options.name)):
        records = evaluate_options(options)
        write_options(options.dump(), folder)
        write_results(records, folder)
        print(markdown(records))
        logger.info("results written to %s", folder)
    return 0


def run(args: argparse.Namespace) -> int:
    """Runs ``quantsr test``; see `main`. Raises InputError where several processes were started."""
    if processes.detect(args.launcher).size > 1:
        raise InputError("quantsr test: evaluates in one process; start it without torchrun or srun")
    return main(options_from(args, is_train=False))
