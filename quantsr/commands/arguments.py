"""The command-line arguments for option files and changes of options, shared by the commands."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable

from quantsr.config.load import load_options
from quantsr.config.schema import Options
from quantsr.discovery import import_named


def add_option_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``-opt``, ``--import``, ``--set`` and ``--force_yml``."""
    parser.add_argument(
        "-opt", "--opt", dest="opt", required=True, metavar="FILE", help="the option file (YAML)"
    )
    add_import_argument(parser)
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY.SUB=VALUE",
        help="change options, e.g. --set network_g.nbits_w=2 train.total_iter=1000; null removes a key",
    )
    parser.add_argument(
        "--force_yml",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY:SUB=VALUE",
        help="the same in BasicSR's notation",
    )


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--import``; the imports run while arguments are parsed."""
    parser.add_argument(
        "--import",
        dest="imports",
        type=import_named,
        action="append",
        default=[],
        metavar="FILE_OR_MODULE",
        help="import a Python file or module first, whose networks, losses, ... the option file names",
    )


def add_float_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``MODEL``, ``-opt`` and ``--import``, which `quantsr.loading.float_network` reads."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="float network: checkpoint or run of quantsr, ncnn's .param file, or with -opt any checkpoint",
    )
    parser.add_argument(
        "-opt",
        "--opt",
        metavar="FILE",
        help="option file with network_g, for a checkpoint that does not describe its network",
    )
    add_import_argument(parser)


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher`` and ``--local_rank``, under BasicSR's names."""
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="launcher of the processes; torchrun is detected without it",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def options_from(args: argparse.Namespace, *, is_train: bool, check_paths: bool = True) -> Options:
    """Load the options given by the arguments of :func:`add_option_arguments`.

    Raises:
        OptionsError: with every problem found.
    """
    return load_options(args.opt, args.set, args.force_yml, is_train=is_train, check_paths=check_paths)


def import_words(args: argparse.Namespace) -> list[str]:
    """The ``--import`` arguments as given on the command line."""
    return [word for name in args.imports for word in ("--import", name)]


def resume_command(command: str, args: argparse.Namespace, *more: str) -> str:
    """The command line that runs ``quantsr COMMAND`` with the same option file and changes, quoted
    for the shell."""
    words = ["quantsr", command, "-opt", args.opt]
    words += import_words(args)
    for flag, entries in (("--set", args.set), ("--force_yml", args.force_yml)):
        words += [flag, *entries] if entries else []
    return shlex.join([*words, *more])


def above_zero(unit: str) -> Callable[[str], float]:
    """The type of an argument that is a finite number above 0 of `unit`, such as seconds."""

    def parse(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be a number of {unit} above 0, got {word!r}")
        return value

    return parse
