"""``quantsr cost -opt``: files of every kind are counted. The counts themselves are tested in
tests/upscale/test_cost.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantsr.analysis.module_cost import cost_of_options
from quantsr.config import load_options

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.integration
def test_option_files_of_every_network_are_counted() -> None:
    """One file for each network and set of bit options; other files differ in numbers only."""
    chosen: dict[tuple[str, ...], str] = {}
    for path in sorted((ROOT / "options").glob("t*/**/*.yml")):
        network = load_options(str(path), is_train="train" in path.parts, check_paths=False).network_g
        bits = sorted(word for word in network.kwargs if word.startswith("nbits_"))
        chosen.setdefault((network.type, *bits), str(path))
    assert ("QEDSR_Ours",) in chosen
    for file in chosen.values():
        assert all(row["sizes"][0]["macs"] > 0 for row in cost_of_options(file, [(8, 8)])["depths"])


def test_bits_left_at_their_default_are_counted() -> None:
    """The released file gives no bits; its network is that of ``paper.yml``."""
    folder = ROOT / "options" / "test" / "QuantSR_C"
    released, ours = (
        cost_of_options(str(folder / f"{name}.yml"), [(8, 8)])["depths"]
        for name in ("released_w4a4_x4", "paper")
    )
    assert released == ours
