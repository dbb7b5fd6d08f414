"""The workflows of GitHub Actions: the scripts that they name exist, with these arguments, and the
README's test command runs on every supported Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load(path.read_text())["jobs"].values())


def shell_lines(path: Path) -> list[str]:
    """Every line that a step runs, those of a matrix included."""
    found = []
    for job in jobs(path):
        matrix = job.get("strategy", {}).get("matrix", {}).get("include", [])
        for entry in [*job["steps"], *matrix]:
            found += str(entry.get("run", "")).splitlines()
    return found


def test_there_are_workflows() -> None:
    assert {path.stem for path in WORKFLOWS} >= {"docs", "nightly", "test"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_scripts_and_their_arguments_exist(path: Path) -> None:
    calls = [
        match
        for line in shell_lines(path)
        for match in re.finditer(r"sh (scripts/\S+?\.sh)((?: --\w+)*)", line)
    ]
    assert calls
    for call in calls:
        script = ROOT / call[1]
        assert script.is_file(), call[1]
        for argument in call[2].split():
            assert argument in script.read_text(), call[0]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_variables_are_those_of_the_scripts(path: Path) -> None:
    known = "".join(script.read_text() for script in (ROOT / "scripts").glob("*.sh"))
    for name in set(re.findall(r"QUANTSR_[A-Z_]+", path.read_text())):
        assert name in known, name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_are_bounded_and_may_only_read(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content["permissions"] == {"contents": "read"}
    for job in jobs(path):
        assert 0 < job["timeout-minutes"] <= 120
        assert job["strategy"]["fail-fast"] is False


def test_the_test_command_of_the_readme_runs_on_every_python() -> None:
    (job,) = jobs(ROOT / ".github" / "workflows" / "test.yml")
    assert "sh scripts/check.sh" in shell_lines(ROOT / ".github" / "workflows" / "test.yml")
    assert "sh scripts/check.sh" in (ROOT / "README.md").read_text()
    wanted = re.search(r"^    (3\.[\d. |]+)\) ;;", (ROOT / "scripts" / "setup_env.sh").read_text(), re.M)
    assert wanted is not None
    assert job["strategy"]["matrix"]["python"] == wanted[1].split(" | ")


def test_every_requirement_has_a_lowest_version() -> None:
    """`scripts/check_floors.sh` tests with them."""
    text = (ROOT / "pyproject.toml").read_text()
    for name in ("dependencies", "train"):
        block = re.search(rf"^{name} = \[(.*?)^\]", text, re.M | re.S)
        assert block is not None
        for requirement in re.findall(r'^  "([^"]*)"', block[1], re.M):
            assert re.match(r"[\w-]+[>=]=\d", requirement), requirement
