"""SIGKILL at random moments: no incomplete file has a final name, and repeating the command
completes the work."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from quantsr.cli import main
from quantsr.data import download
from quantsr.deploy.packed import packing
from quantsr.trained_files import checkpoint
from tests.stress.conftest import Budget

pytestmark = pytest.mark.stress

ITERATIONS = 60
ARCHIVE = "div2k-valid"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "tests.stress.test_kills",
        *(f"quantsr.commands.{name}" for name in ("train", "compare", "prepare", "export")),
    ]
)


def run_command(words: list[str], log: str, base: str | None, md5: str | None) -> None:
    """Runs one command in this process, with its output in a file; ``base`` and ``md5`` are for a
    download."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    if base is not None and md5 is not None:
        old = download.ARCHIVES[ARCHIVE]
        download._BASE = base
        download.ARCHIVES[ARCHIVE] = download.Archive(old.file, md5, old.folder)
    sys.exit(main(words))


class Commands:
    """Starts commands in processes, and kills them.

    Attributes:
        kills: number of processes killed while they ran.
        log: file with the output of all commands.
    """

    def __init__(self, log: Path) -> None:
        self.kills = 0
        self.log = log
        self.base: str | None = None
        self.md5: str | None = None

    def run(self, words: list[str], kill_after: float | None = None) -> int | None:
        """Run a command to its end, or kill it after some seconds; its exit code, None where it was
        killed."""
        process = _context.Process(target=run_command, args=(words, str(self.log), self.base, self.md5))
        process.start()
        process.join(120 if kill_after is None else kill_after)
        killed = process.is_alive()
        process.kill()
        process.join()
        if killed:
            assert kill_after is not None, f"{words} does not end"
            self.kills += 1
            return None
        return process.exitcode

    def seconds(self, words: list[str]) -> float:
        """The duration of a command that is not killed."""
        begin = time.perf_counter()
        assert self.run(words) == 0, self.log.read_text()
        return time.perf_counter() - begin

    def killed_often(self, words: list[str], seconds: float, rng: random.Random) -> Iterator[int | None]:
        """Run a command several times, each time killed after a random part of ``seconds``, until
        it ends before it is killed; its exit codes."""
        for _ in range(rng.randint(2, 8)):
            code = self.run(words, rng.uniform(0.02, 0.7 * seconds))
            yield code
            if code is not None:
                return

    def check_log(self) -> None:
        """No command ended in a traceback."""
        assert "Traceback" not in self.log.read_text(errors="replace")


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    """Starts and kills commands; prints the number of killed processes at the end."""
    found = Commands(tmp_path / "commands.log")
    # the fork server imports everything before commands are timed
    assert found.run(["--version"]) == 0
    yield found
    print(f"{found.kills} kills")


def write_pictures(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.random((8, 8, 3)).astype(np.float32)
        picture = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        cv2.imwrite(str(folder / f"p{number}.png"), (255 * picture).astype(np.uint8))


def training(folder: Path) -> dict[str, Any]:
    """A training of a second or two with frequent checkpoints and validations, in both stages."""
    write_pictures(folder / "pictures", 3, 40)
    pictures = str(folder / "pictures")
    metrics = {"psnr": {"type": "calculate_psnr"}, "ssim": {"type": "calculate_ssim"}}
    return {
        "scale": 2,
        "num_gpu": 0,
        "datasets": {
            "train": {"name": "t", "type": "CroppedImageDataset", "dataroot_gt": pictures, "gt_size": 16, "batch_size_per_gpu": 2},
            "val": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": pictures},
        },
        "network_g": {"type": "QuantSR_C", "num_feat": 8, "num_block": 2, "upscale": 2, "depths": [2, 1]},
        "path": {"experiments_root": str(folder / "experiments")},
        "train": {
            "total_iter": ITERATIONS,
            "optim_g": {"type": "Adam", "lr": 1e-3},
            "scheduler": {"type": "CosineAnnealingRestartLR"},
            "precision": "fp32",
            "compile": False,
        },
        "val": {"val_freq": 6, "metrics": metrics, "save_img": True, "pbar": False},
        "logger": {"print_freq": 10, "save_checkpoint_freq": 3, "use_tb_logger": False},
    }  # fmt: skip


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".quantsr*") if path.name.startswith(".quantsr.")]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_killed_trainings_end_with_the_same_bits(budget: Budget, commands: Commands, tmp_path: Path) -> None:
    """Network, optimizer, random states and the best network are those of an uninterrupted
    training."""
    file = tmp_path / "run.yml"
    file.write_text(yaml.safe_dump({"name": "through", **training(tmp_path)}))
    commands.seconds(["train", "-opt", str(file)])
    # the first run also fills caches
    seconds = commands.seconds(["train", "-opt", str(file), "--set", "name=timed"])
    root = tmp_path / "experiments"
    names = [f"training_states/{ITERATIONS}.state", "models/net_g_best.pth", "models/net_g_latest.pth"]
    wanted = {name: checkpoint.load(root / "through" / name) for name in names}
    for number in budget.rounds():
        run = root / f"run{number}"
        words = ["train", "-opt", str(file), "--auto-resume", "--set", f"name={run.name}"]
        for code in commands.killed_often(words, seconds, budget.rng):
            assert code in (None, 0)
            for path in (run / "models").glob("*.pth"):
                checkpoint.load(path)
        assert commands.run(words) == 0
        for name in names:
            found = checkpoint.load(run / name)
            for content in (found, wanted[name]):
                content.pop("config_hash", None)
                content.get("quantsr", {}).pop("options", None)
            assert same(found, wanted[name]), f"{name} of {run.name}"
        assert leftovers(root) == []
    commands.check_log()


def comparable(results: str) -> list[str]:
    """The lines without hashes of options, which hold the name, and without the commit of the
    checkout, in which somebody may be working."""
    return [line for line in results.splitlines() if "hash" not in line and '"commit"' not in line]


def test_killed_comparisons_end_with_the_same_table(
    budget: Budget, commands: Commands, tmp_path: Path
) -> None:
    base = training(tmp_path)
    base["train"]["total_iter"] = 12
    root = tmp_path / "experiments"
    del base["path"]
    file = tmp_path / "compare.yml"
    comparison = {
        "name": "through",
        "experiments_root": str(root),
        "base": base,
        "seeds": [1, 2],
        "variants": {"a": {}, "b": {"network_g.nbits_w": 2}},
    }
    file.write_text(yaml.safe_dump(comparison))
    words = ["compare", "-opt", str(file)]
    commands.seconds(words)
    seconds = commands.seconds([*words, "--set", "name=timed"])
    wanted = (root / "compare_through" / "results.json").read_text()
    for number in budget.rounds():
        again = [*words, "--set", f"name=again{number}"]
        for code in commands.killed_often(again, seconds, budget.rng):
            assert code in (None, 0)
        assert commands.run(again) == 0
        found = (root / f"compare_again{number}" / "results.json").read_text()
        assert comparable(found) == comparable(wanted)
        assert leftovers(root) == []
    commands.check_log()


MOST_KILLS = 50


def test_a_comparison_whose_workers_are_killed_ends_with_the_same_table(
    budget: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers side by side, each killed at random moments while it works on a run, at most
    `MOST_KILLS` times in all."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that sums have one order
    base = training(tmp_path)
    del base["path"]
    file = tmp_path / "compare.yml"
    comparison = {
        "name": "through",
        "experiments_root": str(tmp_path / "experiments"),
        "costs": False,
        "base": base,
        "seeds": [1, 2, 3],
        "variants": {"a": {}, "b": {"network_g.nbits_w": 2}},
    }
    file.write_text(yaml.safe_dump(comparison))
    words = [sys.executable, "-m", "quantsr", "compare", "-opt", str(file)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    wanted = (tmp_path / "experiments/compare_through/results.json").read_text()
    log = tmp_path / "workers.log"
    killed: set[int] = set()
    for number in budget.rounds():
        folder = tmp_path / f"experiments/compare_again{number}"
        again = [*words, "--workers", "2", "--set", f"name=again{number}"]
        with open(log, "a") as output, subprocess.Popen(again, stdout=output, stderr=output) as parent:
            while parent.poll() is None:
                time.sleep(budget.rng.uniform(0, 1.5))
                if len(killed) < MOST_KILLS and (at_work := workers_of(folder) - killed):
                    pid = budget.rng.choice(sorted(at_work))
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
        assert parent.returncode == 0, log.read_text()
        assert comparable((folder / "results.json").read_text()) == comparable(wanted)
        assert leftovers(folder) == []
        assert not (folder / "claims").exists()
        if len(killed) == MOST_KILLS:
            break
    print(f"{len(killed)} kills")
    logs = [log, *tmp_path.glob("experiments/*/log/*")]
    assert not any("Traceback" in path.read_text(errors="replace") for path in logs)


def workers_of(folder: Path) -> set[int]:
    """The processes that work on a run of a comparison."""
    try:
        entries = json.loads((folder / "runs.json").read_text())
    except FileNotFoundError:
        return set()
    return {int(entry["worker"].split()[0]) for entry in entries.values() if "worker" in entry}


@pytest.fixture
def served(tmp_path: Path, commands: Commands) -> Iterator[None]:
    """A small archive on a local server, instead of DIV2K's."""
    folder = tmp_path / "served"
    folder.mkdir()
    old = download.ARCHIVES[ARCHIVE]
    with zipfile.ZipFile(folder / old.file, "w") as content:
        for number in range(400):
            content.writestr(f"{old.folder}/{number:04}.png", os.urandom(20_000))
    commands.md5 = hashlib.md5((folder / old.file).read_bytes(), usedforsecurity=False).hexdigest()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing."""

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        commands.base = f"http://127.0.0.1:{server.server_port}/"
        yield
        server.shutdown()


@pytest.mark.usefixtures("served")
def test_killed_preparations_and_exports_leave_nothing_half_done(
    budget: Budget, commands: Commands, tmp_path: Path
) -> None:
    """What stands under a final name is whole, whenever the command was killed; a rerun makes the
    rest."""
    from quantsr.deploy.stand_ins.convolutional import random_model

    write_pictures(tmp_path / "in", 24, 96)
    source, network = str(tmp_path / "in"), tmp_path / "packed.safetensors"
    packing.save(random_model(num_feat=8, num_block=4, scale=2), network)
    export = ["export", "-m", str(network), "--no-parity", "-o"]
    kinds: dict[str, Callable[[Path], list[str]]] = {
        "bicubic": lambda out: ["prepare", "bicubic", source, str(out / "o"), "-j", "2"],
        "subimages": lambda out: ["prepare", "subimages", source, str(out / "o"), "--size", "48", "--step", "24", "-j", "2"],
        "lmdb": lambda out: ["prepare", "lmdb", source, str(out / "o.lmdb"), "-j", "2"],
        "download": lambda out: ["prepare", "download", ARCHIVE, "-o", str(out / "o")],
        "packed": lambda out: [*export, str(out / "o.safetensors")],
        "onnx": lambda out: [*export, str(out / "o.onnx")],
        "ir": lambda out: [*export, str(out / "o.xml")],
    }  # fmt: skip
    wanted, seconds = {}, {}
    for kind, words in kinds.items():
        (tmp_path / f"{kind}_through").mkdir()
        (tmp_path / f"{kind}_first").mkdir()
        commands.seconds(words(tmp_path / f"{kind}_first"))
        seconds[kind] = commands.seconds(words(tmp_path / f"{kind}_through"))
        wanted[kind] = contents(tmp_path / f"{kind}_through")
    for number in budget.rounds():
        kind = budget.rng.choice(list(kinds))
        out = tmp_path / f"{kind}{number}"
        out.mkdir()
        words = kinds[kind](out)
        done = False
        for code in commands.killed_often(words, seconds[kind], budget.rng):
            done = done or contents(out) == wanted[kind]
            assert code in (None, 0) or done, f"{words}: {commands.log.read_text()[-500:]}"
            for name, content in contents(out).items():
                if name.endswith(".zip.part"):
                    continue  # a partial download, which is resumed
                assert content == wanted[kind][name], f"{kind}: {name} is not whole"
        code = commands.run(words)
        complete = contents(out) == wanted[kind]
        assert complete, f"{kind}: {sorted(contents(out))}"
        assert code == 0 or (code == 2 and kind in ("lmdb", "download"))  # exists already
        assert leftovers(out) == [], f"{kind}: leftovers"
    commands.check_log()


def contents(folder: Path) -> dict[str, bytes]:
    """The content of every file with a final name; of an LMDB, whose pages vary, only its list."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and ".quantsr." not in name and not name.endswith(("lock.mdb", ".zip")):
            found[name] = b"" if name.endswith("data.mdb") else path.read_bytes()
    return found
