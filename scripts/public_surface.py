"""What users may rely on (docs/reference/stability.md), one entry a line:

    python scripts/public_surface.py                            # prints it
    python scripts/public_surface.py tests/public_surface.txt   # with a release

Between releases the file stays as it is: what was added or removed since is named in the
unreleased section of CHANGELOG.md, which a test checks. With a release the file is written anew,
and the changelog notes its digest, which the script prints.

An entry is some words, separated by spaces: its kind, what a line of the changelog must name and,
behind ``=``, details such as a default.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from quantsr import cli
from quantsr.config import registries
from quantsr.config.base import Section
from quantsr.config.comparison import CompareOptions
from quantsr.config.docs import default_text
from quantsr.config.queue import QueueOptions
from quantsr.config.schema import Options
from quantsr.config.wording import section_of
from quantsr.deploy.engines.names import ENGINES
from quantsr.deploy.operations import KINDS
from quantsr.engine.training_state import STATE_VERSION
from quantsr.trained_files import checkpoint, packed_header
from quantsr.trained_files.names import ZOO

PYTHON_PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "python.md"


def surface() -> list[str]:
    """All entries, sorted."""
    return sorted({*commands(), *options(), *python(), *registered(), *files()})


def commands() -> Iterator[str]:
    """Commands, their arguments, and exit codes."""
    for name in cli.COMMANDS:
        yield f"command quantsr {name}"
        yield from arguments(cli.command_parser(name))
    for name in ("DONE", "FAILED", "BAD_INPUT", "INTERRUPTED"):
        yield f"exit-code {name} = {getattr(cli, name)}"


def arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Flags and positional arguments, those of subcommands included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield f"command {inner.prog}"
                yield from arguments(inner)
        elif action.help is argparse.SUPPRESS:  # for the commands themselves
            continue
        elif action.option_strings:
            needed = " = needed" if action.required else ""
            yield from (f"flag {parser.prog} {flag}{needed}" for flag in action.option_strings)
        else:
            yield f"argument {parser.prog} {action.metavar or action.dest}"


def options() -> Iterator[str]:
    """Keys of option, comparison and queue files, with their defaults."""
    yield from keys("option", "", Options)
    yield from keys("comparison-option", "", CompareOptions)
    yield from keys("queue-option", "", QueueOptions)


def keys(kind: str, prefix: str, section: type[Section]) -> Iterator[str]:
    """The keys of a section and of those in it."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        child, many = section_of(field.annotation)
        yield f"{kind} {path} = {default_text(field) or 'none'}"
        if child is not None:
            yield from keys(kind, f"{path}.<name>." if many else f"{path}.", child)


def python() -> Iterator[str]:
    """Names on the page of the Python API, with parameters of functions and members of classes."""
    yield "python quantsr.__version__"
    for name in re.findall(r"^::: (\S+)", PYTHON_PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        found = resolve_name(name)
        if inspect.ismodule(found):
            members = [m for m in vars(found).values() if inspect.isclass(m) and m.__module__ == name]
            yield from (f"python {name}.{member.__name__}" for member in members)
        elif inspect.isclass(found):
            yield from class_entries(name, found)
        else:
            yield f"python {name}{parameters(found)}"


def class_entries(name: str, kind: type) -> Iterator[str]:
    """A class and its public members."""
    own = "__init__" in vars(kind)
    yield f"python {name}{parameters(kind.__init__) if own else ''}"
    for member in {*vars(kind), *inspect.get_annotations(kind)}:
        value = vars(kind).get(member)
        if not member.startswith("_"):
            yield f"python {name}.{member}{parameters(value) if inspect.isfunction(value) else ''}"


def parameters(function: Any) -> str:
    """Names of the parameters, without types, which may become wider."""
    names = [
        str(p).split(":")[0].split("=")[0].strip() for p in inspect.signature(function).parameters.values()
    ]
    return f" = {', '.join(name for name in names if name != 'self')}"


def registered() -> Iterator[str]:
    """Names that the package itself registers."""
    for kind, found in (
        ("network", registries.networks()),
        ("model", registries.models()),
        ("loss", registries.losses()),
        ("metric", registries.metrics()),
        ("dataset", registries.datasets()),
    ):
        own = [name for name, value in found.items() if value.__module__.startswith("quantsr.")]
        yield from (f"{kind} {name}" for name in own)
    yield from (f"quantizer {name}" for name in registries.quantizers())
    yield from (f"engine {name}" for name in ENGINES)


def files() -> Iterator[str]:
    """Versions of file formats, operations of programs, and networks that come with quantsr."""
    yield f"format packed-file = {packed_header.FORMAT_VERSION}"
    yield f"format checkpoint = {checkpoint.FORMAT_VERSION}"
    yield f"format training-state = {STATE_VERSION}"
    yield from (f"operation {name}" for name in KINDS)
    yield from (f"shipped-network {file.stem}" for file in ZOO.glob("*.safetensors"))


def digest(text: str) -> str:
    """12 digits that change with the text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def main(argv: list[str]) -> int:
    text = "\n".join(surface()) + "\n"
    if argv:
        Path(argv[0]).write_text(text, encoding="utf-8")
        sys.stderr.write(f"note in CHANGELOG.md: the public surface is `{digest(text)}`\n")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
