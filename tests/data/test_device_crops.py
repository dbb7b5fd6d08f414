"""Crops cut on a device equal those of the data set on the CPU, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from quantsr.data.crops import CroppedImageDataset
from quantsr.data.device_crops import DeviceCrops, fits
from quantsr.data.loader import TrainLoader, build_train_loader
from quantsr.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Three pictures of different sizes, with soft targets that are other pictures."""
    rng = np.random.default_rng(0)
    for folder in ("gt", "soft"):
        (tmp_path / folder).mkdir()
        for number, (height, width) in enumerate([(48, 60), (64, 40), (40, 80)]):
            picture = rng.integers(0, 256, (height, width, 3), np.uint8)
            cv2.imwrite(str(tmp_path / folder / f"{number}.png"), picture)
    return {
        "name": "train",
        "type": "CroppedImageDataset",
        "dataroot_gt": str(tmp_path / "gt"),
        "dataroot_soft": str(tmp_path / "soft"),
        "gt_size": 32,
        "batch_size_per_gpu": 5,
    }


def assert_equal(a: TrainLoader, b: TrainLoader, batches: int) -> None:
    for _ in range(batches):
        one, other = next(a), next(b)
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value.dtype == other[key].dtype == torch.float32
            assert torch.equal(value.cpu(), other[key].cpu()), key


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"use_rot": False},
        {"use_hflip": False},
        {"crop_sampling": "picture"},
        {"crop_choice": "gradient"},
    ],
)
@pytest.mark.parametrize("scale", [2, 4])
def test_crops_cut_on_a_device_are_the_same(
    options: dict[str, Any], change: dict[str, Any], scale: int
) -> None:
    kept = build_train_loader({**options, **change, "device_cache": True}, scale, 3, device=CPU)
    plain = build_train_loader({**options, **change, "device_cache": False}, scale, 3, device=CPU)
    assert kept.crops is not None
    assert plain.crops is None
    assert_equal(kept, plain, 40)
    kept.load_state_dict({"position": 35, "seed": 3})
    plain.load_state_dict({"position": 35, "seed": 3})
    assert_equal(kept, plain, 2)
    kept.close()
    plain.close()


@pytest.mark.gpu
def test_crops_cut_on_a_gpu_are_the_same(options: dict[str, Any]) -> None:
    gpu = torch.device("cuda", 0)
    kept = build_train_loader(options, 4, 3, device=gpu)
    plain = build_train_loader({**options, "device_cache": False}, 4, 3, device=gpu)
    assert kept.crops is not None, "auto keeps a few pictures"
    assert next(kept)["gt"].device == gpu
    next(plain)
    assert_equal(kept, plain, 40)
    kept.close()
    plain.close()


def test_auto_keeps_pictures_that_take_at_most_half_of_the_free_memory(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = CroppedImageDataset({**options, "scale": 2})
    size = dataset.store.nbytes
    assert size == sum(int(p) for p in dataset.store.pixels) * 3 * 2 * 9 // 8
    assert DeviceCrops(dataset, CPU).levels.numel() == size
    gpu = torch.device("cuda", 0)
    for free, wanted in ((2 * size, True), (2 * size - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * size))
        assert fits(dataset, gpu, "auto") is wanted
        assert fits(dataset, gpu, True)
        assert not fits(dataset, gpu, False)
    assert not fits(dataset, CPU, "auto")
    assert fits(dataset, CPU, True)


def test_pictures_that_are_not_in_memory_cannot_be_kept(options: dict[str, Any]) -> None:
    dataset = CroppedImageDataset({**options, "scale": 2, "cache_budget_mb": 0})
    assert not fits(dataset, torch.device("cuda", 0), "auto")
    with pytest.raises(InputError, match="device_cache: true needs all pictures in memory"):
        fits(dataset, CPU, True)
