"""Which arithmetic `precision: auto` takes on a processor."""

from __future__ import annotations

import pytest
import torch

from quantsr import cpu
from quantsr.hardware.device import bf16_is_faster


@pytest.mark.parametrize(
    ("name", "flags", "faster"),
    [
        ("Intel(R) Xeon(R) Processor", {"avx512f", "avx512_bf16", "amx_bf16"}, True),
        ("Intel(R) Xeon(R) Processor", {"avx512f", "avx512_bf16"}, False),
        ("AMD EPYC", {"avx512f", "avx512_bf16"}, True),
        ("AMD EPYC", {"avx2"}, False),
    ],
)
def test_bf16_is_taken_where_it_is_faster_than_fp32(
    monkeypatch: pytest.MonkeyPatch, name: str, flags: set[str], faster: bool
) -> None:
    monkeypatch.setattr(cpu, "describe", lambda: (name, frozenset(flags)))
    assert bf16_is_faster(torch.device("cpu")) is faster
