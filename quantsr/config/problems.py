"""Collecting every problem of an option file, each with the file it comes from, the key and the
remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from quantsr.errors import OptionsError

KeyPath = tuple[str, ...]

MAX_PROBLEMS = 100
"""Limit of reported problems for one file."""


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """A remedy for a misspelt word: the most similar candidate, or the list of candidates where
    none is similar."""
    names = sorted({str(name) for name in candidates})
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not near:  # 'Upscale' for 'upscale', 'bits_w' for 'nbits_w'
        near = [name for name in names if len(word) > 2 and (word.lower() in name.lower())][:1]
    if near:
        return f"did you mean {near[0]!r}?"
    if not names:
        return "there is nothing to choose from"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"choose from {shown}" if len(names) > 1 else f"the only choice is {shown}"


def show(value: Any) -> str:
    """A value as an option file writes it, shortened."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Problems:
    """A list of problems, without repetitions.

    Args:
        main: the option file that the command names.
        origins: for each key, the file (or ``--set``) that its value comes from.
    """

    def __init__(self, main: str, origins: dict[KeyPath, str] | None = None) -> None:
        self.main = main
        self.origins = origins if origins is not None else {}
        self.lines: dict[str, None] = {}

    def add_line(self, line: str) -> None:
        """Note a complete line, which names the file and the key of the problem.

        Raises:
            OptionsError: with all that was noted so far, once there are more than `MAX_PROBLEMS`.
        """
        self.lines.setdefault(line)
        if len(self.lines) > MAX_PROBLEMS:
            shown = list(self.lines)[:MAX_PROBLEMS]
            raise OptionsError([*shown, f"{self.main}: has more problems; correct these first"])

    def add(self, key: Iterable[str | int], problem: str) -> None:
        """Note ``problem`` ("what is wrong; what to do") of a key, given as its parts from the
        top."""
        parts = tuple(str(part) for part in key)
        where = f"{self.origin(parts)}: {'.'.join(parts)}" if parts else self.main
        self.add_line(f"{where}: {problem}")

    def origin(self, key: KeyPath) -> str:
        """The file (or flag) that gives the key; for an absent key, the file with the nearest
        section above it."""
        if key in self.origins:
            return self.origins[key]
        for length in range(len(key) - 1, 0, -1):
            source = self.origins.get(key[:length], "--")
            # a section that only the command line gives is to be completed in the file
            if not source.startswith("--"):
                return source
        return self.main

    def raise_if_any(self) -> None:
        """Raise all of them.

        Raises:
            OptionsError: there is at least one.
        """
        if self.lines:
            raise OptionsError(list(self.lines))
