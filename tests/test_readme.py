"""What the documents tell the reader to type exists: commands, arguments, scripts, option files, keys and links."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from quantsr import cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    path
    for folder in (".", "datasets", "experiments", "docs", "options", "quantsr/zoo")
    for path in sorted((ROOT / folder).glob("*.md"))
]
DEFAULTS = {
    "train.sh": ("train", "options/train/QuantSR_C/mini_w4a4_x2.yml"),
    "test.sh": ("test", "options/test/shipped.yml"),
}


def commands(document: Path) -> Iterator[list[str]]:
    """The words of every command in the document's shell blocks, without variables in front."""
    text = document.read_text().replace("\\\n", " ")
    fenced = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^    (?:quantsr|sh|python) .*$", text, re.MULTILINE)
    for block in [*fenced, *indented]:
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                yield words


def quantsr_command(words: list[str]) -> tuple[str, list[str]] | None:
    """The quantsr command that a typed line runs, and its arguments; None for other lines."""
    if words[0] == "quantsr" or words[:3] == ["python", "-m", "quantsr"]:
        rest = words[words.index("quantsr") + 1 :]
        return rest[0], rest[1:]
    if words[0] != "sh" or words[1] not in DEFAULTS:
        return None
    (name, default), rest = DEFAULTS[words[1]], words[2:]
    if rest and rest[0].endswith(".yml"):
        rest = ["-opt", *rest]
    return name, rest if "-opt" in rest else ["-opt", default, *rest]


TYPED = [
    pytest.param(words, id=f"{path.relative_to(ROOT)}: {' '.join(words)}")
    for path in DOCUMENTS
    for words in commands(path)
]


@pytest.mark.parametrize("words", [param for param in TYPED if quantsr_command(param.values[0])])
def test_every_documented_command_is_understood(words: list[str]) -> None:
    found = quantsr_command(words)
    assert found is not None
    name, rest = found
    module = import_module(cli.COMMANDS[name].module)
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    args = parser.parse_args(rest)

    option_file = getattr(args, "opt", None)
    if option_file is not None and (ROOT / option_file).is_file():
        from quantsr.config import load_options
        from quantsr.config.compare import load_comparison

        overrides = rest[rest.index("--set") + 1 :] if "--set" in rest else []
        changes = [word for word in overrides if re.match(r"[a-z_0-9.]+=", word)]
        if name == "compare":
            load_comparison(str(ROOT / option_file), changes, check_paths=False)
            return
        load_options(ROOT / option_file, changes, is_train="/train/" in option_file, check_paths=False)


@pytest.mark.parametrize("words", TYPED)
def test_every_documented_file_of_the_checkout_exists(words: list[str]) -> None:
    for word in words:
        if re.match(r"(options|scripts|docs|tests|benchmarks)/\S*\w\.\w+$", word) or word in DEFAULTS:
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_the_checkout_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target
