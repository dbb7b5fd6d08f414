"""The native engine against what was recorded on another processor: `QUANTSR_RECORDED` names the
folder (`scripts/test_arm64.sh`); without it a few networks are recorded here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.deploy import recorded
from tests.deploy.native import ISAS, needs_kernels

FEW = ("blocks_16_w4a4_16", "swin_QuantSR_4", "swin_and_sweeps", "swin_3conv_codes", "sweeps_EDSR_4")


GIVEN = os.environ.get("QUANTSR_RECORDED")
NAMES = sorted(path.stem for path in Path(GIVEN).glob("*.npz")) if GIVEN else list(FEW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if GIVEN:
        return Path(GIVEN)
    made = tmp_path_factory.mktemp("recorded")
    recorded.record(made, {name: make for name, make in recorded.every().items() if name in FEW})
    return made


@needs_kernels
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("isa", ISAS)
def test_codes_and_floats_are_the_recorded_ones_bit_for_bit(
    folder: Path, isa: str, name: str, record_property
) -> None:
    differences, compared = recorded.differences(folder, name, isa)
    assert not differences
    assert compared > 0
    record_property("compared", compared)


@needs_kernels
def test_a_single_other_code_is_found(folder: Path, tmp_path: Path) -> None:
    name = NAMES[0]
    (tmp_path / f"{name}.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
    with np.load(folder / f"{name}.npz") as arrays:
        changed = dict(arrays)
    layer = next(key for key in changed if key.startswith("codes.0."))
    changed[layer].flat[7] += 1
    np.savez(tmp_path / f"{name}.npz", **changed)
    differences, _ = recorded.differences(tmp_path, name, "plain")
    assert differences == [f"picture 0, {layer.removeprefix('codes.0.')}: 1 of {changed[layer].size} values"]
