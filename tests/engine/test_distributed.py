"""Detection of ranks and devices, and training and evaluation in two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quantsr.engine.results import read_results
from quantsr.errors import InputError
from quantsr.hardware import processes
from quantsr.hardware.device import resolve_device
from quantsr.hardware.processes import World, detect
from quantsr.trained_files import checkpoint
from tests.conftest import ROOT

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}


def test_processes_are_detected_from_the_environment() -> None:
    assert detect("none", {}) == World()
    assert detect("none", TORCHRUN) == World()  # some schedulers set these for single processes too
    assert detect("none", {**TORCHRUN, "TORCHELASTIC_RUN_ID": "x"}) == World(1, 2, 1)
    assert detect("pytorch", TORCHRUN) == World(1, 2, 1)
    slurm = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    assert detect("slurm", slurm) == World(3, 8, 1)
    assert not detect("slurm", slurm).is_main


@pytest.mark.parametrize("value", ["", "two", "1; touch x", "-1"])
def test_bad_environments_are_named(value: str) -> None:
    with pytest.raises(InputError, match="WORLD_SIZE: a number is needed"):
        detect("pytorch", {**TORCHRUN, "WORLD_SIZE": value})
    with pytest.raises(InputError, match="SLURM_PROCID"):
        detect("slurm", {})


def test_node_lists_never_reach_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []

    def record(command: Any, **kwargs: Any) -> Any:
        calls.append((command, kwargs.get("shell", False)))
        return subprocess.CompletedProcess(command, 0, "n1\nn2\n", "")

    monkeypatch.setattr(processes.subprocess, "run", record)
    assert processes._first_slurm_host("n[1-2]") == "n1"
    assert calls == [(["scontrol", "show", "hostnames", "n[1-2]"], False)]
    for evil in ("n1; touch x", "$(touch x)", "-h", ""):
        with pytest.raises(InputError, match="not a list of nodes"):
            processes._first_slurm_host(evil)
    assert len(calls) == 1


def test_without_a_gpu_the_cpu_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    assert resolve_device(0) == torch.device("cpu")
    assert not caplog.records
    assert resolve_device(2) == torch.device("cpu")
    assert "num_gpu: 2, but no CUDA device is here; running on the CPU" in caplog.text


def test_several_gpus_need_several_processes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert resolve_device(4, World(rank=5, size=8, local_rank=1)) == torch.device("cuda", 1)
    assert not caplog.records
    assert resolve_device(4) == torch.device("cuda", 0)
    assert "this is one process and drives one GPU" in caplog.text


@pytest.mark.gpu
def test_with_a_gpu_auto_uses_it() -> None:
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device(0) == torch.device("cpu")


def trained_by(processes: int, options: Any, tmp_path: Path) -> dict[str, Any]:
    """Trains in this number of processes; returns the last network file."""
    file = tmp_path / f"{options.name}.yml"
    file.write_text(yaml.safe_dump(options.dump()))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    how = launcher if processes > 1 else []
    command = [sys.executable, *how, "-m", "quantsr.train", "-opt", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return checkpoint.load(Path(options.experiment_folder) / "models" / "net_g_latest.pth")


@pytest.mark.integration
@pytest.mark.parametrize("quantizer", [None, "RLQ", "LSQPlus", "PAMS"])
def test_two_processes_equal_one_with_twice_the_batch(
    quantizer: str | None, make_options: Any, validated: dict[str, Any], tmp_path: Path
) -> None:
    """Through both stages: weights, steps, averages, ranking and the values of the validations.

    Only the order of the sums over a batch differs: the tolerance is that of
    docs/explanation/derivations.md.
    """
    changes = {**validated, "network_g.quantizer": quantizer or "RLQ", "train.initial_steps": "mse"}
    if quantizer is None:
        changes |= {"network_g.nbits_w": 32, "network_g.nbits_a": 32}
    one = make_options(name="one", **changes, **{"datasets.train.batch_size_per_gpu": 4})
    two = make_options(name="two", **changes)
    alone, together = trained_by(1, one, tmp_path), trained_by(2, two, tmp_path)
    assert alone["quantsr"]["ranking"] == together["quantsr"]["ranking"]
    for key in ("params", "params_ema"):
        for name, value in alone[key].items():
            torch.testing.assert_close(value, together[key][name], rtol=1e-3, atol=1e-4, msg=f"{key} {name}")
    records = [read_results(Path(o.experiment_folder) / "results.json") for o in (one, two)]
    assert len(records[0]) == len(records[1])
    for first, second in zip(*records, strict=True):
        assert (first.row, first.set, first.pictures) == (second.row, second.set, second.pictures)
        assert first.value == pytest.approx(second.value, abs=1e-2)


_EVALUATE = """
import pathlib, sys, torch
from quantsr.engine import evaluate
from quantsr.hardware import processes
from quantsr.engine.results import write_records
from quantsr.errors import InputError
from tests.conftest import ROOT

world = processes.detect()
processes.join(world, backend="gloo")
rng = torch.Generator().manual_seed(0)
make = lambda *size: torch.randint(256, size, generator=rng, dtype=torch.uint8).numpy()
pictures = [{"name": str(i), "lq": make(9, 8 + i, 3), "gt": make(18, 16 + 2 * i, 3)} for i in range(5)]
sets = [evaluate.EvalSet("five", 2, pictures), evaluate.EvalSet("one", 2, pictures[:1])]
net = torch.nn.Upsample(scale_factor=2, mode="bicubic")
net.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
how = {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}, "name": "net", "world": world}
seen = []
records = evaluate.evaluate(net, sets, progress=seen.append, **how)
write_records(records, pathlib.Path(sys.argv[1]) / f"{world.rank}_of_{world.size}.json")
assert len(seen) == len(range(world.rank, 5, world.size)) + (world.rank == 0)
pictures[1]["gt"] = make(4, 4, 3)  # evaluated by one process, raised in all
try:
    evaluate.evaluate(net, sets, **how)
except InputError as error:
    assert "upscaled picture is 18x18, ground truth 4x4" in str(error)
else:
    raise AssertionError
processes.leave()
"""


@pytest.mark.integration
def test_processes_share_the_pictures_of_a_validation(tmp_path: Path) -> None:
    """The values in each process are those of a single process, bit for bit."""
    script = tmp_path / "evaluate_pictures.py"
    script.write_text(_EVALUATE)
    for count in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command = [sys.executable, *launcher, str(script), str(tmp_path)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
    alone = read_results(tmp_path / "0_of_1.json")
    assert [(record.set, record.pictures) for record in alone] == [("five", 5), ("one", 1)]
    assert read_results(tmp_path / "0_of_2.json") == read_results(tmp_path / "1_of_2.json") == alone


def test_bad_addresses_of_the_first_process_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(0, 2, 0)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    for port in ("http", "0", "70000"):
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(InputError, match="environment variable MASTER_PORT"):
            processes.join(world, backend="gloo")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("MASTER_ADDR", "no such machine")
    with pytest.raises(
        InputError, match="environment variable MASTER_ADDR: 'no such machine' is no machine's name"
    ):
        processes.join(world, backend="gloo")
