"""Real-ESRGAN's degradations as training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from quantsr import cli
from quantsr.data.loader import build_train_loader, check_training_set
from quantsr.data.realesrgan_dataset import DEFAULTS, Stage, degraded
from quantsr.errors import InputError


@pytest.fixture(scope="module")
def section(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("gt")
    for seed in range(2):
        cells = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), np.uint8)
        picture = cv2.resize(cells, (90, 80), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{seed}.png"), picture)
    return {
        "name": "tiny",
        "type": "RealESRGANDataset",
        "dataroot_gt": str(folder),
        "gt_size": 32,
        "batch_size_per_gpu": 2,
        "jpeg_range": [60, 95],
    }


def test_batches_are_degraded_pairs_that_the_seed_determines(section) -> None:
    loaders = [build_train_loader(section, 2, seed) for seed in (1, 1, 2)]
    first, again, other = (next(loader) for loader in loaders)
    assert first["lq"].shape == (2, 3, 16, 16)
    assert first["gt"].shape == (2, 3, 32, 32)
    for key, values in first.items():
        assert torch.equal(values, again[key])
        assert not torch.equal(values, other[key])
        torch.testing.assert_close((255 * values).round() / 255, values, rtol=0, atol=1e-6)
    small = torch.nn.functional.avg_pool2d(first["gt"], 2)
    assert 0.005 < (small - first["lq"]).abs().mean() < 0.2  # the same place, and degraded


def test_without_degradations_only_the_size_changes() -> None:
    pulse = torch.zeros(21, 21)
    pulse[10, 10] = 1
    kernels = dict.fromkeys(("kernel1", "kernel2", "sinc_kernel"), pulse)
    settings = {**DEFAULTS, "resize_prob": [0, 0, 1], "noise_range": [0, 0], "gaussian_noise_prob": 1}
    settings |= {"jpeg_range": [95, 95]}
    stages = (Stage.of({**settings, **{f"{k}2": v for k, v in settings.items()}}, "", 1.0),) * 2
    y, x = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 64), indexing="ij")
    gt: Tensor = (0.2 + 0.6 * torch.stack([y, x, (x + y) / 2]))[None]
    found = degraded(gt, kernels, stages, 2)
    assert found.shape == (1, 3, 24, 32)
    assert (found - torch.nn.functional.avg_pool2d(gt, 2)).abs().mean() < 0.01


@pytest.mark.integration
def test_an_option_file_trains_on_it(section, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {
        "name": "run",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {"train": {**section, "second_blur_prob": 0.5}},
        "network_g": {"type": "QuantSR_C", "num_feat": 8, "num_block": 2, "upscale": 2},
        "train": {
            "total_iter": 2,
            "optim_g": {"type": "Adam", "lr": 1.0e-3},
            "scheduler": {"type": "MultiStepLR", "milestones": [1]},
            "compile": False,
        },
        "logger": {"print_freq": 1, "use_tb_logger": False},
    }
    Path("run.yml").write_text(yaml.safe_dump(options), encoding="utf-8")
    assert cli.main(["train", "-opt", "run.yml"]) == 0
    assert list(Path("experiments/run/models").glob("*.pth"))
    check_training_set(options["datasets"]["train"], 2)


@pytest.mark.parametrize("size", [33, 402])
def test_a_size_of_crops_that_does_not_fit_is_refused(section, size) -> None:
    with pytest.raises(InputError, match=f"gt_size: {size} is no multiple of scale 2 up to 400"):
        build_train_loader({**section, "gt_size": size}, 2, 0)
