"""Writes the reference of the command line from argparse: ``python scripts/command_line_page.py
docs/reference/command_line.md``. It needs what the commands import, torch among it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from quantsr.cli import COMMANDS, command_parser

HEAD = """# Command line

<!-- Made from argparse by `python scripts/command_line_page.py docs/reference/command_line.md`; a test compares. Do not edit. -->

`quantsr COMMAND ...`. `quantsr COMMAND --help` prints what is on this page, `quantsr --version` the version. Every command takes
`--debug`, which shows the traceback of a failure. [Exit codes](exit_codes.md) are the same for all commands. A command that needs
`-opt FILE` takes an option file without `-opt` where it is the first argument.

`sh train.sh [FILE] ...` and `sh test.sh [FILE] ...` call `quantsr train` and `quantsr test` with the option file that is named first, or
with the default one, and install what is needed on their first call.
"""


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([HEAD, *(line for name in COMMANDS for line in command(name))])


def command(name: str) -> Iterator[str]:
    """The section of one command."""
    yield f"## quantsr {name}\n\n{sentence(COMMANDS[name].help)}\n"
    yield from arguments(command_parser(name))


def arguments(parser: argparse.ArgumentParser, level: str = "###") -> Iterator[str]:
    """A table of a parser's arguments, and a section for each of its subcommands."""
    own = [action for action in parser._actions if shown(action)]
    if own:
        yield "| argument | meaning |\n|---|---|"
        for action in own:
            needed = "; **needed**" if action.option_strings and action.required else ""
            yield f"| `{escaped(invocation(action))}` | {cell(help_text(action, parser))}{needed} |"
        yield ""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, inner in action.choices.items():
                yield f"{level} {inner.prog}\n\n{sentence(helps[name] or '')}\n"
                yield from arguments(inner, level + "#")


def shown(action: argparse.Action) -> bool:
    """Whether an argument belongs on the page."""
    hidden = isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    return not hidden and action.help is not argparse.SUPPRESS and action.dest != "debug"


def invocation(action: argparse.Action) -> str:
    """How an argument is typed: ``-o, --output FILE``."""
    name = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices is not None else action.dest.upper()
    )
    single = name if isinstance(name, str) else " ".join(name)
    if action.nargs == 0:
        values = ""
    elif action.nargs == "?":
        values = f"[{single}]"
    elif action.nargs == "*":
        values = f"[{single} ...]"
    elif action.nargs == "+":
        values = f"{single} [{single} ...]"
    else:
        values = single
    return " ".join(part for part in (", ".join(action.option_strings), values) if part)


def help_text(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """The help of an argument with its placeholders filled in."""
    return (action.help or "") % {**vars(action), "prog": parser.prog}


def sentence(text: str) -> str:
    """``text`` with a capital letter and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def cell(text: str) -> str:
    """``text`` inside a table of Markdown."""
    return escaped(text).replace("<", "&lt;")


def escaped(text: str) -> str:
    """``text`` with the bars that would end a cell of a table escaped."""
    return text.replace("|", "\\|")


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        sys.stderr.write("error: give the file to write; see the head of this file\n")
        return 2
    Path(argv[0]).write_text(page().rstrip("\n") + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
