"""The workflows of GitHub Actions and what they rest on: scripts exist, with these arguments,
rights are small, the README's test command runs on every Python, and a release has notes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BY_NAME = {path.stem: path for path in WORKFLOWS}

RIGHTS = {("release", "pypi"): {"id-token": "write"}, ("release", "github"): {"contents": "write"}}
"""Jobs that may do more than read the repository: show who they are to PyPI, make a release."""

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load(path.read_text())["jobs"])


def shell_lines(path: Path) -> list[str]:
    """Every line that a step runs, those of a matrix included."""
    found = []
    for job in jobs(path).values():
        matrix = job.get("strategy", {}).get("matrix", {}).get("include", [])
        for entry in [*job.get("steps", []), *matrix]:
            found += str(entry.get("run", "")).splitlines()
    return found


def test_there_are_workflows() -> None:
    assert set(BY_NAME) >= {"docs", "gpu", "nightly", "release", "test", "wheels"}


@each_workflow
def test_scripts_and_their_arguments_exist(path: Path) -> None:
    calls = [
        match
        for line in shell_lines(path)
        for match in re.finditer(r"(?:sh|python) (scripts/\S+?\.(?:sh|py))((?: --[\w-]+)*)", line)
    ]
    assert calls
    for call in calls:
        script = ROOT / call[1]
        assert script.is_file(), call[1]
        for argument in call[2].split():
            assert argument in script.read_text(), call[0]


@each_workflow
def test_variables_are_those_of_the_scripts(path: Path) -> None:
    known = "".join(script.read_text() for script in [ROOT / "setup.py", *(ROOT / "scripts").glob("*.sh")])
    for name in set(re.findall(r"QUANTSR_[A-Z_]+", path.read_text())):
        assert name in known, name


@each_workflow
def test_jobs_are_bounded_and_may_only_read(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content["permissions"] == {"contents": "read"}
    for name, job in jobs(path).items():
        assert job.get("permissions") == RIGHTS.get((path.stem, name))
        if "uses" in job:  # another workflow of this folder, whose jobs are bounded
            assert (ROOT / job["uses"]).is_file()
            continue
        assert 0 < job["timeout-minutes"] <= 120
        assert "strategy" not in job or job["strategy"]["fail-fast"] is False


@each_workflow
def test_actions_are_of_github_and_keep_no_credentials(path: Path) -> None:
    for job in jobs(path).values():
        for step in job.get("steps", []):
            action = step.get("uses")
            assert action is None or re.fullmatch(r"actions/[\w-]+@(v\d+|[0-9a-f]{40})", action), action
            if action is not None and action.startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_the_test_command_of_the_readme_runs_on_every_python() -> None:
    job = jobs(BY_NAME["test"])["test"]
    assert "sh scripts/check.sh" in [step.get("run") for step in job["steps"]]
    assert "sh scripts/check.sh" in (ROOT / "README.md").read_text()
    wanted = re.search(r"^    (3\.[\d. |]+)\) ;;", (ROOT / "scripts" / "setup_env.sh").read_text(), re.M)
    assert wanted is not None
    assert job["strategy"]["matrix"]["python"] == wanted[1].split(" | ")


def test_a_gpu_is_used_only_when_somebody_starts_it() -> None:
    """Pull requests of strangers must not run on a machine of one's own."""
    for path in WORKFLOWS:
        content = yaml.safe_load(path.read_text())
        if "self-hosted" in path.read_text():
            assert list(content[True]) == ["workflow_dispatch"]  # YAML 1.1 reads the key `on` as true


def test_every_requirement_has_a_lowest_version() -> None:
    """`scripts/check_floors.sh` tests with them."""
    text = (ROOT / "pyproject.toml").read_text()
    for name in ("dependencies", "train"):
        block = re.search(rf"^{name} = \[(.*?)^\]", text, re.M | re.S)
        assert block is not None
        for requirement in re.findall(r'^  "([^"]*)"', block[1], re.M):
            assert re.match(r"[\w-]+[>=]=\d", requirement), requirement


def changelog_versions() -> list[str]:
    return re.findall(r"^## (\d+\.\d+\.\d+) - ", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_the_version_without_tags_is_that_of_the_newest_section() -> None:
    fallback = re.search(r'^fallback_version = "(.*)\.dev0"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert fallback is not None
    assert fallback[1] == changelog_versions()[0]


def test_notes_of_a_release() -> None:
    text = "# Changelog\n\n## 1.1.0 - unreleased\n\nx\n\n## 1.0.0 - 2026-01-31\n\n### Added\n\n- y\n\n## 0.9.0 - 2025-01-01\n"
    notes = load_script("release_notes").notes
    assert notes("v1.0.0", text) == "### Added\n\n- y\n"
    for tag, message in (("v1.1.0", "needs its date"), ("v2.0.0", "no section"), ("1.0.0", "no.*tag")):
        with pytest.raises(ValueError, match=message):
            notes(tag, text)


def test_notes_of_a_version_that_is_not_there_end_with_2() -> None:
    words = [sys.executable, str(ROOT / "scripts" / "release_notes.py"), "v99.0.0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: CHANGELOG.md: has no section for 99.0.0")
