"""``quantsr compare``: the runs that it trains, keeps and resumes, and the files that it writes.
Trainings are faked except in the last test."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quantsr.analysis import compare as command
from quantsr.analysis import compare_costs
from quantsr.analysis.compare_tables import Cost, Spread
from quantsr.cli import main
from quantsr.config.comparison import Run
from quantsr.engine.results import Record, read_results
from quantsr.errors import StopError, WorkError
from quantsr.trained_files import checkpoint

VALUES = {"float": {3: 32.0, 7: 33.0}, "rlq": {3: 31.0, 7: 32.5}}
"""PSNR of the faked runs by variant and seed."""


class Fake:
    """Replaces training and evaluation, and records the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: list[str] = []
        self.evaluated: list[str] = []
        self.resume_command = ""
        self.failing: dict[str, Exception] = {}
        monkeypatch.setattr(command, "_train", self.train)
        monkeypatch.setattr(command, "_evaluate", self.evaluate)
        monkeypatch.setattr(compare_costs, "_cost", lambda run, identity: Cost(identity, 1000, {2: 3.0}, {}))
        monkeypatch.setattr(
            command, "_baseline", lambda comparison: [Record("skimage", 2, "bicubic", None, "psnr", 30.0, 3)]
        )

    def train(self, run: Run, resume_command: str) -> None:
        self.trained.append(run.name)
        self.resume_command = resume_command
        if run.name in self.failing:
            raise self.failing.pop(run.name)
        assert run.training.train is not None
        for name in run.after:
            assert (Path(run.training.path.experiments_root) / name / "models" / "net_g_latest.pth").is_file()
        content = {
            "params": {"w": torch.zeros(1)},
            "quantsr": {"format_version": 1, "iteration": run.training.train.total_iter},
        }
        checkpoint.save(Path(run.training.experiment_folder) / "models" / "net_g_latest.pth", content)

    def evaluate(self, run: Run, resume_command: str) -> list[Record]:
        self.evaluated.append(run.name)
        value = VALUES.get(run.variant, {}).get(run.seed, 30.0)
        hashed = run.evaluation.config_hash()
        return [Record("skimage", 2, "Q", 2, "psnr", value, 3, config_hash=hashed, commit="abc")]

    def done(self) -> tuple[list[str], list[str]]:
        """The runs that were trained and evaluated since the last call."""
        found = (self.trained, self.evaluated)
        self.trained, self.evaluated = [], []
        return found


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


@pytest.fixture
def folder(valid: dict[str, Any]) -> Path:
    return Path(valid["experiments_root"]) / "compare_try"


Write = Callable[..., Path]
ALL = ["float_seed3", "rlq_seed3", "float_seed7", "rlq_seed7"]


def test_everything_is_trained_evaluated_and_tabled(
    fake: Fake, write: Write, valid: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "-opt", str(write(valid)), "--set", "reference=float"]) == 0
    assert fake.done() == (ALL, ALL)
    records = read_results(folder / "results.json")
    assert [(r.variant, r.seed, r.value) for r in records] == [
        (None, None, 30.0),
        ("rlq", 3, 31.0),
        ("rlq", 7, 32.5),
        ("float", 3, 32.0),
        ("float", 7, 33.0),
    ]
    assert all(record.config_hash and record.commit == "abc" for record in records[1:])
    page = (folder / "results.md").read_text()
    assert page == capsys.readouterr().out
    difference = Spread.of([31.0 - 32.0, 32.5 - 33.0])
    assert f"{difference.mean:+.3f} ± {difference.deviation:.3f}" in page
    assert "Not finished" not in page


def test_finished_runs_are_kept(fake: Fake, write: Write, valid: dict[str, Any], folder: Path) -> None:
    file = str(write(valid))
    assert main(["compare", "-opt", file]) == 0
    fake.done()
    before = (folder / "results.json").read_bytes()
    assert main(["compare", "-opt", file]) == 0
    assert fake.done() == ([], [])
    assert (folder / "results.json").read_bytes() == before


def test_an_additional_seed_trains_only_its_runs(fake: Fake, write: Write, valid: dict[str, Any]) -> None:
    assert main(["compare", "-opt", str(write(valid))]) == 0
    fake.done()
    new = ["float_seed9", "rlq_seed9"]
    assert main(["compare", "-opt", str(write({**valid, "seeds": [3, 7, 9]}))]) == 0
    assert fake.done() == (new, new)


def test_an_additional_test_set_is_evaluated_without_training(
    fake: Fake, write: Write, valid: dict[str, Any]
) -> None:
    assert main(["compare", "-opt", str(write(valid))]) == 0
    fake.done()
    valid["datasets"]["test_2"] = {"name": "again", "type": "SkimageDataset"}
    assert main(["compare", "-opt", str(write(valid))]) == 0
    assert fake.done() == ([], ALL)


def test_after_an_interruption_only_unfinished_runs_are_trained(
    fake: Fake, write: Write, valid: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failing["float_seed7"] = StopError(
        "stopped by SIGINT at iteration 2, checkpoint written; go on with: it"
    )
    file = str(write(valid))
    assert main(["compare", "-opt", file]) == 1
    assert "error: float_seed7: stopped by SIGINT at iteration 2" in capsys.readouterr().err
    assert fake.done() == (ALL[:3], ALL[:2])
    assert [r.value for r in read_results(folder / "results.json")] == [31.0, 32.0]
    assert "Not finished (2): float_seed7, rlq_seed7." in (folder / "results.md").read_text()
    assert main(["compare", "-opt", file]) == 0
    assert fake.done() == (ALL[2:], ALL[2:])


def test_a_run_that_fails_does_not_stop_those_that_do_not_depend_on_it(
    fake: Fake, write: Write, valid: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failing["float_seed3"] = WorkError("iteration 3: the loss is not finite")
    assert main(["compare", "-opt", str(write(valid))]) == 1
    assert fake.done() == (["float_seed3", "float_seed7", "rlq_seed7"], ["float_seed7", "rlq_seed7"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 4 runs failed" in error
    assert "float_seed3: iteration 3: the loss is not finite" in error
    assert "rlq_seed3: starts from float_seed3, which failed" in error
    assert len(read_results(folder / "results.json")) == 3


def test_runs_with_other_options_are_refused_or_set_aside(
    fake: Fake, write: Write, valid: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A change of ``float`` affects ``rlq`` too, which starts from it; the runs of ``more`` are
    kept."""
    valid["variants"]["more"] = {"train.ema_decay": 0.5}
    file = str(write(valid))
    assert main(["compare", "-opt", file]) == 0
    fake.done()
    words = ["compare", "-opt", file, "--set", "variants.float.train.total_iter=6"]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "made with other options: float_seed3, rlq_seed3, float_seed7, rlq_seed7; " in error
    assert "--retrain" in error
    assert fake.done() == ([], [])
    assert main([*words, "--retrain"]) == 0
    assert fake.done() == (ALL, ALL)
    assert len(list(folder.glob("*_archived_*"))) == 4


def test_a_stop_after_retraining_a_run_leaves_no_stale_dependent_run(
    fake: Fake, write: Write, valid: dict[str, Any]
) -> None:
    file = str(write(valid))
    assert main(["compare", "-opt", file]) == 0
    fake.done()
    words = ["compare", "-opt", file, "--set", "variants.float.train.total_iter=6"]
    fake.failing["rlq_seed3"] = StopError("stopped")
    assert main([*words, "--retrain"]) == 1
    fake.done()
    assert main(shlex.split(fake.resume_command)[1:]) == 0  # the command that the message names
    assert fake.done() == (
        ["rlq_seed3", "float_seed7", "rlq_seed7"],
        ["rlq_seed3", "float_seed7", "rlq_seed7"],
    )


def test_a_dry_run_trains_nothing(
    fake: Fake, write: Write, valid: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(valid))
    assert main(["compare", "-opt", file, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert [line.split(" | ")[0].strip("| ") for line in out.splitlines()[2:6]] == ALL
    assert f"4 runs, 16 iterations left; folder {folder}" in out
    assert fake.done() == ([], [])
    assert not folder.exists()
    assert main(["compare", "-opt", file, "--set", "seeds=[3]"]) == 0
    capsys.readouterr()
    assert main(["compare", "-opt", file, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("finished") == 2
    assert "4 runs, 8 iterations left" in out


def test_check_summarizes_comparisons_and_reports_their_problems(
    write: Write, valid: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(valid))
    assert main(["check", "-opt", file]) == 0
    out = capsys.readouterr().out
    for line in ("no problems", "rlq, float", "3, 7", "4 runs, 16 iterations together", "skimage"):
        assert line in out
    assert main(["check", "-opt", file, "--set", "seeds=[1, 1]", "variants.float.network_g.nbits_w=9"]) == 2
    assert "the same seed twice" in capsys.readouterr().err
    assert main(["train", "-opt", file]) == 2
    assert "is a comparison; run it with: quantsr compare" in capsys.readouterr().err


def test_damaged_results_are_evaluated_again_and_damaged_runs_refused(
    fake: Fake, write: Write, valid: dict[str, Any], folder: Path
) -> None:
    file = str(write(valid))
    assert main(["compare", "-opt", file]) == 0
    fake.done()
    (folder / "results.json").write_text("[")
    assert main(["compare", "-opt", file]) == 0
    assert fake.done() == ([], ALL)
    (folder / "runs.json").write_text("[")
    assert main(["compare", "-opt", file]) == 2


def _write_real(write: Write, valid: dict[str, Any], training: dict[str, Any]) -> Path:
    training["train"] |= {"total_iter": 40, "ema_decay": 0.9}
    training["logger"] |= {"print_freq": 1, "save_checkpoint_freq": 20}
    valid["variants"]["rlq"] |= {
        "path.pretrain_network_teacher": "{run:float}/models/net_g_latest.pth",
        "network_teacher": {**training["network_g"], "nbits_w": 32, "nbits_a": 32},
        "train.distill.output_weight": 0.5,
    }
    return write(valid, training)


@pytest.mark.integration
def test_a_real_comparison_is_resumed_after_an_interruption(
    write: Write, valid: dict[str, Any], training: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """Two variants, two seeds, on datasets/mini: SIGINT in the second run, then resumed; the
    results equal those of an uninterrupted comparison."""
    file = _write_real(write, valid, training)
    words = [sys.executable, "-m", "quantsr", "compare", "-opt", str(file)]
    set_here = ["--set", "reference=float"]
    process = subprocess.Popen([*words, *set_here], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log = folder / "rlq_seed3" / "log"
    for _ in range(1200):
        if log.is_dir() and any("iteration 3/" in path.read_text() for path in log.iterdir()):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("error: rlq_seed3: stopped by SIGINT at iteration ")
    assert last.endswith(f"go on with: quantsr compare -opt {file} --set reference=float")
    stopped = read_results(folder / "results.json")
    assert {(record.variant, record.seed) for record in stopped} == {("float", 3)}

    done = subprocess.run([*words, *set_here], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rlq_seed3: goes on at iteration" in done.stderr
    found = read_results(folder / "results.json")
    assert {(r.variant, r.seed, r.depth) for r in found if r.variant} == {
        (variant, seed, depth) for variant in ("float", "rlq") for seed in (3, 7) for depth in (2, 1)
    }
    assert [r.value for r in found if (r.variant, r.seed) == ("float", 3)] == [r.value for r in stopped]

    through = yaml.safe_load(file.read_text()) | {"experiments_root": str(tmp_path / "through")}
    file.write_text(yaml.safe_dump(through, sort_keys=False))
    assert main(["compare", "-opt", str(file), *set_here]) == 0
    again = read_results(tmp_path / "through" / "compare_try" / "results.json")
    assert [(r.variant, r.seed, r.depth, r.value) for r in again] == [
        (r.variant, r.seed, r.depth, r.value) for r in found
    ]
    assert json.loads((folder / "runs.json").read_text()).keys() == set(ALL)
