"""Name, feature flags and cores of the processor, and how threads share it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantsr import cpu

LISTING = """processor\t: 0
model name\t: Some Processor 9
flags\t\t: fpu avx2 avx512_bf16
processor\t: 1
model name\t: Some Processor 9
"""


def test_name_and_flags_are_read_from_the_first_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **options: LISTING)
    name, flags = cpu.describe.__wrapped__()
    assert name == "Some Processor 9"
    assert flags == {"fpu", "avx2", "avx512_bf16"}
    assert flags & cpu.BF16


def test_without_proc_cpuinfo_there_are_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: Path, **options: object) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", absent)
    name, flags = cpu.describe.__wrapped__()
    assert isinstance(name, str)
    assert flags == frozenset()


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /sys/fs/cgroup, without limits; `own` in place of /proc/self/cgroup."""
    monkeypatch.setattr(cpu, "_CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cpu, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(cpu, "_OWN_CHOICE", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "own").write_text("0::/system/job\n")
    (tmp_path / "groups/system/job").mkdir(parents=True)
    return tmp_path / "groups"


def test_without_a_limit_there_are_the_cores_of_the_affinity_mask(groups: Path) -> None:
    assert cpu.quota() is None
    (groups / "system/job/cpu.max").write_text("max 100000\n")
    assert cpu.quota() is None
    assert cpu.cores() == 8


def test_the_smallest_limit_of_the_groups_around_counts(groups: Path) -> None:
    (groups / "system/job/cpu.max").write_text("400000 100000\n")
    (groups / "system/cpu.max").write_text("150000 100000\n")
    assert cpu.quota() == 1.5
    assert cpu.cores() == 2


def test_in_a_container_the_limit_is_at_the_root(groups: Path) -> None:
    (groups.parent / "own").write_text("0::/../outside\n")
    (groups / "cpu.max").write_text("50000 100000\n")
    assert cpu.quota() == 0.5
    assert cpu.cores() == 1


def test_limits_of_the_first_version_of_control_groups(groups: Path) -> None:
    (groups.parent / "own").write_text("9:memory:/\n4:cpu,cpuacct:/job\n0::/\n")
    (groups / "cpu/job").mkdir(parents=True)
    (groups / "cpu/job/cpu.cfs_period_us").write_text("100000\n")
    for limit, cores in (("-1", 8), ("300000", 3)):
        (groups / "cpu/job/cpu.cfs_quota_us").write_text(f"{limit}\n")
        assert cpu.cores() == cores


def test_threads_wait_without_spinning_for_long_unless_the_user_says_otherwise(groups: Path) -> None:
    environment: dict[str, str] = {}
    cpu.share_cores(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        chosen = {name: "7"}
        cpu.share_cores(chosen)
        assert chosen == {name: "7"}


def test_a_limit_sets_the_number_of_threads_unless_the_user_does(groups: Path) -> None:
    (groups / "cpu.max").write_text("200000 100000\n")
    environment: dict[str, str] = {}
    cpu.share_cores(environment)
    assert environment["OMP_NUM_THREADS"] == "2"
    environment = {"OMP_NUM_THREADS": "5"}
    cpu.share_cores(environment)
    assert environment["OMP_NUM_THREADS"] == "5"


def test_processes_started_later_choose_their_own_number_of_threads(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (groups / "cpu.max").write_text("200000 100000\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    cpu.share_cores()
    assert cpu.environment_of_user()["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
    cpu.share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in cpu.environment_of_user()


_FAULTS = """
import resource, sys
import numpy as np
from quantsr import cpu
if sys.argv[1] == "keep":
    cpu.keep_memory()
def work():
    return [np.ones(3 << 20) for _ in range(4)]  # 24 MiB each
work(), work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(os, "confstr") or sys.platform != "linux", reason="needs glibc")
def test_kept_memory_is_not_filled_with_zeros_again() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    faults = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", _FAULTS, mode],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for mode in ("keep", "return")
    }
    assert faults["keep"] * 10 < faults["return"]
