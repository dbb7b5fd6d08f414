"""A comparison file for the tests of this folder: small networks, the scikit-image pictures as test
set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantsr.config.compare import load_comparison
from quantsr.config.comparison import Comparison
from quantsr.errors import OptionsError

ROOT = Path(__file__).resolve().parents[2]

TRAINING: dict[str, Any] = {
    "name": "base",
    "scale": 2,
    "num_gpu": 0,
    "datasets": {
        "train": {
            "name": "mini",
            "type": "CroppedImageDataset",
            "dataroot_gt": str(ROOT / "datasets" / "mini"),
            "gt_size": 16,
            "batch_size_per_gpu": 1,
        }
    },
    "network_g": {"type": "QuantSR_C", "num_feat": 4, "num_block": 2, "upscale": 2, "depths": [2, 1]},
    "train": {
        "total_iter": 4,
        "optim_g": {"type": "Adam", "lr": 0.001},
        "scheduler": {"type": "CosineAnnealingRestartLR"},
        "compile": False,
    },
    "val": {"metrics": {"psnr": {"type": "calculate_psnr", "test_y_channel": True}}, "pbar": False},
    "logger": {"use_tb_logger": False},
}

COMPARISON: dict[str, Any] = {
    "name": "try",
    "base": "base.yml",
    "seeds": [3, 7],
    "variants": {
        "rlq": {"path.fp_pretrain_network_g": "{run:float}/models/net_g_latest.pth"},
        "float": {"network_g": {"nbits_w": 32, "nbits_a": 32}},
    },
    "datasets": {"test_1": {"name": "skimage", "type": "SkimageDataset"}},
}


@pytest.fixture
def training() -> dict[str, Any]:
    """The base's options, to be changed by a test."""
    return copy.deepcopy(TRAINING)


@pytest.fixture
def valid(tmp_path: Path) -> dict[str, Any]:
    """A valid comparison, to be changed by a test: ``rlq`` starts from ``float``, which follows it
    in the file."""
    return {**copy.deepcopy(COMPARISON), "experiments_root": str(tmp_path / "experiments")}


@pytest.fixture
def write(tmp_path: Path, training: dict[str, Any]) -> Callable[..., Path]:
    """Writes a comparison beside its base, and returns its path."""

    def run(comparison: dict[str, Any], base: dict[str, Any] | None = None) -> Path:
        (tmp_path / "base.yml").write_text(yaml.safe_dump(base or training, sort_keys=False))
        file = tmp_path / "compare.yml"
        file.write_text(yaml.safe_dump(comparison, sort_keys=False))
        return file

    return run


@pytest.fixture
def load(write: Callable[..., Path]) -> Callable[..., Comparison]:
    """Writes a comparison and loads it."""

    def run(comparison: dict[str, Any], *overrides: str, base: dict[str, Any] | None = None) -> Comparison:
        return load_comparison(str(write(comparison, base)), overrides)

    return run


@pytest.fixture
def problems(load: Callable[..., Comparison], tmp_path: Path) -> Callable[..., list[str]]:
    """The problems that loading reports, without the path of the folder."""

    def run(comparison: dict[str, Any], *overrides: str, base: dict[str, Any] | None = None) -> list[str]:
        try:
            load(comparison, *overrides, base=base)
        except OptionsError as error:
            return [line.replace(f"{tmp_path}/", "") for line in error.problems]
        return []

    return run
