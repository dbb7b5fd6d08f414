"""Pictures are decoded correctly or refused in one line, for upscaling and for training."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from quantsr.data.images import decode as decode_for_training
from quantsr.errors import InputError
from quantsr.pictures.decode import DecodedPicture, decode, read
from quantsr.pictures.formats import DamagedError
from tests.pictures.tiff import tiff

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (18, 23, 4), np.uint8)
DEEP = RNG.integers(0, 65536, (18, 23, 4), np.uint16)


def _decoded(content: bytes, **options) -> DecodedPicture:
    return decode(io.BytesIO(content), "a.x", **options)


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


LAYOUTS = [
    {},
    {"order": ">"},
    {"tile": 16},
    {"deflate": True},
    {"deflate": True, "predictor": True, "order": ">"},
    {"deflate": True, "predictor": True, "tile": 16},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("pixels", [RGBA, DEEP], ids=["8", "16"])
def test_tiffs_of_many_layouts_are_decoded(pixels: np.ndarray, channels: int, layout: dict) -> None:
    stored = pixels[..., :channels]
    content = tiff(stored, extra=(2,) if channels == 4 else None, **layout)
    picture = _decoded(content)
    np.testing.assert_array_equal(picture.rgb, stored.repeat(3, 2) if channels == 1 else stored[..., :3])
    assert (picture.alpha is None) == (channels < 4)
    if picture.alpha is not None:
        np.testing.assert_array_equal(picture.alpha, stored[..., 3])
    in_bytes = picture.rgb if pixels is RGBA else np.rint(picture.rgb / 257.0)
    np.testing.assert_array_equal(decode_for_training(content, "a.tif"), in_bytes)


@pytest.mark.parametrize("deflate", [False, True])
def test_planar_tiffs_are_decoded(deflate: bool) -> None:
    content = tiff(RGBA[..., :3], planar=True, deflate=deflate)
    np.testing.assert_array_equal(_decoded(content).rgb, RGBA[..., :3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(DEEP[..., :3], planar=True), "has 16 bits in separate planes; save it"),
        (tiff(RGBA[..., :2], planar=True, extra=(2,), deflate=True), "has separate planes that are not RGB"),
        (tiff(DEEP, photometric=5), "has 16 bits and is neither gray nor RGB nor RGBA"),
        (tiff(DEEP, extra=(1,)), "its 16-bit colours are multiplied by alpha"),
        (tiff(RGBA[..., 0].view(np.int8)), "holds signed integers"),
        (tiff(DEEP[..., 0].view(np.int16)), "holds signed integers"),
        (tiff(DEEP[..., 0].astype(np.float32)), "holds floating-point values"),
        (tiff(DEEP[..., 0].astype(np.uint32)), "has 32 bits per channel"),
        (tiff(DEEP[..., :3].astype(np.float32)), "is not a picture this program can read"),
        (b"P5\n2 2\n65535\n" + bytes(8), "has more than 256 levels"),
        (
            b"Pf\n2 2\n-1.0\n" + bytes(16),
            "(has more than 256 levels, or no integers|is not a picture)",
        ),  # Pillow 10.1
    ],
)
def test_unsupported_kinds_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=rf"^a\.x: {message}") as caught:
        _decoded(content)
    assert "damaged" not in str(caught.value)
    if content[:1] != b"P":
        with pytest.raises(InputError, match=message):
            decode_for_training(content, "a.x")


@pytest.mark.parametrize("pixels", [RGBA, DEEP], ids=["8", "16"])
def test_a_fourth_channel_declared_as_no_alpha_is_left_out(pixels: np.ndarray) -> None:
    """By its tag it is unspecified data; without the tag, as OpenCV writes it, it is alpha."""
    picture = _decoded(tiff(pixels, extra=(0,)))
    assert picture.alpha is None
    np.testing.assert_array_equal(picture.rgb, pixels[..., :3])
    assert picture.notes == ("has a channel that is neither colour nor alpha, which is left out",)
    np.testing.assert_array_equal(_decoded(tiff(pixels)).alpha, pixels[..., 3])


def test_a_second_channel_declared_as_no_alpha_is_left_out() -> None:
    assert _decoded(tiff(RGBA[..., :2], extra=(2,))).alpha is not None
    try:
        picture = _decoded(tiff(RGBA[..., :2], extra=(0,)))
    except InputError:  # Pillow 10.1 does not read it
        return
    assert picture.alpha is None
    assert picture.gray
    assert "neither colour nor alpha" in picture.notes[0]


def test_cmyk_has_no_alpha() -> None:
    for content in (
        tiff(RGBA, photometric=5),
        _saved(Image.fromarray(RGBA[..., :3]).convert("CMYK"), "JPEG"),
    ):
        picture = _decoded(content)
        assert picture.alpha is None
        assert picture.rgb.shape == RGBA[..., :3].shape


def test_colours_multiplied_by_alpha_are_divided_again() -> None:
    alpha = RGBA[..., 3:] | 0x80
    stored = np.rint(RGBA[..., :3] * (alpha / 255.0)).astype(np.uint8)
    picture = _decoded(tiff(np.concatenate([stored, alpha], 2), extra=(1,)))
    assert np.abs(picture.rgb.astype(int) - RGBA[..., :3]).max() <= 2
    np.testing.assert_array_equal(picture.alpha, alpha[..., 0])


def _pictures() -> dict[str, bytes]:
    image = Image.fromarray(RGBA[..., :3]).resize((120, 90))
    kinds: dict[str, tuple[str, dict]] = {
        "png": ("PNG", {}),
        "jpeg": ("JPEG", {}),
        "progressive": ("JPEG", {"progressive": True}),
        "webp": ("WEBP", {"lossless": True}),
        "lossy": ("WEBP", {}),
        "bmp": ("BMP", {}),
        "tiff": ("TIFF", {}),
        "gif": ("GIF", {}),
        "ppm": ("PPM", {}),
    }
    found = {name: _saved(image, kind, **options) for name, (kind, options) in kinds.items()}
    found["deep tiff"] = tiff(DEEP[..., :3])[:-200]
    return found


@pytest.mark.parametrize("part", [0.99, 0.6, 0.2])
@pytest.mark.parametrize("kind", list(_pictures()))
def test_truncated_files_are_refused(kind: str, part: float) -> None:
    content = _pictures()[kind]
    content = content[: int(len(content) * part)]
    with pytest.raises(InputError, match=r"^a\.x: "):
        _decoded(content)
    with pytest.raises(InputError, match=r"^a\.x: "):
        decode_for_training(content, "a.x")


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "tiff", "gif", "ppm"])
def test_truncated_files_are_accepted_with_accept_truncated(kind: str) -> None:
    content = _pictures()[kind]
    whole, picture = _decoded(content), _decoded(content[: len(content) // 2], accept_truncated=True)
    first = {"bmp": slice(-20, None), "gif": slice(0, 1)}.get(kind, slice(20))  # upwards; interlaced
    np.testing.assert_array_equal(picture.rgb[first], whole.rgb[first])
    assert not np.array_equal(picture.rgb, whole.rgb)
    assert "is truncated or damaged" in picture.notes[0]
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_png_whose_pixels_end_early_is_refused() -> None:
    """The file is complete, its pixel data is not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + bytes(range(30))) * 3)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 9, 8, 2, 0, 0, 0))
    content += chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(DamagedError, match="its pixels end early"):
        _decoded(content)
    picture = _decoded(content, accept_truncated=True)
    assert picture.rgb[:3].any()
    assert not picture.rgb[3:].any()


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 5), (9, 8), (23, 18)])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_valid_pngs_of_every_mode_and_size_are_decoded(mode: str, size: tuple[int, int]) -> None:
    image = Image.fromarray(RGBA).crop((0, 0, *size))
    image = (
        image if mode == "RGBA" else image.convert("RGB").convert("L" if mode == "LA" else mode).convert(mode)
    )
    content = _saved(image, "PNG")
    assert _decoded(content).rgb.shape == (size[1], size[0], 3)


def test_an_interlaced_png_is_decoded() -> None:
    """Adam7 of 5x5 gray pixels, written by hand: five passes are not empty."""
    values = RGBA[:5, :5, 0]
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    data = b"".join(
        b"\0" + row.tobytes() for x, y, dx, dy in passes for row in values[y::dy, x::dx] if row.size
    )
    header = struct.pack(">IIBBBBB", 5, 5, 8, 0, 0, 0, 1)

    def content(pixels: bytes) -> bytes:
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
            for kind, part in chunks
        )

    np.testing.assert_array_equal(_decoded(content(data)).rgb[..., 0], values)
    with pytest.raises(DamagedError):
        _decoded(content(data[:-1]))


@pytest.mark.parametrize(
    ("kind", "count"),
    [("PNG", 3), ("WEBP", 3), ("TIFF", 3), ("GIF", 3), ("PNG", 1)],
)
def test_of_several_pictures_the_first_is_used_with_a_note(kind: str, count: int, caplog) -> None:
    first = Image.fromarray(RGBA[..., :3]).quantize(8).convert("RGB")
    others = [first.rotate(90 * n) for n in range(1, count)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = _saved(first, kind, save_all=True, append_images=others, **options)
    picture = _decoded(content)
    if kind != "GIF":
        np.testing.assert_array_equal(picture.rgb, np.asarray(first))
    note = f"holds {count} pictures; only the first is used"
    assert picture.notes == ((note,) if count > 1 else ())
    if kind != "WEBP":  # of several pictures, which OpenCV decodes since 4.11
        decode_for_training(content, f"{kind}.{count}")
        assert (note in caplog.text) == (count > 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_transparent_colour_becomes_alpha(mode: str) -> None:
    image = Image.fromarray(RGBA[..., :3]).convert(mode)
    key = image.getpixel((0, 0)) if mode != "1" else int(image.getpixel((0, 0)) > 0)
    picture = _decoded(_saved(image, "PNG", transparency=key))
    values = np.asarray(image)
    same = (values == values[0, 0]) if values.ndim == 2 else (values == values[0, 0]).all(2)
    np.testing.assert_array_equal(picture.alpha, np.where(same, 0, 255))


def test_metadata_that_describes_the_photograph_is_kept() -> None:
    block = Image.Exif()
    block[0x010E], block[0x0132], block[0x0112], block[0x0100] = "harbour", "2020:01:01 00:00:00", 6, 4711
    block[0x8769] = {0x9003: "2019:12:31 23:59:59", 0xA002: 23, 0xA003: 18}
    content = _saved(Image.fromarray(RGBA[..., :3]), "JPEG", exif=block, dpi=(300, 300))
    picture = _decoded(content)
    assert picture.dpi == (300, 300)
    kept = Image.Exif()
    kept.load(picture.exif)
    assert dict(kept.get_ifd(0x8769)) == {0x9003: "2019:12:31 23:59:59"}
    assert {tag: value for tag, value in kept.items() if tag != 0x8769} == {
        0x010E: "harbour",
        0x0132: "2020:01:01 00:00:00",
    }


@pytest.mark.parametrize(("unit", "factor"), [(2, 1), (3, 2.54)])
def test_the_resolution_is_read_from_exif(unit: int, factor: float) -> None:
    block = Image.Exif()
    block[0x011A], block[0x011B], block[0x0128] = 200.0, 100.0, unit
    picture = _decoded(_saved(Image.fromarray(RGBA[..., :3]), "WEBP", exif=block))
    assert picture.dpi == pytest.approx((200 * factor, 100 * factor))


def test_of_an_mpo_file_the_first_picture_is_used() -> None:
    """MPO, a JPEG followed by another one."""
    image = Image.fromarray(RGBA[..., :3])
    content = _saved(image, "MPO", save_all=True, append_images=[image.rotate(180)])
    picture = _decoded(content)
    assert picture.notes == ("holds 2 pictures; only the first is used",)
    np.testing.assert_array_equal(picture.rgb, decode_for_training(content, "a.jpg"))


def test_layout_tags_of_a_tiff_are_no_metadata() -> None:
    content = _saved(Image.fromarray(RGBA[..., :3]), "TIFF", dpi=(96, 96))
    picture = _decoded(content)
    assert picture.exif is None
    assert picture.dpi == (96, 96)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: __import__("os").mkfifo(path)])
def test_paths_that_are_no_regular_files_are_named(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: is no regular file"):
        read(tmp_path / "a.png")
