"""The command line: ``quantsr COMMAND ...``.

Each command is a module with ``add_arguments(parser)`` and ``run(args) -> int``, imported only when
it is chosen: upscaling never loads torch, and a missing package is reported with the command to
install it. Exit codes: 0 done, 1 the work failed, 2 bad usage, options or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from quantsr import cpu, terminal, version
from quantsr.errors import InputError, OptionsError, WorkError, one_line

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

# Reasons for which a path that the user gave cannot even be looked at.
_OF_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)

# Packages of the extra [train]; every other third-party package is a base dependency.
TRAIN_PACKAGES = frozenset(
    {
        "basicsr",
        "lmdb",
        "matplotlib",
        "onnxruntime",
        "pydantic",
        "skimage",
        "tensorboard",
        "torch",
        "torchvision",
        "yaml",
    }
)


@dataclass(frozen=True)
class Command:
    """One subcommand: the module that implements it and its line in ``quantsr --help``."""

    module: str
    help: str


COMMANDS = {
    "train": Command("quantsr.commands.train", "train a network from an option file"),
    "test": Command("quantsr.commands.test", "evaluate a network: PSNR and SSIM at every depth on every set"),
    "compare": Command(
        "quantsr.commands.compare",
        "train variants with several seeds, and table mean, spread and differences",
    ),
    "queue": Command(
        "quantsr.commands.queue", "train one network after the other in leased time, call by call"
    ),
    "report": Command(
        "quantsr.commands.report", "tables, pictures and curves of several runs in one HTML file"
    ),
    "check": Command("quantsr.commands.check", "report every problem of an option file without running it"),
    "prepare": Command("quantsr.commands.prepare", "prepare data sets: bicubic pictures, sub-images, LMDB"),
    "upscale": Command("quantsr.commands.upscale", "upscale pictures"),
    "demo": Command("quantsr.commands.demo", "open a page to drop pictures on, beside bicubic interpolation"),
    "export": Command(
        "quantsr.commands.export", "convert a checkpoint to a packed file, ONNX, OpenVINO or ncnn"
    ),
    "quantize": Command(
        "quantsr.commands.quantize", "quantize a trained float network in minutes, without training it"
    ),
    "targets": Command(
        "quantsr.commands.targets", "write a network's outputs for a training set, to learn from"
    ),
    "bench": Command("quantsr.commands.bench", "measure the speed of a network on this machine"),
    "cost": Command("quantsr.commands.cost", "count parameters, bytes, MACs and BitOPs"),
}


class _Parser(argparse.ArgumentParser):
    """Reports bad usage in one line, like all expected failures."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"error: {self.prog}: {message}; see '{self.prog} --help'\n")


class _Version(argparse.Action):
    """``--version``; a class, so that engines are looked for only where it is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from quantsr.deploy.engines.names import installed

        commit = version.commit()
        print(f"quantsr {version.version()}" + (f" (commit {commit})" if commit else ""))
        print(f"engines: {', '.join(installed())}")
        parser.exit(DONE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments after ``quantsr``; those of the process where None.

    Raises:
        SystemExit: for ``--help``, ``--version`` (0) and bad usage (2), as argparse does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    terminal.prepare_streams()
    top = _top_parser()
    args = top.parse_args(words)
    if args.command is None:
        top.print_help(sys.stderr)
        return BAD_INPUT
    if args.command not in COMMANDS:
        top.error(f"unknown command {args.command!r}; the commands are {', '.join(COMMANDS)}")

    debug = args.debug or "--debug" in args.rest
    _set_up_logging(debug)
    cpu.share_cores()
    try:
        return _run(args.command, args.rest)
    except (InputError, WorkError, ImportError, OSError, KeyboardInterrupt) as error:
        if debug:
            raise
        return _report(error, args.command)


def _top_parser() -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:<9} {command.help}" for name, command in COMMANDS.items())
    parser = _Parser(
        prog="quantsr",
        description="Train, compare and ship low-bit super-resolution networks.",
        epilog=f"commands:\n{listing}\n\n'quantsr COMMAND --help' explains one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show version, commit, engines and instruction set"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of those below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="the command's own arguments")
    return parser


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command's own arguments; imports the command's module."""
    parser = _Parser(prog=f"quantsr {name}", description=COMMANDS[name].help.capitalize() + ".")
    import_module(COMMANDS[name].module).add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def _run(name: str, words: list[str]) -> int:
    module, parser = import_module(COMMANDS[name].module), command_parser(name)
    option_file = parser._option_string_actions.get("-opt")
    if option_file is not None and option_file.required and words and words[0].endswith((".yml", ".yaml")):
        words = ["-opt", *words]  # as train.sh and test.sh take it
    code = module.run(parser.parse_args(words))
    if sys.stdout is not None:
        sys.stdout.flush()  # raises for a closed pipe, here where it is caught
    return int(code)


def _report(error: BaseException, command: str) -> int:
    """Print an expected failure as one line (one per problem of an option file) and return its exit
    code."""
    terminal.flush_output()
    if isinstance(error, KeyboardInterrupt):
        return _print_error("interrupted", INTERRUPTED)
    if isinstance(error, BrokenPipeError):  # the reader (`| head`) has closed the pipe
        return DONE
    if isinstance(error, OptionsError):
        for problem in error.problems:
            _print_error(problem, BAD_INPUT)
        return BAD_INPUT
    if isinstance(error, InputError):
        return _print_error(str(error), BAD_INPUT)
    if isinstance(error, ImportError):
        return _print_error(_missing_package(error, command), BAD_INPUT)
    if isinstance(error, OSError) and error.errno in _OF_PATHS and error.filename is not None:
        path = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        return _print_error(f"{path}: {error.strerror}; correct the path, or its permissions", BAD_INPUT)
    return _print_error(str(error), FAILED)


def _print_error(message: str, code: int) -> int:
    try:
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    except OSError:  # standard error is closed; the exit code remains
        terminal.discard(sys.stderr)
    return code


def _missing_package(error: ImportError, command: str) -> str:
    """The error message that names the package that a command needs and how to install it.

    Raises:
        ImportError: ``error`` itself where no installation helps.
    """
    package = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package in TRAIN_PACKAGES:
        line = f"'quantsr {command}' needs {package}; install it with: pip install \"quantsr[train]\""
        return (
            line
            if sys.version_info < (3, 13)
            else f"{line} on Python 3.10-3.12 (basicsr cannot be built on newer ones)"
        )
    # opencv-python on a machine without a desktop
    if "libGL" in str(error) or "libgthread" in str(error):
        return f"OpenCV: {error}; fix it with: pip install --force-reinstall --no-deps opencv-python-headless"
    if isinstance(error, ModuleNotFoundError) and package and package != "quantsr":
        return f"'quantsr {command}' needs {package}; install it with: pip install --upgrade quantsr"
    raise error


def _set_up_logging(debug: bool) -> None:
    """Log to stderr: the project's own messages from INFO (DEBUG with ``--debug``) on, those of
    other packages from WARNING on."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("quantsr").setLevel(logging.DEBUG if debug else logging.INFO)
