"""File systems in every bad state: each command that writes succeeds, or prints one line; what
stands under a final name is whole, and no temporary file is left."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from quantsr.cli import BAD_INPUT, DONE, FAILED, main
from quantsr.deploy.packed import packing
from quantsr.deploy.stand_ins.convolutional import random_model
from tests.stress.conftest import Budget
from tests.stress.test_kills import training, write_pictures

pytestmark = pytest.mark.stress

LIMIT_S = 120
"""Seconds after which a command is taken to hang; it takes a few."""

_context = multiprocessing.get_context("forkserver")
_COMMANDS = ("train", "compare", "test", "prepare", "export", "upscale", "report")
_context.set_forkserver_preload(
    ["tests.stress.test_file_systems", *(f"quantsr.commands.{name}" for name in _COMMANDS)]
)


def run_command(words: list[str], log: str, folder: str, limit: int | None, output: str) -> None:
    """Runs one command in this process, which may write files of at most ``limit`` bytes.

    ``output`` is the state of standard output: log, closed, broken or full.
    """
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    os.chdir(folder)
    if output == "removed folder":
        os.mkdir("removed")
        os.chdir("removed")
        os.rmdir(os.getcwd())
    elif output == "closed":
        os.close(1)
        sys.stdout = None  # type: ignore[assignment] # as at the start of Python
    elif output == "broken":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
    elif output == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    if output in ("broken", "full"):  # a stream that does not take itself for a file
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if limit is not None:
        # not of the log, which is a pipe to this process's parent
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(main(words))


class Bench:
    """Files for the commands, and places to write to.

    Attributes:
        folder: of the inputs.
        commands: by name, from a place to the words of a command that writes there.
        output: by name, the file or folder that it makes in that place.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        base = training(folder)
        base["train"]["total_iter"], base["val"]["val_freq"] = 6, 3
        self.run = self._file("run", {"name": "n", **base})
        del base["path"]
        base["train"]["total_iter"] = 2
        self.compare = self._file("compare", {"name": "c", "base": base, "seeds": [1], "variants": {"a": {}}})
        picture = {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(folder / "pictures")}
        network = str(folder / "n.safetensors")
        packing.save(random_model(num_feat=16, num_block=1, scale=2, depths=(1,)), network)
        section = {
            "name": "t",
            "scale": 2,
            "datasets": {"test": picture},
            "path": {"pretrain_network_g": network},
        }
        self.test = self._file(
            "test", {**section, "num_gpu": 0, "val": {"metrics": base["val"]["metrics"], "save_img": True}}
        )
        self.results = folder / "results"
        self.results.mkdir()
        (self.results / "results.json").write_text("[]")
        write_pictures(folder / "in", 3, 96)
        source, one = str(folder / "in"), str(folder / "in" / "p0.png")
        export = ["export", "-m", network, "--no-parity", "-o"]
        upscale = ["upscale", "--model", network, "-o"]
        self.commands: dict[str, Callable[[str], list[str]]] = {
            "train": lambda out: ["train", "-opt", self.run, "--set", f"path.experiments_root={out}"],
            "compare": lambda out: ["compare", "-opt", self.compare, "--set", f"experiments_root={out}"],
            "test": lambda out: ["test", "-opt", self.test, "--set", f"path.results_root={out}"],
            "bicubic": lambda out: ["prepare", "bicubic", source, f"{out}/o", "-j", "1"],
            "subimages": lambda out: ["prepare", "subimages", source, f"{out}/o", "--size", "48", "--step", "24", "-j", "1"],
            "lmdb": lambda out: ["prepare", "lmdb", source, f"{out}/o.lmdb", "-j", "1"],
            "packed": lambda out: [*export, f"{out}/o.safetensors"],
            "onnx": lambda out: [*export, f"{out}/o.onnx"],
            "ir": lambda out: [*export, f"{out}/o.xml"],
            "png": lambda out: [*upscale, f"{out}/o.png", one],
            "tiff": lambda out: [*upscale, f"{out}/o.tif", one],
            "pictures": lambda out: [*upscale, f"{out}/o", source],
            "report": lambda out: ["report", str(self.results), "-o", f"{out}/o.html"],
        }  # fmt: skip

    def _file(self, name: str, options: dict[str, Any]) -> str:
        (self.folder / f"{name}.yml").write_text(yaml.safe_dump(options))
        return str(self.folder / f"{name}.yml")

    def call(self, words: list[str], limit: int | None = None, output: str = "log") -> tuple[int, str]:
        """Exit code and output of a command."""
        log = self.folder / "log"
        process = _context.Process(
            target=run_command, args=(words, str(log), str(self.folder), limit, output)
        )
        process.start()
        process.join(LIMIT_S)
        assert process.exitcode is not None, f"{words} hangs"
        return process.exitcode, log.read_text(errors="replace")


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int, *, read_only: bool = False) -> Iterator[bool]:
    """A file system of that size at ``folder`` where this process may mount one; whether it
    may."""
    options = f"size={kilobytes}k" + (",ro" if read_only else "")
    mounted = (
        os.geteuid() == 0
        and shutil.which("mount") is not None
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "quantsr-test", str(folder)], capture_output=True
        ).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def broken(folder: Path) -> list[str]:
    """Files under final names that are not whole, and temporary files."""
    found = [str(path) for path in folder.rglob(".quantsr.*")]
    for path in folder.rglob("*"):
        try:
            if path.is_symlink() or not path.is_file():
                continue
            if path.suffix in (".png", ".tif"):
                Image.open(path).load()
            elif path.suffix in (".pth", ".state"):
                torch.load(path, weights_only=True)
            elif path.suffix == ".safetensors":
                with safe_open(str(path), framework="numpy") as file:
                    [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - no dict
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".html" and not path.read_text().endswith("</html>\n"):
                found.append(str(path))
        except Exception as error:
            found.append(f"{path}: {error}")
    return found


def situation(
    kind: str, place: Path, rng: random.Random, stack: contextlib.ExitStack
) -> tuple[str, int | None, str] | None:
    """The place to write to, the limit of file sizes and the state of standard output; None where
    this process cannot make the situation."""
    limit, output = None, "log"
    out = str(place)
    if kind == "full disk":
        if not stack.enter_context(small_disk(place, rng.choice((4, 8, 16, 32, 64, 128, 256)))):
            return None
    elif kind == "read-only":
        if not stack.enter_context(small_disk(place, 64, read_only=True)):
            return None
    elif kind == "limited files":
        # the log of the command has the same limit
        limit = rng.choice((2048, 4096, 9000, 20_000, 60_000))
    elif kind == "loop of links":
        (place / "loop").symlink_to("loop")
        out = rng.choice((f"{place}/loop", f"{place}/loop/x"))
    elif kind == "dangling link":
        (place / "link").symlink_to(f"{place}/nowhere/x")
        out = f"{place}/link"
    elif kind == "long name":
        out = f"{place}/" + rng.choice(
            ("a" * 240, "a" * 255, "a" * 256, "é" * 127, "é" * 128, "a/" * 2100, "a" * 5000)
        )
    elif kind == "file in the way":
        (place / "file").write_text("kept")
        out = rng.choice((f"{place}/file", f"{place}/file/x"))
    elif kind == "folders in the way":
        for name in ("o", "o.png", "o.tif", "o.html", "o.xml", "o.bin", "o.onnx", "o.safetensors", "o.lmdb"):
            (place / name / "kept").mkdir(parents=True)
    elif kind == "output":
        output = rng.choice(("closed", "broken", "full"))
    elif kind == "removed working folder":
        output = "removed folder"
    return out, limit, output


KINDS = (
    "full disk",
    "read-only",
    "limited files",
    "loop of links",
    "dangling link",
    "long name",
    "file in the way",
    "folders in the way",
    "output",
    "removed working folder",
)
EXIT_CODES = {
    "full disk": (DONE, FAILED),
    "limited files": (DONE, FAILED),
    "read-only": (FAILED,),
    "loop of links": (BAD_INPUT,),
    "file in the way": (BAD_INPUT,),
    "long name": (DONE, BAD_INPUT),
    "dangling link": (DONE, BAD_INPUT),
}
"""Right exit codes; any for others."""


def test_file_systems_in_bad_states(budget: Budget, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    counts: dict[str, Counter[int]] = {kind: Counter() for kind in KINDS}
    faults: list[str] = []
    for number in budget.rounds():
        kind = KINDS[number % len(KINDS)]
        name = budget.rng.choice(list(bench.commands))
        place = tmp_path / f"place{number}"
        place.mkdir()
        with contextlib.ExitStack() as stack:
            found = situation(kind, place, budget.rng, stack)
            if found is None:
                continue
            out, limit, output = found
            code, log = bench.call(bench.commands[name](out), limit, output)
            counts[kind][code] += 1
            errors = [line for line in log.splitlines() if line.startswith("error: ")]
            problems = broken(place)
        if "Traceback" in log:
            problems.append("a traceback")
        if code not in (DONE, FAILED, BAD_INPUT) or code not in EXIT_CODES.get(kind, (code,)):
            problems.append(f"exit code {code}")
        # of `upscale`, lines of single pictures go to standard output
        if code != DONE and len(errors) != 1 and name != "pictures":
            problems.append(f"{len(errors)} errors")
        if (place / "file").is_file() and (place / "file").read_text() != "kept":
            problems.append("another file was changed")
        if problems:
            faults.append(
                f"{kind}: {name} to {out[-60:]}, limit {limit}, output {output}: {problems}: {log[-600:]}"
            )
        shutil.rmtree(place, ignore_errors=True)
    print({kind: dict(count) for kind, count in counts.items()})
    assert not faults, f"{len(faults)} of {budget.count}, seed {budget.seed}:\n" + "\n".join(faults[:30])
