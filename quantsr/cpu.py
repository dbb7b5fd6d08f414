"""Name, feature flags and cores of this machine's processor. Imports no torch."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""Flags of processors that compute in bf16."""


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
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
