"""Writing over devices is refused; reading never waits for a pipe, nor reads without a limit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from quantsr import files
from quantsr.cli import BAD_INPUT, main
from quantsr.config import yaml_file
from quantsr.config.yaml_file import read_yaml
from quantsr.data.images import read_rgb
from quantsr.errors import InputError, WorkError
from quantsr.files import read_text, write_bytes
from quantsr.temporary import remove_leftovers


@pytest.mark.parametrize("path", ["/dev/null", "/dev/stdout", "/dev/new", "/dev/fd/1", "/proc/self/new"])
def test_nothing_in_system_folders_is_replaced(path: str) -> None:
    """Not even by root, who may rename files there."""
    before = os.lstat(path) if os.path.lexists(path) else None
    with pytest.raises(WorkError, match="it is no regular file"):
        write_bytes(Path(path), b"x")
    assert os.path.lexists(path) == (before is not None)
    assert before is None or os.lstat(path).st_ino == before.st_ino


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(WorkError, match="it is no regular file"):
            write_bytes(tmp_path / name, b"x")
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_only_regular_files_up_to_a_limit_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("four")
    assert read_text(tmp_path / "text") == "four"
    monkeypatch.setattr(files, "MAX_TEXT", 3)
    for name, reason in (("pipe", "no regular file"), ("text", "4 bytes, more than 3"), (".", "directory")):
        with pytest.raises(OSError, match=reason):
            read_text(tmp_path / name)


def test_a_huge_picture_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with open(tmp_path / "p.png", "wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(InputError, match=r"p.png: cannot be opened \(it has 4,398,046,511,104 bytes"):
        read_rgb(tmp_path / "p.png")


def test_option_files_may_be_pipes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=("a: é\r\nb: 2\n".encode(),))
    writer.start()
    assert read_yaml(str(pipe)) == {"a": "é", "b": 2}
    writer.join()


def test_a_pipe_to_which_nothing_is_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(yaml_file, "PIPE_SECONDS", 0.05)
    os.mkfifo(tmp_path / "pipe")
    assert main(["check", "-opt", str(tmp_path / "pipe")]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "pipe: cannot be read (nothing was written to this pipe for 0.05 s)" in line


def test_leftovers_are_looked_for_in_three_levels(tmp_path: Path) -> None:
    """An output folder may be / or a home folder, below which there may be millions of files."""
    name = ".quantsr.x.tmp"
    for level in range(5):
        folder = tmp_path.joinpath(*"abcd"[:level])
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    remove_leftovers(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob(name)] == [f"a/b/c/d/{name}"]


@pytest.mark.parametrize(
    "words", [["report", "x" * 300], ["prepare", "bicubic", "x" * 300, "o"], ["report", "loop/x"]]
)
def test_impossible_names_are_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    assert main(words) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "[Errno" not in line


def test_progress_bars_are_for_terminals(tmp_path: Path, repo_root: Path) -> None:
    source = repo_root / "datasets" / "mini"
    words = ["prepare", "bicubic", str(source), str(tmp_path / "o"), "-j", "1", "--scale", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "quantsr", *words], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
