"""Bad option files: each loads, or has one line for each problem, within seconds."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantsr.config import load_options
from quantsr.config.compare import load_comparison
from quantsr.errors import OptionsError
from tests.conftest import ROOT
from tests.stress.conftest import Budget
from tests.stress.damage import flip_bytes

pytestmark = pytest.mark.stress

PATIENCE = 30
"""Seconds after which a file counts as one that hangs."""
WORDS: list[Any] = [
    *(None, True, -1, 0, 2.5, 1e400, 10**40, "", "x", "{}", "~", "null", "[", "a: b", "\\0", "é" * 300),
    *(
        [],
        [None],
        ["a", 1],
        {},
        {"a": {}},
        {"type": "QuantSR_C"},
        {"type": 5},
        [[[[]]]],
        "_base_",
        "../../x.yml",
    ),
    *("{run:x}", "{seed}" * 50, "$HOME/x", "~nobody/x", "/dev/null", "\\ud800", "options/"),
]


def option_files(root: Path = ROOT) -> list[Path]:
    """The option files of the project, or of a copy of it."""
    return sorted((root / "options").rglob("*.yml"))


def keys_everywhere() -> list[str]:
    """Every key in these files."""
    found: set[str] = set()

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            found.update(map(str, value))
            for inner in value.values():
                collect(inner)

    for path in option_files():
        collect(yaml.safe_load(path.read_text()))
    return sorted(found)


def change_entry(value: Any, keys: list[str], rng: random.Random) -> None:
    """Change one entry of nested sections, in place."""
    while isinstance(value, dict) and value:
        key = rng.choice(list(value))
        if isinstance(value[key], dict) and value[key] and rng.random() < 0.8:
            value = value[key]
            continue
        kind = rng.randrange(5)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[rng.choice(keys)] = value.pop(key)
        elif kind == 2:
            value[rng.choice([*keys, "", "x", "a.b"])] = rng.choice(WORDS)
        elif kind == 3 and isinstance(value[key], list):
            value[key] = [*value[key], rng.choice(WORDS)] * rng.choice((1, 2, 50))
        else:
            value[key] = rng.choice(WORDS)
        return


def bad_text(path: Path, keys: list[str], rng: random.Random) -> bytes:
    """A damaged option file: with damaged text, or changed options."""
    content = path.read_bytes()
    if rng.random() < 0.4:
        return flip_bytes(content, rng)
    options = yaml.safe_load(content)
    for _ in range(rng.choice((1, 2, 4))):
        change_entry(options, keys, rng)
    text = yaml.safe_dump(options, allow_unicode=True, sort_keys=False)
    if rng.random() < 0.1:
        lines = text.splitlines()
        text = "\n".join(lines + rng.choices(lines, k=rng.choice((1, 5, 3000))))
    return text.encode("utf-8", "surrogatepass")


def test_bad_option_files(budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # inherited files are relative to the folder of a file
    shutil.copytree(ROOT / "options", tmp_path / "options")
    files, keys = option_files(tmp_path), keys_everywhere()
    valid, errors = 0, []
    for _ in budget.rounds():
        source = budget.rng.choice(files)
        bad = source.with_name("bad.yml")
        bad.write_bytes(text := bad_text(source, keys, budget.rng))
        how = {"check_paths": budget.rng.random() < 0.5}
        begin = time.monotonic()
        try:
            if source.parent.name == "compare":
                load_comparison(str(bad), **how)
            else:
                load_options(str(bad), is_train="test" not in source.parts, **how)
            valid += 1
        except OptionsError as error:
            errors.append(error.problems)
        assert time.monotonic() - begin < PATIENCE, (source, text)
        bad.unlink()
    assert all(problems and not any("\n" in line for line in problems) for problems in errors)
    print(f"{valid} valid, {len(errors)} with problems")
