"""Files of the benchmarks: the commit, a warning for uncommitted changes, medians with spread."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest

from benchmarks import timing
from benchmarks.bench_large import summary


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of one commit with a program and a result."""
    for file in ("program.py", "benchmarks/results/a.csv"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("first\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_only_changes_of_tracked_files_outside_the_results_count(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clean = timing.commit(checkout / "benchmarks")
    assert len(clean) >= 7
    (checkout / "benchmarks/results/a.csv").write_text("second\n")
    (checkout / "notes").write_text("untracked")
    assert timing.commit(checkout / "benchmarks") == clean
    (checkout / "program.py").write_text("second\n")
    assert timing.commit(checkout / "benchmarks") == f"{clean}+"
    assert timing.commit(tmp_path_factory.mktemp("elsewhere")) == "unknown"


@pytest.mark.parametrize(("commit", "warned"), [("abc1234", False), ("abc1234+", True), ("unknown", False)])
def test_results_of_a_changed_checkout_have_a_warning(
    commit: str,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(timing, "commit", lambda: commit)
    path = timing.write_csv("a.csv", [{"row": "x", "ms": 1}, {"row": "y", "more": 2}], folder=tmp_path)
    rows = list(csv.DictReader(path.open(newline="")))
    assert [(r["row"], r["ms"], r["more"], r["commit"]) for r in rows] == [
        ("x", "1", "", commit),
        ("y", "", "2", commit),
    ]
    assert ("a.csv: measured with changes that are in no commit" in capsys.readouterr().err) == warned


def test_the_summary_of_processes_has_median_and_spread() -> None:
    runs = [{"wall_s": w, "cpu_s": 2 * w, "peak_mib": 100 + w} for w in (3.0, 1.0, 2.0)]
    assert summary(runs) == {
        "wall_s": 2.0,
        "wall_spread_s": 2.0,
        "wall_min_s": 1.0,
        "wall_max_s": 3.0,
        "cpu_s": 4.0,
        "peak_mib": 102,
        "peak_max_mib": 103,
        "runs": 3,
    }
