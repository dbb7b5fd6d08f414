"""Code of the Markdown pages: fenced blocks with their marks, and the commands in them.

A mark is a comment on the line before a block:

- ``<!-- not run: REASON -->`` - no test runs it,
- ``<!-- file: NAME -->`` - the reader saves it under this name, as later commands expect.

``<!-- not run on this page: REASON -->`` on a line of its own is the first mark for a whole page.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    path
    for pattern in (
        "*.md",
        "datasets/*.md",
        "experiments/*.md",
        "docs/**/*.md",
        "options/*.md",
        "quantsr/zoo/*.md",
    )
    for path in sorted(ROOT.glob(pattern))
]
DEFAULTS = {
    "train.sh": ("train", "options/train/QuantSR_C/mini_w4a4_x2.yml"),
    "test.sh": ("test", "options/test/shipped.yml"),
}
_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>not run|file): (?P<text>.*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
_INDENTED = re.compile(r"^    (?:quantsr|sh|python) .*$", re.MULTILINE)
_WHOLE_PAGE = re.compile(r"^<!-- not run on this page: (\S.*?) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Snippet:
    """A block of code on a page."""

    language: str
    code: str
    file: str = ""
    """The name under which the reader saves it."""
    reason: str = ""
    """Why it is not run."""


def snippets(text: str) -> list[Snippet]:
    """The blocks of a page in their order; indented commands come last, as one block."""
    whole = _WHOLE_PAGE.search(text)
    reason = whole[1] if whole else ""
    found = [
        Snippet(
            match["language"],
            match["code"],
            file=match["text"] if match["mark"] == "file" else "",
            reason=match["text"] if match["mark"] == "not run" else reason,
        )
        for match in _FENCE.finditer(text)
    ]
    rest = _FENCE.sub("", text).replace("\\\n", " ")
    if lines := _INDENTED.findall(rest):
        found.append(Snippet("sh", "\n".join(line.strip() for line in lines), reason=reason))
    return found


def commands(code: str) -> list[list[str]]:
    """The words of every command of a shell block, without leading variables."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def quantsr_command(words: list[str]) -> tuple[str, list[str]] | None:
    """The quantsr command that a typed line runs, and its arguments; None for other lines, such as
    `quantsr --version`."""
    if words[0] == "quantsr" or words[:3] == ["python", "-m", "quantsr"]:
        rest = words[words.index("quantsr") + 1 :]
        return None if rest[0].startswith("-") else (rest[0], rest[1:])
    if words[0] != "sh" or words[1] not in DEFAULTS:
        return None
    (name, default), rest = DEFAULTS[words[1]], words[2:]
    if rest and rest[0].endswith(".yml"):
        rest = ["-opt", *rest]
    return name, rest if "-opt" in rest else ["-opt", default, *rest]


def keep_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget at the end of a test what the files of the pages have registered."""
    from quantsr import basicsr_compat, discovery
    from quantsr.config import registries

    for names in (registries.networks, registries.losses, registries.metrics):
        names()  # files of the package register theirs once only
    for kind in ("ARCH", "LOSS", "METRIC"):
        registry = getattr(basicsr_compat, f"{kind}_REGISTRY")
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))
    monkeypatch.setattr(discovery, "_imported", set(discovery._imported))
