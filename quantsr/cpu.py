"""Name, feature flags and cores of this machine's processor, and how threads share the cores with
other processes. Imports no torch."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import MutableMapping
from functools import cache
from pathlib import Path, PurePosixPath

BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""Flags of processors that compute in bf16."""


_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


@cache
def describe() -> tuple[str, frozenset[str]]:
    """The processor's name and its feature flags as in ``/proc/cpuinfo`` ("avx2", "amx_int8");
    without that file there are no flags."""
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                return name, frozenset(value.split())
    except OSError:
        pass
    return name, flags


def cores() -> int:
    """Cores that this process may use: those of its affinity mask, or fewer where a control group
    limits its time."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = quota()
    return usable if limit is None else min(usable, max(1, math.ceil(limit)))


def quota() -> float | None:
    """Cores' worth of time that control groups grant this process (Linux), as ``docker run --cpus``
    sets it; None where there is no limit."""
    limits = []
    for line in _lines(_OWN_GROUPS):  # hierarchy:controllers:path; version 2 has no controllers
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CONTROL_GROUPS / "cpu" if controllers else _CONTROL_GROUPS
        # A group is limited by those around it. In a container its own files are at the root.
        for group in PurePosixPath(path.lstrip("/"), "_").parents:
            words = (
                _words(root / group / "cpu.cfs_quota_us") + _words(root / group / "cpu.cfs_period_us")
                if controllers
                else _words(root / group / "cpu.max")
            )
            if len(words) == 2 and all(word.isdigit() and int(word) for word in words):
                limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(file: Path) -> list[str]:
    """``150000 100000``, microseconds of each period; without a limit ``max`` or ``-1``."""
    return " ".join(_lines(file)).split()


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes OpenMP's threads leave their cores soon when they wait. To be called before torch is
    imported, which reads these variables once; those that the user has set are kept.

    A step of training on a CPU has about a thousand parallel loops, and a thread that is done waits
    for the others at the end of each. By default it spins for some milliseconds: on a core that
    another process wants, or one of its own team. Without any spinning, waking the threads of a
    virtual machine takes a tenth of the step (docs/reference/speed.md, "Busy machines").
    """
    if not environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        environment["GOMP_SPINCOUNT"] = "1000"  # some ten microseconds; read by GNU's OpenMP alone
    if quota() is not None and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = _OWN_CHOICE["OMP_NUM_THREADS"] = str(cores())


_OWN_CHOICE: dict[str, str] = {}


def environment_of_user() -> dict[str, str]:
    """``os.environ`` without the number of threads that `share_cores` chose for this process."""
    return {name: value for name, value in os.environ.items() if _OWN_CHOICE.get(name) != value}


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> None:
    """Makes glibc keep the memory of freed tensors for the next ones.

    It returns large blocks to the system otherwise, which then fills new ones with zeros page by
    page, at every step. Without glibc nothing changes.
    """
    if sys.platform != "linux" or os.environ.keys() & {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_TRIM_THRESHOLD, 2**30)
    mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest that glibc allows
