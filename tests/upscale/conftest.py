"""Small networks and pictures, and a cache folder that is not the user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantsr import cli
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.stand_ins.convolutional import random_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def small() -> PackedModel:
    """x4, 16 channels, depths 3, 2 and 1, W4A4, 8-bit head and tail."""
    return random_model(num_feat=16, num_block=3, depths=(3, 2, 1))


@pytest.fixture(scope="session")
def small_x2() -> PackedModel:
    return random_model(num_feat=16, num_block=2, scale=2, depths=(2, 1))


@pytest.fixture
def network_file(small: PackedModel, tmp_path: Path) -> Path:
    path = tmp_path / "network.safetensors"
    packing.save(small, path)
    return path


@pytest.fixture
def upscale(network_file: Path) -> Callable[..., int]:
    """upscale(WORDS...): the exit code of `quantsr upscale` on a small x4 network."""

    def run(*words: object) -> int:
        return cli.main(["upscale", *map(str, words), "--model", str(network_file)])

    return run


@pytest.fixture
def picture() -> Callable[..., NDArray[Any]]:
    """picture(height, width, dtype=uint8): smooth noise, (H, W, 3)."""

    def make(height: int, width: int, dtype: Any = np.uint8, seed: int = 0) -> NDArray[Any]:
        rng = np.random.default_rng(seed)
        y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        waves = np.stack([np.sin(y / (5 + c)) + np.cos(x / (7 - c)) for c in range(3)], 2)
        values = (waves + 2) / 4 + rng.normal(0, 0.05, (height, width, 3))
        top = np.iinfo(dtype).max
        return np.rint(values.clip(0, 1) * top).astype(dtype)

    return make
