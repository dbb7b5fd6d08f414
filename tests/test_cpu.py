"""The name and the feature flags of the processor."""

from __future__ import annotations

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
