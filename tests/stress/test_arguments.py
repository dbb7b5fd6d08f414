"""Hostile arguments: names of every kind, and every kind of file in the place of another. Each
command succeeds, or prints one line for each problem, and neither hangs nor damages the files
given."""

from __future__ import annotations

import os
import random
import socket
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from quantsr.cli import BAD_INPUT, DONE, FAILED, main
from quantsr.config import yaml_file
from quantsr.deploy.packed import packing
from quantsr.deploy.stand_ins.convolutional import random_model
from tests.stress.conftest import Budget
from tests.stress.test_pictures import no_hang

pytestmark = [pytest.mark.stress, pytest.mark.filterwarnings("ignore")]

NAMES = (
    *("", " ", ".", "-", "--", "-x", "~", "~no_such_user/x", "*", "[", "**/*", "a\nb", "a\rb", "\x1b[31mred", "\x7f"),
    *("\udce9\udcff", "\u2028", "\u202e", "😀", "é" * 120, "é" * 200, "a" * 255, "a" * 256, "x/" * 3000, "a" * 70000),
    *("$(touch pwned)", "`touch pwned`", "; touch pwned", "%s%n", "{0}", "{}", "x=y", "#", "&", "'", '"', "\\", "a:b"),
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/proc/self/mem", "/proc/self/fd/999", "/proc/1/x"),
)  # fmt: skip
ENDINGS = (
    "",
    "",
    ".yml",
    ".safetensors",
    ".pth",
    ".png",
    ".json",
    ".html",
    ".onnx",
    ".xml",
    ".lmdb",
    "/",
    "/x",
)
NUMBERS = (
    "",
    "0",
    "-1",
    "1",
    "2",
    "1e9",
    "nan",
    "9" * 400,
    "٣",
    "²",
    "0x10",
    "1x",
    "1x1",
    "0x0",
    "1 x 1",
    "99999x99999",
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
# NETWORK, RUN, OPTIONS, COMPARE, TEST and QUEUE are files that exist; ANY is hostile; OUT is
# written to.
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("cost", "-m", "ANY"),
    ("cost", "-m", "ANY", "--program"),
    ("cost", "-m", "NETWORK", "--size", "NUMBER"),
    ("cost", "-opt", "ANY"),
    ("report", "ANY", "-o", "out/a.html"),
    ("report", "RUN", "ANY", "-o", "out/a.html"),
    ("report", "RUN", "-o", "OUT"),
    ("report", "RUN", "-o", "out/a.html", "--title", "ANY"),
    ("report", "RUN", "-o", "out/a.html", "--pictures", "NUMBER", "--crop", "NUMBER"),
    ("compare", "--dry-run", "-opt", "ANY"),
    ("compare", "--dry-run", "-opt", "COMPARE", "--set", "KEY=ANY"),
    ("compare", "--dry-run", "-opt", "COMPARE", "--set", "ANY"),
    ("check", "-opt", "ANY"),
    ("check", "-opt", "COMPARE", "--force_yml", "ANY"),
    ("check", "-opt", "OPTIONS", "--set", "KEY=ANY"),
    ("check", "-opt", "OPTIONS", "--for", "ANY"),
    ("check", "-opt", "OPTIONS", "--import", "ANY.py"),
    ("test", "-opt", "ANY"),
    ("test", "-opt", "TEST", "--set", "path.pretrain_network_g=ANY"),
    ("test", "-opt", "TEST", "--set", "datasets.test.dataroot_gt=ANY"),
    ("test", "-opt", "TEST", "--set", "datasets.test.meta_info_file=ANY", "datasets.test.type=PairedImageDataset", "datasets.test.dataroot_gt=good"),
    ("train", "-opt", "ANY"),
    ("queue", "-opt", "ANY", "--budget", "1"),
    ("queue", "-opt", "QUEUE", "--budget", "NUMBER", "--out", "OUT"),
    ("bench", "-m", "ANY", "--runs", "1"),
    ("quantize", "-m", "ANY", "-o", "OUT", "--data", "good"),
    ("upscale", "ANY", "-o", "out/a", "--model", "NETWORK"),
    ("upscale", "good", "-o", "out/a", "--model", "ANY"),
    ("upscale", "good/a.png", "-o", "OUT", "--model", "NETWORK"),
    ("upscale", "good/a.png", "-o", "OUT", "--model", "NETWORK", "--force"),
    ("export", "-m", "ANY", "-o", "out/a.safetensors", "--no-parity"),
    ("export", "-m", "NETWORK", "-o", "OUT", "--no-parity"),
    ("export", "-m", "NETWORK", "-o", "out/a.onnx", "--data", "ANY"),
    ("export", "-m", "NETWORK", "-o", "out/a.xml", "--depth", "NUMBER", "--no-parity"),
    ("prepare", "bicubic", "ANY", "out/a", "-j", "1"),
    ("prepare", "bicubic", "good", "OUT", "-j", "1"),
    ("prepare", "subimages", "good", "out/a", "--lq", "ANY", "--lq-output", "OUT", "--size", "8", "--step", "8", "-j", "1"),
    ("prepare", "subimages", "good", "out/a", "--filename-tmpl", "ANY", "--size", "NUMBER", "-j", "1"),
    ("prepare", "lmdb", "ANY", "out/a.lmdb", "-j", "1"),
    ("prepare", "lmdb", "good", "OUT", "-j", "1", "--force"),
    ("prepare", "lmdb", "good", "out/a.lmdb", "--strip", "ANY", "-j", "1", "--force"),
    ("ANY",),
    ("cost", "ANY", "ANY"),
)  # fmt: skip
KEYS = (
    "name",
    "path.results_root",
    "path.experiments_root",
    "experiments_root",
    "datasets.test.dataroot_gt",
    "val.suffix",
    "scale",
    "a.b",
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with valid and strange files, and sockets, pipes and loops of links."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(yaml_file, "PIPE_SECONDS", 0.02)
    for name in ("home", "good", "empty", "run/tb_logger", "strange", "odd_run"):
        Path(name).mkdir(parents=True)
    pixels = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    for name in ("a", "b"):
        Image.fromarray(pixels).save(f"good/{name}.png")
    packing.save(random_model(num_feat=16, num_block=1, scale=2, depths=(1,)), Path("network.safetensors"))
    data = {"name": "d", "type": "SkimageDataset"}
    test: dict[str, Any] = {
        "name": "t",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {"test": data},
        "path": {"pretrain_network_g": "network.safetensors"},
    }
    Path("test.yml").write_text(yaml.safe_dump({**test, "val": {"metrics": {}}}))
    base: dict[str, Any] = {
        **{key: test[key] for key in ("scale", "num_gpu")},
        "network_g": {"type": "QuantSR_C", "num_feat": 8, "num_block": 1, "upscale": 2},
        "datasets": {"train": {"name": "d", "type": "CroppedImageDataset", "dataroot_gt": "good", "gt_size": 16, "batch_size_per_gpu": 1}, "val": data},
        "train": {"total_iter": 1, "optim_g": {"type": "Adam", "lr": 0.001}, "scheduler": {"type": "CosineAnnealingRestartLR"}},
        "val": {"metrics": {"psnr": {"type": "calculate_psnr"}}},
    }  # fmt: skip
    Path("options.yml").write_text(yaml.safe_dump({"name": "n", **base}))
    Path("compare.yml").write_text(
        yaml.safe_dump({"name": "c", "base": base, "seeds": [1], "variants": {"v": {}}})
    )
    Path("queue.yml").write_text("entries: {a: {opt: nowhere.yml}}\n")
    Path("run/results.json").write_text("[]")
    strange_files(Path("strange"))
    kinds = sorted(path.name for path in Path("strange").iterdir())
    for number, kind in enumerate(kinds):  # runs whose files are strange
        for name in ("results.json", "options.yml", "models", "tb_logger", "runs.json"):
            run = Path(f"odd_run/{number}_{name.partition('.')[0]}")
            run.mkdir()
            (run / "results.json").write_text("[]")
            (run / name).unlink(missing_ok=True)
            (run / name).symlink_to(Path("strange", kind).absolute())
    return tmp_path


def strange_files(folder: Path) -> None:
    """One of every kind of file that is not what a command looks for."""
    (folder / "empty").touch()
    (folder / "zeros").write_bytes(bytes(100_000))
    (folder / "binary").write_bytes(random.Random(0).randbytes(5000))
    (folder / "deep").write_text("[" * 100_000)
    (folder / "latin").write_bytes("name: é".encode("latin-1"))
    with open(folder / "sparse", "wb") as file:
        file.truncate(1 << 42)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket"))
    for name, target in (
        ("loop", "loop"),
        ("dangling", "nowhere"),
        ("device", "/dev/zero"),
        ("memory", "/proc/self/mem"),
        ("folder", "../good"),
    ):
        (folder / name).symlink_to(target)


def hostile(rng: random.Random) -> str:
    """A name, or the path of a file of some kind."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(NAMES) + rng.choice(ENDINGS)
    if kind < 0.75:
        return f"strange/{rng.choice(os.listdir('strange'))}"
    if kind < 0.85:
        return f"odd_run/{rng.choice(os.listdir('odd_run'))}"
    return rng.choice(
        ("good", "empty", "run", "network.safetensors", "options.yml", "good/a.png", "good/a.png/x")
    )


def output(rng: random.Random) -> str:
    """A place to write to. Those in /dev and /proc must be refused, even for root."""
    name = hostile(rng) if rng.random() < 0.7 else f"out/{rng.choice(NAMES).strip('/')}{rng.choice(ENDINGS)}"
    if name.startswith("/") and name not in DEVICES:
        return "out/x"  # nothing outside the test's folder is written
    return name if not name.startswith(("good", "network", "options", "run", "..")) else f"out/{name}"


def words_of(template: tuple[str, ...], rng: random.Random) -> list[str]:
    values = {
        "NETWORK": "network.safetensors",
        "RUN": "run",
        "OPTIONS": "options.yml",
        "COMPARE": "compare.yml",
        "TEST": "test.yml",
        "QUEUE": "queue.yml",
    }
    found = []
    for word in template:
        word = values.get(word, word).replace("KEY", rng.choice(KEYS))
        word = output(rng) if word == "OUT" else word
        found.append(word.replace("ANY", hostile(rng)).replace("NUMBER", rng.choice(NUMBERS)))
    return found


def call(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command in this process; its exit code, and a description of what is wrong with it."""
    code = -1
    try:
        with no_hang():
            code = main(words)
    except SystemExit as stop:  # of argparse
        code = int(stop.code or 0)
    except BaseException as error:
        capsys.readouterr()
        place = traceback.extract_tb(error.__traceback__)[-1]
        return code, f"{type(error).__name__} in {place.filename}:{place.lineno}: {str(error)[:200]}"
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    if code not in (DONE, FAILED, BAD_INPUT):
        return code, f"exit code {code}"
    # `upscale` prints the failures of single pictures to standard output
    if (code == DONE) != (not errors) and "error: " not in captured.out:
        return code, f"exit code {code} with {len(errors)} errors"
    if any(character in captured.err for character in "\x1b\x7f\r\u2028"):
        return code, f"control characters in {captured.err[:300]!r}"
    if any(line.startswith("error: [Errno") for line in errors):
        return code, f"no remedy in {errors[0][:300]}"
    return code, ""


def test_hostile_arguments(budget: Budget, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watched = [
        Path(name) for name in ("good/a.png", "good/b.png", "network.safetensors", "options.yml", "test.yml")
    ]
    before = [path.read_bytes() for path in watched]
    devices = [os.lstat(path) for path in DEVICES]
    codes: Counter[int] = Counter()
    faults: list[str] = []
    for _ in budget.rounds():
        words = words_of(budget.rng.choice(COMMANDS), budget.rng)
        code, fault = call(words, capsys)
        codes[code] += 1
        if fault:
            faults.append(f"{' '.join(word[:200] for word in words)!r}: {fault}")
    print(f"exit codes: {dict(codes)}")
    assert not faults, f"{len(faults)} of {budget.count}, seed {budget.seed}:\n" + "\n".join(faults[:40])
    assert [path.read_bytes() for path in watched] == before
    assert [os.lstat(path).st_mode for path in DEVICES] == [status.st_mode for status in devices]
    assert not list(place.rglob("pwned"))
    assert not list(place.rglob(".quantsr.*.tmp"))
