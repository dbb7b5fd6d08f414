"""Odd and bad picture files, by a given random generator."""

from __future__ import annotations

import io
import random
import struct
from typing import Any

import cv2
import numpy as np
from PIL import Image

from tests.pictures.tiff import tiff

EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

FOREIGN: tuple[bytes, ...] = (
    b"",
    b"\0",
    b"not a picture",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n{} loop\n",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nnonsense\n",
    b"\xc5\xd0\xd3\xc6" + bytes(26) + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    b"%PDF-1.4\n",
    b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    b"\0\5\x16\7\0\2\0\0Mac OS X        ",
    b"8BPS\0\1" + bytes(30),
    b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {0};\n",
    b"\x89HDF\r\n\x1a\n" + bytes(60),
    b"\xd7\xcd\xc6\x9a" + bytes(60),
    b"SIMPLE  =                    T" + b" " * 50,
    b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;",
    b"P6\n2000000000 2000000000\n255\n",
    b"P5\n4 4\n65535\n" + bytes(32),
    b"Pf\n2 2\n-1.0\n" + bytes(16),
    b"BM" + struct.pack("<IIIIiiHHIIiiII", 70, 0, 54, 40, 0x7FFFFFFF, -0x80000000, 1, 24, 0, 0, 1, 1, 0, 0),
)


def odd_picture(rng: random.Random) -> tuple[bytes, str]:
    """The content of a picture, damaged picture or other file, and a suffix."""
    kind = rng.random()
    if kind < 0.06:
        return rng.choice(FOREIGN), rng.choice((".png", ".jpg", ".tif", ".webp", ".bmp"))
    if kind < 0.08:
        return rng.randbytes(rng.randrange(2000)), rng.choice((".png", ".jpg", ".tif"))
    content, suffix = whole_picture(rng)
    if rng.random() < 0.15:
        suffix = rng.choice((".png", ".jpg", ".tif", ".webp", ".bmp"))
    return (content if rng.random() < 0.2 else damaged(content, rng)), suffix


def whole_picture(rng: random.Random) -> tuple[bytes, str]:
    """A valid picture of a random kind, which may be unsupported, and its suffix."""
    make = rng.choice((_by_pillow, _by_pillow, _by_pillow, _deep, _tiff))
    return make(rng)


def _values(rng: random.Random, channels: int, dtype: Any = np.uint8) -> np.ndarray:
    shape = rng.choice(((1, 1), (1, 9), (9, 1), (8, 8), (13, 21), (24, 17)))
    generator = np.random.default_rng(rng.randrange(2**32))
    if np.dtype(dtype).kind == "f":
        return generator.random((*shape, channels)).astype(dtype)
    top = np.iinfo(dtype)
    values = generator.integers(top.min, top.max, (*shape, channels), dtype, endpoint=True)
    return values if rng.random() < 0.5 else values & values.dtype.type(top.max ^ (top.max >> 2))


def _by_pillow(rng: random.Random) -> tuple[bytes, str]:
    suffix, modes = rng.choice(
        (
            (".png", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
            (".jpg", ("L", "RGB", "CMYK")),
            (".webp", ("RGB", "RGBA")),
            (".tif", ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F", "I")),
            (".bmp", ("1", "L", "P", "RGB", "RGBA")),
            (".gif", ("L", "P", "RGBA")),
            (".ppm", ("1", "L", "RGB")),
        )
    )
    mode = rng.choice(modes)
    rgba = Image.fromarray(_values(rng, 4))
    source = rgba.convert("L") if mode in ("I;16", "F", "I", "LA") else rgba.convert("RGB")
    image = rgba if mode == "RGBA" else source.convert("I") if mode == "I;16" else source.convert(mode)
    options: dict[str, Any] = {}
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    if suffix in (".png", ".gif") and mode in ("1", "L", "P", "RGB") and rng.random() < 0.4:
        options["transparency"] = (1, 2, 3) if mode == "RGB" else rng.randrange(2)
    if suffix in (".png", ".tif", ".jpg") and rng.random() < 0.5:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((1, 2, 5, 6, 8) if suffix == ".tif" else (1, 3, 6, 9, 300))
        exif[0x0132] = "2020:01:01 00:00:00"
        options |= {"exif": exif, "dpi": (rng.choice((0, 72, 300)), 72)}
    if suffix in (".png", ".tif", ".webp", ".jpg", ".gif") and rng.random() < 0.2:
        options["icc_profile"] = rng.randbytes(40)
    if suffix == ".tif":
        options["compression"] = rng.choice(("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"))
    if suffix == ".jpg":
        options |= {"progressive": rng.random() < 0.3, "quality": rng.choice((20, 95))}
    if suffix == ".webp":
        options["lossless"] = rng.random() < 0.5
    if suffix in (".png", ".webp", ".tif", ".gif") and mode in ("L", "RGB", "RGBA") and rng.random() < 0.2:
        options |= {"save_all": True, "append_images": [image.rotate(180)] * rng.randrange(1, 3)}
    file = io.BytesIO()
    image.save(file, {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper()), **options)
    return file.getvalue(), suffix


def _deep(rng: random.Random) -> tuple[bytes, str]:
    suffix = rng.choice((".png", ".tif"))
    values = _values(rng, rng.choice((1, 3, 4)), np.uint16)
    return cv2.imencode(suffix, values)[1].tobytes(), suffix


def _tiff(rng: random.Random) -> tuple[bytes, str]:
    dtype = rng.choice((np.uint8, np.uint8, np.uint16, np.uint16, np.int16, np.uint32, np.float32))
    channels = rng.choice((1, 2, 3, 4, 5))
    extra = rng.choice((None, (0,), (1,), (2,))) if channels in (2, 4, 5) else None
    options: dict[str, Any] = {
        "order": rng.choice("<>"),
        "planar": rng.random() < 0.3,
        "tile": rng.choice((0, 0, 16)),
        "deflate": rng.random() < 0.5,
        "predictor": np.dtype(dtype).kind != "f" and rng.random() < 0.3,
        "photometric": rng.choice((*(None,) * 16, 0, 1, 2, 3, 5, 6, 8, 32803)),
    }
    return tiff(_values(rng, channels, dtype), extra=extra, **options), ".tif"


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content truncated, changed, lengthened, or with an extreme number in the header."""
    data = bytearray(content)
    kind = rng.randrange(6)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data) + 1)])
    if kind == 1:
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        place = rng.randrange(len(data))
        data[place : place + rng.randrange(64)] = rng.randbytes(rng.randrange(64))
    elif kind == 3:
        place = rng.randrange(min(len(data), 60))
        number = struct.pack(rng.choice("<>") + "I", rng.choice(EXTREMES))
        data[place : place + 4] = number[rng.choice((0, 2)) :]
    elif kind == 4:
        data += rng.randbytes(rng.randrange(400))
    else:
        data = bytearray(whole_picture(rng)[0][: rng.choice((4, 12, 40))] + data[rng.randrange(40) :])
    return bytes(data)
