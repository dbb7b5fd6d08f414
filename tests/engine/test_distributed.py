"""Who this process is, and two processes that train as one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quantsr.errors import InputError
from quantsr.hardware import processes
from quantsr.hardware.device import resolve_device
from quantsr.hardware.processes import World, detect
from quantsr.trained_files import checkpoint

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}


def test_detection() -> None:
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


def test_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
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
def test_a_gpu_that_is_here() -> None:
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device(0) == torch.device("cpu")


@pytest.mark.integration
def test_two_processes_equal_one_with_twice_the_batch(make_options: Any, tmp_path: Path) -> None:
    """Through both stages; rank 0 writes, both see their own half of each global batch."""
    changes = {"train.ema_decay": 0.0, "network_g.nbits_w": 32, "network_g.nbits_a": 32}
    runs = {
        "two": make_options(name="two", **changes),
        "one": make_options(name="one", **changes, **{"datasets.train.batch_size_per_gpu": 4}),
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, options in runs.items():
        file = tmp_path / f"{name}.yml"
        file.write_text(yaml.safe_dump(options.dump()))
        how = launcher if name == "two" else []
        command = [sys.executable, *how, "-m", "quantsr.train", "-opt", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    found = {
        name: checkpoint.load(Path(options.experiment_folder) / "models" / "net_g_latest.pth")
        for name, options in runs.items()
    }
    assert found["one"]["quantsr"]["ranking"] == found["two"]["quantsr"]["ranking"]
    for name, value in found["one"]["params"].items():
        torch.testing.assert_close(value, found["two"]["params"][name], rtol=1e-3, atol=1e-4, msg=name)
