"""The expected failures, which the command line prints as one line each instead of a traceback."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


class InputError(Exception):
    """Bad usage, options or input (exit code 2). The message names the file or key and the
    remedy."""


class OptionsError(InputError):
    """Every problem found in an option file, at once.

    Attributes:
        problems: one line each, ``FILE: key: problem; remedy``.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class WorkError(Exception):
    """The input was valid but the work failed (exit code 1)."""


class StopError(WorkError):
    """Stopped by a signal; the work done so far is kept, and the message names the command to
    resume."""


def one_line(text: str) -> str:
    """``text`` as one line for any terminal: control characters, and bytes of file names that are
    not UTF-8, are written as escapes."""
    return "".join(_escaped(c) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, decoded with "surrogateescape"
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
