"""``scripts/model_card.py``: the records that a card keeps."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

from quantsr.engine.results import read_results, write_records
from quantsr.trained_files.names import ZOO
from tests.scripts import load_script

NAME = "quantsr_c_small_x3_w4a6"

model_card = load_script("model_card")


def test_new_records_replace_all_but_those_of_float_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in ("safetensors", "md", "json"):
        shutil.copy(ZOO / f"{NAME}.{suffix}", tmp_path)
    kept = tmp_path / f"{NAME}.json"
    before = read_results(kept)
    new = [
        dataclasses.replace(record, value=record.value + 1)
        for record in before
        if record.depth == 6 and not record.network.startswith("float ")
    ]
    write_records(new, tmp_path / "results.json")
    monkeypatch.setattr(model_card, "ZOO", tmp_path)
    monkeypatch.setattr(sys, "argv", ["model_card.py", NAME, str(tmp_path / "results.json")])
    assert model_card.main() == 0
    floats = [record for record in before if record.network.startswith("float ")]
    assert read_results(kept) == new + floats
    assert f"| {floats[0].row} |" in (tmp_path / f"{NAME}.md").read_text(encoding="utf-8")
