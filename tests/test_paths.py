"""``~`` in paths that commands take: home folders, and one line where there is no such user."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from quantsr.cli import BAD_INPUT, DONE, main
from quantsr.errors import InputError
from quantsr.paths import expanded

NOBODY = "~no_such_user"
NETWORK = "quantsr_c_small_x3_w4a6"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a picture; the working directory is another one."""
    found, work = tmp_path / "home", tmp_path / "work"
    for folder in (found / "in", work):
        folder.mkdir(parents=True)
    pixels = np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3)
    Image.fromarray(pixels).save(found / "in" / "p.png")
    monkeypatch.setenv("HOME", str(found))
    monkeypatch.chdir(work)
    return found


def test_homes_are_expanded(home: Path) -> None:
    assert expanded("~") == home
    assert expanded("~/a/~b") == home / "a" / "~b"
    assert expanded("a/~") == Path("a/~")


def test_a_home_that_does_not_exist_is_refused_unless_a_file_has_its_name(home: Path) -> None:
    with pytest.raises(InputError, match=f"{NOBODY}/a: there is no home folder {NOBODY}; "):
        expanded(f"{NOBODY}/a")
    with pytest.raises(InputError, match="null byte"):
        expanded("~a\0/b")
    Path(NOBODY).mkdir()
    assert expanded(f"{NOBODY}/a") == Path(NOBODY, "a")


COMMANDS = {
    "bicubic": ("prepare", "bicubic", "~/in", "OUT/x", "--scale", "2", "-j", "1"),
    "bicubic input": ("prepare", "bicubic", "OUT/in", "~/o", "-j", "1"),
    "lmdb": ("prepare", "lmdb", "~/in", "OUT/x.lmdb", "-j", "1"),
    "sub-images": ("prepare", "subimages", "~/in", "~/o", "--lq-output", "OUT/x", "--size", "16", "--step", "8", "--scale", "2", "-j", "1"),
    "download": ("prepare", "download", "div2k-valid", "-o", "OUT/x"),
    "upscale": ("upscale", "~/in/p.png", "-o", "OUT/x", "--model", NETWORK),
    "upscale input": ("upscale", "OUT/in/p.png", "-o", "~/o", "--model", NETWORK),
    "upscale model": ("upscale", "~/in/p.png", "-o", "~/o", "--model", "OUT/n.safetensors"),
    "export": ("export", "-m", NETWORK, "-o", "OUT/x.safetensors", "--no-parity"),
    "report": ("report", "~/in", "-o", "OUT/x.html"),
    "report input": ("report", "OUT/in"),
    "cost": ("cost", "-m", "OUT/n.safetensors"),
    "cost options": ("cost", "-opt", "OUT/n.yml"),
    "bench": ("bench", "-m", "OUT/n.safetensors"),
    "queue": ("queue", "-opt", "queue.yml", "--budget", "1", "--out", "OUT/x"),
}  # fmt: skip
TO_HOME = ("bicubic", "upscale", "export")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_with_an_unknown_home_prints_one_line(
    home: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("queue.yml").write_text("entries: {a: {opt: x.yml}}\n")
    words = [word.replace("OUT", NOBODY) for word in COMMANDS[name]]
    assert main(words) == BAD_INPUT
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    assert name == "queue" or NOBODY in line
    assert not os.path.lexists(NOBODY)


@pytest.mark.parametrize("name", TO_HOME)
def test_a_command_writes_into_the_home(home: Path, name: str) -> None:
    assert main([word.replace("OUT", "~") for word in COMMANDS[name]]) == DONE
    assert list(home.glob("x*"))
    assert not os.path.lexists("~")


def test_folders_of_runs_in_an_unknown_home_are_a_problem(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"name": "s", "type": "SkimageDataset"}
    options = {
        "name": "n",
        "scale": 3,
        "datasets": {"test": data},
        "path": {"pretrain_network_g": NETWORK, "results_root": f"{NOBODY}/r"},
        "val": {"metrics": {"psnr": {"type": "calculate_psnr"}}},
    }
    Path("t.yml").write_text(yaml.safe_dump(options))
    for command in ("test", "check"):
        assert main([command, "-opt", "t.yml"]) == BAD_INPUT
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
        assert f"path.results_root: {NOBODY}/r: there is no home folder {NOBODY}" in line
    assert not os.path.lexists(NOBODY)
