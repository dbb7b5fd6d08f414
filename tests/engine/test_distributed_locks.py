"""The lock of a run folder when torchrun trains in two processes: the first process holds it for
all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantsr.config import Options
from quantsr.engine.trainer import Trainer
from quantsr.locks import LOCK_NAME, FolderLockedError, locked
from tests.conftest import ROOT

pytestmark = pytest.mark.integration

LIMIT_S = 240


def start(options: Options, folder: Path, *more: str) -> subprocess.Popen[str]:
    """Train by torchrun in two processes, with the output in ``folder/log``."""
    file = folder / f"{options.name}.yml"
    file.write_text(yaml.safe_dump(options.dump()))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "quantsr.train", "-opt", str(file), *more]
    with open(folder / "log", "w") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )


def wait_for(path: Path, process: subprocess.Popen[str], log: Path) -> None:
    end = time.monotonic() + LIMIT_S
    while not path.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the lock: closing it would release a lock of this process."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME]
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize("more", [(), ("--auto-resume",)], ids=["anew", "resumed"])
def test_two_processes_are_refused_where_another_trains(
    make_options: Any, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Both end, the folder stays as it is, and the message names the holder."""
    options = make_options(**{"train.total_iter": 2})
    Trainer(options).run()
    root = Path(options.experiment_folder)
    with locked(root):
        before = contents(root.parent)
        assert start(options, tmp_path, *more).wait(LIMIT_S) != 0
        assert contents(root.parent) == before
    log = (tmp_path / "log").read_text()
    assert f"error: {root}: in use by process {os.getpid()} on " in log
    assert log.count("error: ") >= 2  # the other process refers to the first one's message
    assert "the first process cannot use it; see its message" in log
    assert start(options, tmp_path, *more).wait(LIMIT_S) == 0, (tmp_path / "log").read_text()


def test_the_lock_of_two_processes_ends_with_the_first(make_options: Any, tmp_path: Path) -> None:
    """While they train, others are refused; after SIGKILL of the first process, the second ends,
    and the run is resumed from the last checkpoint."""
    options = make_options(**{"train.total_iter": 100_000, "logger.save_checkpoint_freq": 2})
    root = Path(options.experiment_folder)
    process = start(options, tmp_path)
    try:
        wait_for(root / "training_states" / "4.state", process, tmp_path / "log")
        first = int((root / LOCK_NAME).read_text().split()[0])
        with pytest.raises(FolderLockedError, match=f"in use by process {first} on "):
            Trainer(options, auto_resume=True).run()
        assert first != process.pid
        os.kill(first, signal.SIGKILL)
        assert process.wait(LIMIT_S) != 0
    finally:
        process.kill()
        process.wait()
    done = max(int(path.stem) for path in (root / "training_states").glob("*.state"))
    Trainer(make_options(**{"train.total_iter": done + 2}), auto_resume=True).run()
    assert (root / "training_states" / f"{done + 2}.state").exists()
    assert not (root / LOCK_NAME).exists()
    assert not list(root.parent.glob("*_archived_*"))
