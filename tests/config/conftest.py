"""Option files for the tests of this folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantsr.config import Options, load_options
from quantsr.errors import OptionsError

VALID: dict[str, Any] = {
    "name": "run",
    "scale": 2,
    "datasets": {
        "train": {"name": "t", "type": "CroppedImageDataset", "dataroot_gt": "pictures", "gt_size": 48},
        "val": {"name": "v", "type": "SkimageDataset"},
    },
    "network_g": {
        "type": "QuantSR_C",
        "num_feat": 8,
        "num_block": 4,
        "upscale": 2,
        "nbits_w": 4,
        "nbits_a": 4,
    },
    "path": {"pretrain_network_g": "net.pth"},
    "train": {
        "total_iter": 100,
        "optim_g": {"type": "Adam", "lr": 0.001},
        "scheduler": {"type": "MultiStepLR", "milestones": [50]},
    },
    "val": {"val_freq": 50, "metrics": {"psnr": {"type": "calculate_psnr", "test_y_channel": True}}},
}


@pytest.fixture
def valid() -> dict[str, Any]:
    """Valid options, to be changed by a test."""
    return copy.deepcopy(VALID)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Options]:
    """Write options to a file and load it; by default paths are not checked."""

    def run(options: dict[str, Any], *overrides: str, **how: Any) -> Options:
        file = tmp_path / "opt.yml"
        file.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
        return load_options(str(file), overrides, **{"check_paths": False, **how})

    return run


@pytest.fixture
def problems(load: Callable[..., Options], tmp_path: Path) -> Callable[..., list[str]]:
    """The problems that loading reports, without the file's name."""

    def run(options: dict[str, Any], *overrides: str, **how: Any) -> list[str]:
        try:
            load(options, *overrides, **how)
        except OptionsError as error:
            return [line.removeprefix(f"{tmp_path / 'opt.yml'}: ") for line in error.problems]
        return []

    return run
