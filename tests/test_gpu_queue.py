"""`scripts/gpu_queue.sh` with an interpreter that only logs its commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from quantsr.config.queue import load_queue

ROOT = Path(__file__).resolve().parents[1]
QUEUES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "options" / "queue").glob("*.yml"))


def run(tmp_path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The script's process, and the commands that it ran (imports fail, as if SPAN's package were
    missing)."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/log\n[ "$1" != -c ]\n')
    python.chmod(0o755)
    process = subprocess.run(
        ["sh", str(ROOT / "scripts" / "gpu_queue.sh"), *arguments],
        env={
            **os.environ,
            "PYTHON": str(python),
            "OUT": str(tmp_path / "out"),
            "STATE": str(tmp_path / "state"),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    log = tmp_path / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return process, [line for line in lines if not line.startswith("-c")]


def test_a_call_starts_from_the_state_of_the_previous_one(tmp_path: Path) -> None:
    (tmp_path / "state" / "some").mkdir(parents=True)
    (tmp_path / "state" / "queue.json").write_text("{}")
    process, commands = run(tmp_path, "500", "--queue", "mine.yml", "--last")
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "out" / "queue" / "queue.json").read_text() == "{}"
    assert (tmp_path / "out" / "queue" / "some").is_dir()
    assert len(commands) == 1
    match = re.fullmatch(
        rf"-m quantsr queue -opt mine\.yml --budget (\d+) --out {tmp_path}/out/queue --last", commands[0]
    )
    assert match is not None
    assert 440 <= int(match[1]) <= 500


def test_measurements_take_at_most_half_of_the_time(tmp_path: Path) -> None:
    process, commands = run(tmp_path, "400", "--measure")
    assert process.returncode == 0, process.stderr
    words = [command.split()[1] for command in commands]
    assert words == ["quantsr", "pytest", "benchmarks.bench_optimizer", "benchmarks.bench_train", "quantsr"]
    assert "--budget 100 " in commands[0]
    assert commands[-1].startswith("-m quantsr queue -opt options/queue/photos.yml")
    assert len(list((tmp_path / "out" / "measure").glob("*.txt"))) == 3


@pytest.mark.parametrize("arguments", [(), ("soon",), ("500", "--queue")])
def test_wrong_usage_is_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    process, commands = run(tmp_path, *arguments)
    assert process.returncode == 2
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert commands == []


@pytest.mark.parametrize("file", QUEUES)
def test_every_queue_is_valid_and_its_files_exist(file: str) -> None:
    for entry in load_queue(str(ROOT / file)).entries.values():
        assert (ROOT / entry.opt).is_file()
        for key, value in entry.set.items():
            if key.startswith("path.") and value is not None:
                assert (ROOT / value).is_file()
