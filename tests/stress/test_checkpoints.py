"""Damaged checkpoints and training states: every command succeeds, or prints one line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantsr.cli import BAD_INPUT, DONE, FAILED, main
from quantsr.config import Options
from tests.engine.conftest import make_options, pictures  # noqa: F401 - fixtures
from tests.stress.conftest import Budget
from tests.stress.damage import damaged_checkpoint

pytestmark = [
    pytest.mark.stress,
    pytest.mark.filterwarnings("ignore"),
]


def one_line(capsys: pytest.CaptureFixture[str], *words: str) -> int:
    """Run a command in this process; fail unless it succeeds, or prints one line for each
    problem."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main([*words])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert code in (DONE, BAD_INPUT, FAILED)
    assert (code == DONE) == (not errors), (words, errors)
    return code


@pytest.fixture
def trained(make_options: Callable[..., Options], tmp_path: Path) -> tuple[Options, Path]:  # noqa: F811
    """Options of a finished run of two iterations, and its option file."""
    options = make_options(name="whole", **{"train.total_iter": 2, "logger.save_checkpoint_freq": 1})
    file = tmp_path / "train.yml"
    file.write_text(yaml.safe_dump(options.dump()))
    assert main(["train", "-opt", str(file)]) == DONE
    return options, file


def test_damaged_checkpoints(
    budget: Budget, trained: tuple[Options, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, file = trained
    whole = Path(options.experiment_folder) / "models" / "net_g_latest.pth"
    test = tmp_path / "test.yml"
    section: dict[str, Any] = {k: v for k, v in options.dump().items() if k not in ("train", "path")}
    picture = {"name": "v", "type": "SkimageDataset"}
    test.write_text(yaml.safe_dump({**section, "datasets": {"test": picture}, "val": {"metrics": {}}}))
    bad, out = tmp_path / "bad.pth", tmp_path / "out.safetensors"
    counts = {DONE: 0, FAILED: 0, BAD_INPUT: 0}
    for index in budget.rounds():
        damaged_checkpoint(whole, bad, budget.rng)
        commands = [
            ("export", "-m", str(bad), "-o", str(out), "--no-parity", "--head-tail-bits", "32"),
            ("check", "-opt", str(test), "--for", "test", "--set", f"path.pretrain_network_g={bad}"),
            (
                "train",
                "-opt",
                str(file),
                "--set",
                "name=start",
                "train.total_iter=1",
                f"path.pretrain_network_g={bad}",
            ),
            (
                "train",
                "-opt",
                str(file),
                "--set",
                "name=float",
                "train.total_iter=1",
                f"path.fp_pretrain_network_g={bad}",
            ),
        ]
        counts[one_line(capsys, *commands[index % len(commands)])] += 1
        out.unlink(missing_ok=True)
    print(f"exit codes: {counts}")


def test_damaged_training_states(
    budget: Budget, trained: tuple[Options, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, file = trained
    whole = Path(options.experiment_folder) / "training_states" / "1.state"
    bad = tmp_path / "bad.state"
    counts = {DONE: 0, FAILED: 0, BAD_INPUT: 0}
    for _ in budget.rounds():
        damaged_checkpoint(whole, bad, budget.rng)
        words = ("train", "-opt", str(file), "--set", "name=again", f"path.resume_state={bad}")
        counts[one_line(capsys, *words)] += 1
    print(f"exit codes: {counts}")
