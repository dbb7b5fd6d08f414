"""What `quantsr demo` makes of a dropped file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import quantsr
from quantsr.data.resize import imresize_uint8
from quantsr.demo import networks as module
from quantsr.demo.networks import Networks
from quantsr.errors import InputError

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (14, 18, 3), np.uint8)


def file_of(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def pixels_of(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


@pytest.mark.parametrize(("name", "depth"), [("four", 3), ("four", 1), ("two", 2)])
def test_a_picture_is_that_of_the_upscaler(
    name: str, depth: int, networks: Networks, network_files: list[Path]
) -> None:
    result = networks.enlarge(file_of(PIXELS), name, depth)
    file = next(file for file in network_files if file.stem == name)
    expected = quantsr.Upscaler(file, depth=depth, threads=1)
    np.testing.assert_array_equal(pixels_of(result.png), expected(PIXELS))
    assert (result.engine, result.size, result.notes) == (expected.engine, (18, 14), ())
    assert result.milliseconds > 0


def test_without_a_depth_it_is_bicubic_interpolation(networks: Networks) -> None:
    result = networks.enlarge(file_of(PIXELS), "two", None)
    np.testing.assert_array_equal(pixels_of(result.png), imresize_uint8(PIXELS, 2))
    assert result.engine == "bicubic"


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("depth", [2, None])
def test_gray_and_transparent_pictures_stay_so(channels: int, depth: int | None, networks: Networks) -> None:
    pixels = RNG.integers(1, 256, (9, 8, channels), np.uint8)
    result = networks.enlarge(file_of(pixels[..., 0] if channels == 1 else pixels), "two", depth)
    assert pixels_of(result.png).shape == (18, 16, *([channels] if channels > 1 else []))


def test_sixteen_bits_become_eight_and_the_profile_stays(networks: Networks) -> None:
    import cv2

    deep = PIXELS.astype(np.uint16) * 257
    done, data = cv2.imencode(".png", deep[..., ::-1])
    assert done
    result = networks.enlarge(data.tobytes(), "two", None)
    np.testing.assert_array_equal(pixels_of(result.png), imresize_uint8(PIXELS, 2))
    profile = b"a profile that nobody reads"
    tagged = networks.enlarge(file_of(PIXELS, icc_profile=profile), "two", 2)
    assert Image.open(io.BytesIO(tagged.png)).info["icc_profile"] == profile


@pytest.mark.parametrize(
    ("limit", "shape", "rows", "columns"),
    [
        (100, (20, 20), slice(5, 15), slice(5, 15)),
        (63, (14, 18), slice(3, 10), slice(4, 13)),
        (8, (1, 40), slice(0, 1), slice(16, 24)),
    ],
)
def test_of_a_large_picture_the_middle_is_used(
    limit: int,
    shape: tuple[int, int],
    rows: slice,
    columns: slice,
    networks: Networks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", limit)
    pixels = RNG.integers(0, 256, (*shape, 3), np.uint8)
    result = networks.enlarge(file_of(pixels), "two", None)
    part = pixels[rows, columns]
    np.testing.assert_array_equal(pixels_of(result.png), imresize_uint8(np.ascontiguousarray(part), 2))
    (note,) = result.notes
    whole, used = f"{shape[1]}x{shape[0]}", f"{part.shape[1]}x{part.shape[0]}"
    assert note.startswith(f"has {whole} pixels, of which the middle, {used}, is shown")


@pytest.mark.parametrize(
    ("data", "name", "depth", "message"),
    [
        (b"no picture", "two", 2, "the picture: is not a picture this program can read"),
        (file_of(PIXELS)[:-60], "two", 2, "the picture: cannot be read"),
        (file_of(PIXELS), "three", 2, "network: 'three' is not offered"),
        (file_of(PIXELS), "two", 7, "depth: 7 is not in this network"),
    ],
)
def test_bad_requests_are_named(data: bytes, name: str, depth: int, message: str, networks: Networks) -> None:
    with pytest.raises(InputError, match=message):
        networks.enlarge(data, name, depth)


def test_bad_networks_end_before_the_page_is_shown(network_files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or name"):
        Networks(["nonsense"])
    with pytest.raises(InputError, match="two networks of that name"):
        Networks([network_files[0], network_files[0]])
    with pytest.raises(InputError, match="engine: 'nonsense' is not known"):
        Networks(network_files, engine="nonsense")
