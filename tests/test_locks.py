"""One process at a time in a folder; the lock ends with its process; file systems without locks
are only warned about."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantsr import locks
from quantsr.locks import LOCK_NAME, FolderLockedError, locked
from quantsr.temporary import remove_leftovers

HOLD = "import sys, pathlib, quantsr.locks as l\nwith l.locked(pathlib.Path(sys.argv[1])): {} print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Any]:
    """A function that starts a process that locks ``tmp_path / "run"``."""
    started = []

    def start(first: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD.format(first), str(tmp_path / "run")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_with_host_and_process(holder: Any, tmp_path: Path) -> None:
    process = holder()
    with pytest.raises(FolderLockedError) as caught, locked(tmp_path / "run"):
        pass
    assert f"run: in use by process {process.pid} on {socket.gethostname()}; " in str(caught.value)
    process.communicate("")  # ends normally
    assert list((tmp_path / "run").iterdir()) == []
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_NAME).exists()


def test_the_lock_ends_with_its_process(holder: Any, tmp_path: Path) -> None:
    """Also while a forked process still runs, as loader processes do for some seconds."""
    process = holder("import os, time; pid = os.fork(); pid or os.close(1) or time.sleep(3) or os._exit(0);")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(tmp_path / "run"):
        pass


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(FolderLockedError, match="which is this one"), locked(tmp_path):
            pass
        with pytest.raises(FolderLockedError), locked(tmp_path / ".." / tmp_path.name):
            pass
    with locked(tmp_path):
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    (tmp_path / LOCK_NAME).symlink_to("mine.txt")
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path):
        pass
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_a_folder_that_is_renamed_keeps_its_lock(holder: Any, tmp_path: Path) -> None:
    holder()
    (tmp_path / "run").rename(tmp_path / "moved")
    with locked(tmp_path / "run"), pytest.raises(FolderLockedError), locked(tmp_path / "moved"):
        pass


def test_a_file_system_without_locks_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", fail)
    with locked(tmp_path):
        pass
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: this file system has no locks (No locks available); start no second run of this name"
    )


def test_leftovers_are_removed_but_no_file_that_is_being_written(tmp_path: Path) -> None:
    for name in (".quantsr.a.tmp", "models/.quantsr.b.tmp", "other/.quantsr.c.tmp", "models/net.pth"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "other" / "options.yml").touch()  # another run
    write = (
        "import sys, pathlib, quantsr.files as a\n"
        "with a.replacing(pathlib.Path(sys.argv[1])) as f: print('open', flush=True); sys.stdin.read(); f.write(b'x')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", write, str(tmp_path / "models" / "new.pth")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        remove_leftovers(tmp_path)
        process.communicate("")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == ["models/net.pth", "models/new.pth", "other/.quantsr.c.tmp", "other/options.yml"]
    assert os.listdir(tmp_path / "models")
