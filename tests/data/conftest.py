"""Small folders of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

Maker = Callable[..., Path]


@pytest.fixture
def make_pictures(tmp_path: Path) -> Maker:
    """``make_pictures("name", [(h, w), ...], suffix=".png")`` writes random pictures p0, p1, ...
    and returns the folder."""

    def make(name: str, sizes: list[tuple[int, int]], suffix: str = ".png", seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, (height, width) in enumerate(sizes):
            cv2.imwrite(
                str(folder / f"p{number}{suffix}"), rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            )
        return folder

    return make
