"""``quantsr check``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantsr.cli import main

ROOT = Path(__file__).resolve().parents[2]
MINI = str(ROOT / "options" / "train" / "QuantSR_C" / "mini_w4a4_x2.yml")
PAPER = str(ROOT / "options" / "test" / "QuantSR_C" / "paper.yml")


def test_a_summary_of_a_training_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "-opt", MINI, "--no-paths", "--set", "train.total_iter=1000", "network_g.nbits_w=2"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"{MINI}: no problems" in out
    for line in (
        "QuantSR_C x2, 8 blocks of 32 channels",
        "2 for weights, 4 for activations (RLQ)",
        "8, 4, 2",
        "1000 iterations: 600 at full depth, then 400 at all depths",
        "skimage, 3 pictures (SkimageDataset)",
    ):
        assert line in out


@pytest.mark.parametrize(
    "text",
    [f"_base_: {MINI}", f"_base_: {PAPER}", f"name: c\nbase: {MINI}\nseeds: [1]\nvariants: {{a: {{}}}}"],
    ids=["train", "test", "comparison"],
)
def test_a_pipe_is_read_once(text: str) -> None:
    """``cat FILE | quantsr check -opt /dev/stdin``."""
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    assert main(["check", "-opt", f"/dev/fd/{read}", "--no-paths"]) == 0
    os.close(read)


def test_every_problem_on_a_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", "-opt", PAPER, "--set", "network_g.nbits_w=9"]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().split("\n")
    assert captured.out == ""
    assert all((line.startswith("error: ") and "; " in line) or "bits must be" in line for line in lines)
    assert (
        sum("does not exist" in line for line in lines) == 11
    )  # two folders of five sets, and the checkpoint
    assert sum("network_g.nbits_w: bits must be 2..8" in line for line in lines) == 1


def test_the_command_to_check_for_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-opt", PAPER, "--no-paths", "--for", "train"]) == 2
    assert "train: missing" in capsys.readouterr().err
    assert main(["check", "-opt", PAPER, "--no-paths"]) == 0
    assert "Urban100" in capsys.readouterr().out
