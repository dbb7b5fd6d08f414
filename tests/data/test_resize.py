"""MATLAB's bicubic: compared with the slow reference, and with MATLAB's own files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from quantsr.data.resize import contributions, imresize_uint8, mod_crop
from tests.reference import resize as reference


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 2, 3, 4, 1.5, 0.37, 0.1])
@pytest.mark.parametrize("shape", [(31, 29, 3), (1, 1, 3), (24, 5, 1), (3, 40, 4)])
def test_equals_the_slow_reference(scale: float, shape: tuple[int, ...]) -> None:
    img = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    result = imresize_uint8(img, scale)
    np.testing.assert_array_equal(result, reference.imresize_uint8(img, scale))


def test_many_blocks_and_symmetric_padding_equal_the_slow_reference() -> None:
    img = np.random.default_rng(2).integers(0, 256, (203, 6, 1), dtype=np.uint8)
    for scale in (1 / 3, 2):
        np.testing.assert_array_equal(imresize_uint8(img, scale), reference.imresize_uint8(img, scale))


def test_rows_come_first_and_are_rounded() -> None:
    img = np.random.default_rng(3).integers(0, 256, (64, 64, 1), dtype=np.uint8)
    transposed = imresize_uint8(np.ascontiguousarray(img.swapaxes(0, 1)), 1 / 4).swapaxes(0, 1)
    assert (
        np.count_nonzero(transposed != imresize_uint8(img, 1 / 4)) > 5
    )  # the order matters, or it was not rounded


def test_a_half_is_rounded_up() -> None:
    _, weights = contributions(8, 0.5)
    assert weights.shape[1] == 8
    np.testing.assert_array_equal(weights.sum(axis=1), 1.0)
    ties = np.array([[0], [1]], np.uint8)
    assert imresize_uint8(ties, 0.5)[0, 0] == 1  # 0.5 exactly, by symmetry


def test_a_constant_and_a_grey_picture_keep_their_shape_and_value() -> None:
    img = np.full((13, 7), 201, np.uint8)
    for scale in (1 / 2, 1 / 3, 3):
        result = imresize_uint8(img, scale)
        assert result.shape == (int(np.ceil(13 * scale)), int(np.ceil(7 * scale)))
        assert set(np.unique(result)) == {201}


def test_the_result_is_a_copy_and_the_input_is_unchanged() -> None:
    img = np.random.default_rng(4).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    before = img.copy()
    assert not np.shares_memory(imresize_uint8(img, 1), img)
    imresize_uint8(img[:, ::2], 1 / 2)
    np.testing.assert_array_equal(img, before)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), np.zeros(4, np.uint8)]
)
def test_other_arrays_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 of shape"):
        imresize_uint8(bad, 2)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        imresize_uint8(np.zeros((4, 4, 3), np.uint8), scale)


def test_mod_crop_keeps_the_top_left() -> None:
    img = np.arange(13 * 10).reshape(13, 10).astype(np.uint8)
    np.testing.assert_array_equal(mod_crop(img, 4), img[:12, :8])


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_set5_equals_matlab_bit_for_bit(data_root: Path, scale: int) -> None:
    pictures = sorted((data_root / "benchmark/Set5/HR").glob("*.png"))
    assert len(pictures) == 5
    for path in pictures:
        matlab = cv2.imread(str(data_root / f"benchmark/Set5/LR_bicubic/X{scale}/{path.stem}x{scale}.png"))
        ours = imresize_uint8(mod_crop(cv2.imread(str(path)), scale), 1 / scale)
        np.testing.assert_array_equal(ours, matlab)
