"""Tiny pictures, networks and option objects for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from quantsr import quant
from quantsr.config import Options


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """One thread, which is fastest for tiny tensors, and no compilation, which tests/quant
    covers."""
    threads, mode = torch.get_num_threads(), quant.get_compile()
    torch.set_num_threads(1)
    quant.set_compile(False)
    yield
    torch.set_num_threads(threads)
    quant.set_compile(mode)
    quant.set_exact_fp32(False)


def smooth_picture(seed: int, height: int, width: int) -> np.ndarray:
    """A uint8 RGB picture with structure at several scales."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells in (2, 5, 12):
        noise = rng.random((cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.5
    picture -= picture.min()
    return (255 * picture / picture.max()).round().astype(np.uint8)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three PNG pictures, 40x48."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        cv2.imwrite(str(folder / f"p{seed}.png"), smooth_picture(seed, 40, 48))
    return folder


MakeOptions = Callable[..., Options]


@pytest.fixture
def make_options(pictures: Path, tmp_path: Path) -> MakeOptions:
    """A function from dotted overrides, ``{"train.total_iter": 4}``, to options of a tiny run in
    ``tmp_path``."""

    def make(**overrides: Any) -> Options:
        train_set = {
            "name": "tiny",
            "type": "CroppedImageDataset",
            "dataroot_gt": str(pictures),
            "gt_size": 16,
            "batch_size_per_gpu": 2,
        }
        options: dict[str, Any] = {
            "name": "run",
            "scale": 2,
            "num_gpu": 0,
            "datasets": {"train": train_set},
            "network_g": {"type": "QuantSR_C", "num_feat": 8, "num_block": 4, "upscale": 2},
            "path": {
                "experiments_root": str(tmp_path / "experiments"),
                "results_root": str(tmp_path / "results"),
            },
            "train": {
                "total_iter": 8,
                "stage1_fraction": 0.5,
                "ema_decay": 0.5,
                "optim_g": {"type": "Adam", "lr": 1e-3},
                "scheduler": {"type": "MultiStepLR", "milestones": [6], "gamma": 0.5},
                "precision": "fp32",
                "compile": False,
            },
            "logger": {"print_freq": 4, "save_checkpoint_freq": 100, "use_tb_logger": False},
        }
        for dotted, value in overrides.items():
            section = options
            *keys, last = dotted.split(".")
            for key in keys:
                section = section.setdefault(key, {})
            section[last] = value
        return Options.model_validate(options)

    return make


@pytest.fixture
def validated(pictures: Path) -> dict[str, Any]:
    """Overrides that add a validation set and two metrics."""
    measure = {"crop_border": 2, "test_y_channel": True}
    return {
        "datasets.val": {"name": "tinyval", "type": "SkimageDataset"},
        "val": {
            "val_freq": 4,
            "metrics": {
                "psnr": {"type": "calculate_psnr", **measure},
                "ssim": {"type": "calculate_ssim", **measure},
            },
        },
    }
