"""Placeholders in the paths of a comparison, ``{seed}`` and ``{run:VARIANT}``, and the order of
runs that follows from them."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quantsr.config.folders import change_paths
from quantsr.config.problems import KeyPath, Problems, did_you_mean

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_RUN = "run:"
_WRITTEN = re.compile(r"\{run:([^{}]*)\}/models/net_g_(latest|best)\.pth")
_LATEST = "{run:VARIANT}/models/net_g_latest.pth"


@dataclass(frozen=True)
class Filled:
    """The options of one run with its placeholders filled in.

    Attributes:
        options: in the layout of an option file.
        starts_from: the variants whose runs its paths name.
        awaited: the paths that those runs will write, each with its text in the file.
    """

    options: dict[str, Any]
    starts_from: list[str] = field(default_factory=list)
    awaited: dict[str, str] = field(default_factory=dict)


def fill(
    options: dict[str, Any], variant: str, seed: int, folders: Mapping[str, str], problems: Problems
) -> Filled:
    """Replace the placeholders in the paths of ``options``, in place.

    Args:
        options: of the run of ``variant`` with ``seed``.
        folders: the run folder of every variant for this seed.
        problems: receives unknown placeholders.
    """
    found = Filled(options)

    def change(key: KeyPath, text: str) -> str:
        @functools.cache
        def value(word: str) -> str:
            if word == "seed":
                return str(seed)
            other = word.removeprefix(_RUN)
            if word.startswith(_RUN) and other in folders:
                if other not in found.starts_from:
                    found.starts_from.append(other)
                return folders[other]
            remedy = did_you_mean(word, ["seed", *(f"{_RUN}{name}" for name in folders)])
            problems.add(("variants", variant, *key), f"no placeholder {{{word}}}; {remedy}")
            return f"{{{word}}}"

        result = _PLACEHOLDER.sub(lambda match: value(match[1]), text)
        if result != text and any(match.startswith(_RUN) for match in _PLACEHOLDER.findall(text)):
            found.awaited[result] = text
        return result

    change_paths(options, change)
    return found


def in_order(starts_from: Mapping[str, Sequence[str]], problems: Problems) -> list[str]:
    """The variants, each after those that it starts from, else in the given order; notes circular
    dependencies."""
    order: list[str] = []
    reported = False

    def place(name: str, chain: tuple[str, ...]) -> None:
        nonlocal reported
        if name in chain:
            if not reported:
                circle = " -> ".join((*chain[chain.index(name) :], name))
                problems.add(
                    ("variants", chain[-1]), f"starts from itself ({circle}); remove one {{run:...}}"
                )
            reported = True
            return
        for other in starts_from[name]:
            if other not in order:
                place(other, (*chain, name))
        if name not in order:
            order.append(name)

    for name in starts_from:
        place(name, ())
    return order


def check_starts(filled: Filled, validating: Collection[str], problems: Problems) -> None:
    """Note files expected from another run that no run writes.

    Args:
        filled: the run.
        validating: the variants that have a ``val`` set, and so a best network.
    """
    section = filled.options.get("path")
    for key, path in section.items() if isinstance(section, dict) else ():
        text = filled.awaited.get(path) if isinstance(path, str) else None
        if text is None:
            continue
        match = _WRITTEN.fullmatch(text)
        if match is None:
            problems.add(("path", key), f"{text!r} is not written by a run; write {_LATEST}")
        elif match[2] == "best" and match[1] not in validating:
            problems.add(("path", key), f"{text!r} is written only where there is a val set; write {_LATEST}")
