"""What a file holds beside its pixels survives reading and writing."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from quantsr.deploy.upscale import image_io
from quantsr.errors import InputError, WorkError
from quantsr.pictures import transparency

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (9, 13, 4), np.uint8)
DEEP = RNG.integers(0, 65536, (9, 13, 4), np.uint16)
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LOSSLESS = [".png", ".tif", ".webp"]


def _save(image: Image.Image, path: Path, **options) -> Path:
    if path.suffix == ".webp":
        options["lossless"] = True
    image.save(path, **options)
    return path


def _write(path: Path, pixels: np.ndarray, icc: bytes | None = None, bands: int = 1) -> None:
    parts = np.array_split(np.arange(len(pixels)), bands)
    image_io.write(path, pixels.shape, pixels.dtype, ((int(rows[0]), pixels[rows]) for rows in parts), icc)


@pytest.mark.parametrize("suffix", [*LOSSLESS, ".bmp"])
def test_rgb_round_trip(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    _write(path, RGBA[..., :3], ICC)
    picture = image_io.read(path)
    np.testing.assert_array_equal(picture.rgb, RGBA[..., :3])
    assert picture.alpha is None
    assert not picture.gray
    assert picture.icc == (None if suffix == ".bmp" else ICC)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_alpha_round_trip(suffix: str, tmp_path: Path) -> None:
    pixels = RGBA.copy()
    pixels[..., 3] |= 1  # WebP drops the colour of what is wholly transparent
    _write(tmp_path / f"a{suffix}", pixels)
    picture = image_io.read(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(np.dstack([picture.rgb, picture.alpha]), pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_gray_round_trip(suffix: str, tmp_path: Path) -> None:
    _write(tmp_path / f"a{suffix}", RGBA[..., 0])
    picture = image_io.read(tmp_path / f"a{suffix}")
    assert picture.gray
    np.testing.assert_array_equal(picture.rgb, RGBA[..., :1].repeat(3, 2))


def test_gray_with_alpha(tmp_path: Path) -> None:
    path = _save(Image.fromarray(RGBA[..., :2]), tmp_path / "a.png")
    picture = image_io.read(path)
    assert picture.gray
    np.testing.assert_array_equal(picture.alpha, RGBA[..., 1])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_round_trip(suffix: str, channels: int, tmp_path: Path) -> None:
    pixels = DEEP[..., 0] if channels == 1 else DEEP[..., :channels]
    _write(tmp_path / f"a{suffix}", pixels, ICC, bands=3)
    picture = image_io.read(tmp_path / f"a{suffix}")
    assert picture.rgb.dtype == np.uint16
    np.testing.assert_array_equal(image_io.merge(picture.rgb, picture.alpha, picture.gray), pixels)
    assert picture.icc == (ICC if suffix == ".png" else None)


def test_sixteen_bit_gray_with_alpha(tmp_path: Path) -> None:
    _write(tmp_path / "a.png", DEEP[..., :2])
    picture = image_io.read(tmp_path / "a.png")
    assert picture.gray
    np.testing.assert_array_equal(image_io.merge(picture.rgb, picture.alpha, True), DEEP[..., :2])


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(transparent: bool, tmp_path: Path) -> None:
    palette = Image.fromarray(RGBA[..., :3]).quantize(16)
    path = _save(palette, tmp_path / "a.png", **({"transparency": 3} if transparent else {}))
    picture = image_io.read(path)
    np.testing.assert_array_equal(picture.rgb, np.asarray(palette.convert("RGB")))
    if transparent:
        np.testing.assert_array_equal(picture.alpha == 0, np.asarray(palette) == 3)
    else:
        assert picture.alpha is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("deep", [False, True])
def test_exif_orientation(orientation: int, suffix: str, deep: bool, tmp_path: Path) -> None:
    """What Pillow makes of the stored pixels is upright; 16-bit pictures are turned the same
    way."""
    upright = Image.fromarray(RGBA[..., 0])
    transpose = {
        2: 0,
        3: 3,
        4: 1,
        5: 5,
        6: 2,
        7: 6,
        8: 4,
    }  # how an upright picture is stored: Pillow's Transpose, inverse
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(transpose[orientation]))
    pixels = np.asarray(stored)
    if deep:
        stored = Image.fromarray(pixels.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(stored, tmp_path / f"a{suffix}", exif=exif)
    picture = image_io.read(path)
    assert picture.rgb.itemsize == (2 if deep else 1)
    np.testing.assert_array_equal(picture.rgb[..., 0] // (257 if deep else 1), RGBA[..., 0])


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_exif_that_is_malformed_elsewhere_turns_the_picture(suffix: str, tmp_path: Path) -> None:
    """A resolution unit stored as a float cannot be written again, nor need it be."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHIf", 0x0128, 11, 1, 2)
    data = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    path = _save(Image.fromarray(RGBA[..., :3]), tmp_path / f"a{suffix}", exif=data)
    with Image.open(path) as image, pytest.raises(struct.error):
        image.getexif().tobytes()
    with Image.open(path) as image:
        expected = np.rot90(np.asarray(image), -1)
    np.testing.assert_array_equal(image_io.read(path).rgb, expected)


def test_exif_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image.Image, "getexif", lambda _: struct.unpack("<I", b""))
    with pytest.raises(InputError, match=r"a\.bmp: cannot be read \(unpack requires"):
        image_io.read(_save(Image.fromarray(RGBA[..., 0]), tmp_path / "a.bmp"))


def _deep_tiff(path: Path, pixels: np.ndarray, tag: int, *, instead_of: int, value: int) -> Path:
    """A TIFF of which one tag, whose value is 1, is another one."""
    _write(path, pixels)
    old, new = (struct.pack("<HHIHH", *entry, 0) for entry in ((instead_of, 3, 1, 1), (tag, 3, 1, value)))
    assert path.read_bytes().count(old) == 1
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def test_sixteen_bit_gray_whose_zero_is_white(tmp_path: Path) -> None:
    path = _deep_tiff(tmp_path / "a.tif", DEEP[..., 0], 262, instead_of=262, value=0)
    np.testing.assert_array_equal(image_io.read(path).rgb, 65535 - DEEP[..., :1].repeat(3, 2))


def test_sixteen_bits_with_a_sign_are_refused(tmp_path: Path) -> None:
    path = _deep_tiff(tmp_path / "a.tif", DEEP[..., 0], 339, instead_of=339, value=2)
    with pytest.raises(InputError, match=r"a\.tif: holds signed integers; save it with"):
        image_io.read(path)


def test_sixteen_bit_colours_multiplied_by_alpha_are_refused(tmp_path: Path) -> None:
    of_planes = 284  # its default is what stands there
    path = _deep_tiff(tmp_path / "a.tif", DEEP, 338, instead_of=of_planes, value=1)
    with pytest.raises(InputError, match=r"a\.tif: its 16-bit colours are multiplied by alpha; save it with"):
        image_io.read(path)
    path = _deep_tiff(tmp_path / "b.tif", DEEP, 338, instead_of=of_planes, value=2)
    np.testing.assert_array_equal(image_io.read(path).alpha, DEEP[..., 3])


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_colour_that_is_transparent(channels: int, tmp_path: Path) -> None:
    pixels = DEEP[..., 0] if channels == 1 else DEEP[..., :3]
    _write(tmp_path / "a.png", pixels)
    data = (tmp_path / "a.png").read_bytes()
    chunk = b"tRNS" + DEEP[0, 0, :channels].astype(">u2").tobytes()
    chunk = struct.pack(">I", 2 * channels) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])  # behind IHDR
    picture = image_io.read(tmp_path / "a.png")
    assert picture.gray == (channels == 1)
    np.testing.assert_array_equal(picture.rgb[..., :channels], DEEP[..., :channels])
    same = (DEEP[..., :channels] == DEEP[0, 0, :channels]).all(2)
    np.testing.assert_array_equal(picture.alpha, np.where(same, 0, 65535))


def test_cmyk_becomes_rgb_without_its_profile(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, icc_profile=ICC, quality=100)
    picture = image_io.read(path)
    assert picture.icc is None
    assert (np.abs(picture.rgb.astype(int) - (255, 0, 0)) < 8).all()


def test_jpeg_keeps_profile_and_loses_alpha_aloud(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture = image_io.DecodedPicture(DEEP[..., :3], DEEP[..., 3], icc=ICC, exif=b"Exif", dpi=(72, 72))
    white = "transparency (the picture is put on white)"
    assert image_io.losses(path, picture) == ["16 bits per channel", white]
    assert image_io.losses(tmp_path / "a.png", picture) == []
    assert image_io.losses(tmp_path / "a.tif", picture) == ["the ICC profile", "EXIF", "the resolution"]
    assert image_io.losses(tmp_path / "a.bmp", picture) == [
        "16 bits per channel",
        white,
        "the ICC profile",
        "EXIF",
    ]
    _write(path, DEEP, ICC)
    picture = image_io.read(path)
    assert (picture.rgb.dtype, picture.alpha, picture.icc) == (np.uint8, None, ICC)


@pytest.mark.parametrize("bands", [1, 2, 9])
@pytest.mark.parametrize("shape", [(9, 13), (9, 13, 2), (9, 13, 3), (9, 13, 4)])
def test_png_in_bands_is_what_other_readers_read(
    shape: tuple[int, ...], bands: int, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(image_io, "_STREAMED_BYTES", 0)
    pixels = RGBA[..., 0] if len(shape) == 2 else RGBA[..., : shape[2]]
    _write(tmp_path / "a.png", pixels, ICC, bands)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
        assert image.info["icc_profile"] == ICC
    if len(shape) == 3 and shape[2] == 3:
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], pixels)


def test_alpha_in_parts_equals_the_whole() -> None:
    alpha = RNG.integers(0, 256, (30, 11), np.uint8)
    whole = transparency.scale_alpha(alpha, 4)
    parts = [transparency.scale_alpha(alpha, 4, first, min(120, first + 28)) for first in range(0, 120, 28)]
    assert whole.shape == (120, 44)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\nnonsense"])
def test_unreadable_files_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png: (is not a picture|cannot be read)"):
        image_io.read(tmp_path / "a.png")


def test_truncated_files_are_named(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(RGBA).resize((200, 200)).save(data, "PNG")
    (tmp_path / "a.png").write_bytes(data.getvalue()[:3000])
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        image_io.read(tmp_path / "a.png")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def bands():
        yield 0, RGBA[:4, :, :3]
        raise OSError("disk full")

    with pytest.raises(WorkError, match=r"a\.png: cannot be written \(disk full\)"):
        image_io.write(tmp_path / "a.png", (9, 13, 3), np.uint8, bands())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"absent/a\.png: cannot be written \(No such file or directory\)"):
        _write(tmp_path / "absent" / "a.png", RGBA)


def test_names_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 251}.png"
    _write(path, RGBA)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "shape", "itemsize", "fits"),
    [
        ("a.jpg", (4, 65500, 3), 1, True),
        ("a.jpg", (4, 65501, 3), 1, False),
        ("a.JPEG", (65501, 4), 1, False),
        ("a.webp", (16383, 16383, 4), 1, True),
        ("a.webp", (4, 16384, 3), 1, False),
        ("a.tif", (30000, 30000, 3), 1, False),
        ("a.tif", (20000, 20000, 3), 1, True),
        ("a.tif", (20000, 20000, 3), 2, False),
        ("a.bmp", (40000, 40000, 3), 1, False),
        ("a.png", (100000, 100000, 4), 2, True),
    ],
)
def test_what_a_type_holds_is_known_before_the_work(
    name: str, shape: tuple[int, ...], itemsize: int, fits: bool
) -> None:
    if fits:
        image_io.check_size(Path(name), shape, itemsize)
        return
    with pytest.raises(InputError, match=rf"{name}: {shape[1]}x{shape[0]} .*; write \.png"):
        image_io.check_size(Path(name), shape, itemsize)


def test_the_longest_sides_are_those_of_the_encoders(tmp_path: Path) -> None:
    for suffix, side in ((".jpg", 65500), (".webp", 16383)):
        _write(tmp_path / f"a{suffix}", np.zeros((1, side, 3), np.uint8))
        with pytest.raises(WorkError):
            _write(tmp_path / f"b{suffix}", np.zeros((1, side + 1, 3), np.uint8))


def _exif() -> bytes:
    block = Image.Exif()
    block[0x010E], block[0x0112] = "H\u00e5vn \u00a9".encode(), 1
    block[0x8769] = {0x9003: "2020:01:01 00:00:00"}
    return block.tobytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", "streamed .png"])
def test_exif_and_resolution_are_what_other_readers_read(suffix: str, tmp_path: Path, monkeypatch) -> None:
    if suffix.startswith("streamed"):
        monkeypatch.setattr(image_io, "_STREAMED_BYTES", 0)
    path = tmp_path / f"a{suffix.split()[-1]}"
    pixels = RGBA[..., :3]
    image_io.write(path, pixels.shape, np.uint8, [(0, pixels)], ICC, _exif(), (300.0, 150.0))
    with Image.open(path) as image:
        block = image.getexif()
        assert block[0x010E].encode("latin-1").decode() == "H\u00e5vn \u00a9"
        assert block.get_ifd(0x8769)[0x9003] == "2020:01:01 00:00:00"
        assert image.info["icc_profile"] == ICC
        x, y = image.info.get("dpi") or (block[0x011A], block[0x011B])
        assert (round(x), round(y)) == (300, 150)


def test_files_without_metadata_are_byte_for_byte_the_encoders(tmp_path: Path) -> None:
    pixels = RGBA[..., :3]
    for suffix, kind, options in (
        (".png", "PNG", {}),
        (".tif", "TIFF", {}),
        (".bmp", "BMP", {}),
        (".webp", "WEBP", {"lossless": True}),
    ):
        _write(tmp_path / f"a{suffix}", pixels)
        expected = io.BytesIO()
        Image.fromarray(pixels).save(expected, kind, **options)
        assert (tmp_path / f"a{suffix}").read_bytes() == expected.getvalue()


def test_metadata_that_an_encoder_refuses_is_left_out_aloud(tmp_path: Path, caplog) -> None:
    path = tmp_path / "a.jpg"
    pixels = RGBA[..., :3]
    image_io.write(path, pixels.shape, np.uint8, [(0, pixels)], exif=b"Exif\0\0" + bytes(70000))
    assert image_io.read(path).rgb.shape == pixels.shape
    assert "written without EXIF" in caplog.text
