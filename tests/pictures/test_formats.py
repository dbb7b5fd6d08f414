"""Other formats, and pictures with more pixels than the limit, are never decoded."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quantsr.data.images import decode as decode_for_training
from quantsr.data.store import picture_size
from quantsr.errors import InputError, one_line
from quantsr.pictures import formats, names, whole
from quantsr.pictures.decode import decode
from quantsr.pictures.listing import list_images
from tests.pictures.tiff import tiff

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n{} loop\n"
RGB = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)


def _jpeg(**options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        POSTSCRIPT,
        b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(POSTSCRIPT)) + bytes(20) + POSTSCRIPT,
        b"%PDF-1.4\n",
    ],
)
def test_a_picture_starts_no_program(content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Independent of the suffix, and also where other code has registered Pillow's plugin."""
    Image.init()
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    for read in (lambda: decode(io.BytesIO(content), "a.png"), lambda: decode_for_training(content, "a.png")):
        with pytest.raises(InputError, match=r"^a\.png: is not a picture this program can read"):
            read()
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png: is not a picture"):
        picture_size(tmp_path / "a.png")


def test_formats_are_named_to_pillow_everywhere(repo_root: Path) -> None:
    """`Image.open` without a list of formats tries every plugin."""
    calls = [
        f"{path.relative_to(repo_root)}: {line.strip()}"
        for path in sorted((repo_root / "quantsr").rglob("*.py"))
        for line in path.read_text().splitlines()
        if "Image.open(" in line and "formats=" not in line and "`" not in line
    ]
    assert calls == []


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _huge_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + _chunk(b"IEND", b"")
    )


def _huge_tiff(width: int) -> bytes:
    return tiff(np.zeros((1, 1, 3), np.uint8), tags={256: ("I", (width,))})


def _huge_jpeg() -> bytes:
    content = _jpeg()
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + b"\xff\xdc\xff\xdc" + content[place + 4 :]


def _huge_webp() -> bytes:
    extended = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\xff\xff" * 2
    return b"RIFF" + struct.pack("<I", len(extended)) + extended


def _huge_bmp() -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 70, 0, 54, 40, 1 << 30, 1 << 30, 1, 24, 0, 0, 1, 1, 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        _huge_png(0x7FFFFFFF, 1),
        _huge_png(60000, 60000),
        _huge_tiff(1 << 31),
        _huge_tiff(0xFFFFFFFF),
        _huge_jpeg(),
        _huge_webp(),
        _huge_bmp(),
        b"P6\n2000000000 2000000000\n255\n",
        b"GIF89a\xff\xff\xff\xff\0\0\0!\xf9\4\x08\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;",
    ],
)
def test_huge_headers_are_refused_before_memory_is_allocated(content: bytes) -> None:
    tracemalloc.start()
    try:
        for read in (lambda: decode(io.BytesIO(content), "a.x"), lambda: decode_for_training(content, "a.x")):
            with pytest.raises(InputError, match=r"^a\.x: ") as caught:
                read()
            assert "\n" not in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_the_limit_counts_pixels_and_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    content, before = _jpeg(), Image.MAX_IMAGE_PIXELS
    assert decode(io.BytesIO(content), "a", limit=72).rgb.shape == (8, 9, 3)
    with pytest.raises(InputError, match=r"^a: has more than 71 pixels; raise the limit"):
        decode(io.BytesIO(content), "a", limit=71)
    monkeypatch.setenv("QUANTSR_MAX_PIXELS", "71")
    with pytest.raises(InputError, match="more than 71 pixels"):
        decode_for_training(content, "a")
    monkeypatch.setenv("QUANTSR_MAX_PIXELS", "72")
    assert decode_for_training(content, "a").shape == (8, 9, 3)
    assert before == Image.MAX_IMAGE_PIXELS
    for text in ("-1", "0", "1e6", "many"):
        monkeypatch.setenv("QUANTSR_MAX_PIXELS", text)
        with pytest.raises(InputError, match="QUANTSR_MAX_PIXELS: must be a positive integer"):
            formats.pixel_limit()


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), KeyError("x"), AssertionError()])
def test_every_exception_of_a_decoder_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.raises(InputError, match=r"^a\.jpg: (needs more memory|cannot be read \()"):
        decode(io.BytesIO(_jpeg()), "a.jpg")


def test_a_jpeg_without_its_end_marker_is_detected() -> None:
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
        content = _jpeg(comment=b"\xff\xd9" * 3, **options)
        assert whole.is_whole_jpeg(content)
        assert whole.is_whole_jpeg(content + b"trailer")
        for end in range(len(content) - 1):
            assert not whole.is_whole_jpeg(content[:end])


def test_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    Image.fromarray(RGB).save(tmp_path / ".hidden.png")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (tmp_path / "b.PNG").symlink_to("absent.png")
    (tmp_path / "c.png").mkdir()
    assert names.pictures_in(tmp_path) == list_images(tmp_path) == [tmp_path / "a.png"]


def test_names_are_escaped_to_one_line() -> None:
    assert one_line("a\nb\x1b[31m\udce9\u2028.png") == "a\\nb\\x1b[31m\\xe9\\u2028.png"
    assert one_line("C:\\new \u65e5\u672c \xe9.png") == "C:\\new \u65e5\u672c \xe9.png"
