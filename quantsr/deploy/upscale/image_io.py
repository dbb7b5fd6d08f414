"""Writing upscaled pictures, whole or in bands, with what travels beside the pixels; reading is
`quantsr.pictures`."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from quantsr.errors import InputError, WorkError
from quantsr.files import replacing
from quantsr.pictures import metadata
from quantsr.pictures.decode import DecodedPicture, Pixels, eight_bits, read

log = logging.getLogger(__name__)

__all__ = [
    "SUFFIXES",
    "DecodedPicture",
    "Pixels",
    "check_size",
    "check_type",
    "losses",
    "merge",
    "read",
    "write",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""Endings of the files that are written."""

NO_ALPHA = (".jpg", ".jpeg", ".bmp")
_DEEP = (".png", ".tif", ".tiff")
_TIFF = (".tif", ".tiff")
_METADATA = ("icc_profile", "exif", "tiffinfo", "dpi")
_STREAMED_BYTES = 256 << 20
_QUALITY: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".webp": {"lossless": True},
}
# Longest side, and bytes of uncompressed pixels, that a type can hold: libjpeg's own limit, 14 bits
# of WebP, 32-bit sizes in BMP and TIFF (signed inside OpenCV, which writes the 16-bit ones), 31
# bits of PNG.
_MAX_SIDE = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383, ".png": (1 << 31) - 1}
_MAX_BYTES = {".bmp": (1 << 32) - (1 << 12), ".tif": (1 << 31) - (1 << 16), ".tiff": (1 << 31) - (1 << 16)}


def merge(rgb: Pixels, alpha: Pixels | None, gray: bool) -> Pixels:
    """The channels to write: gray is the mean of the three outputs, alpha comes last. (h, w), (h,
    w, 2), (h, w, 3) or (h, w, 4)."""
    colour = np.rint(rgb.mean(2, dtype=np.float32, keepdims=True)).astype(rgb.dtype) if gray else rgb
    if alpha is not None:
        return np.concatenate([colour, alpha[..., None]], 2)
    return colour[..., 0] if gray else colour


def check_type(path: Path) -> None:
    """Raises InputError for a type of file that is not written."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown picture type {suffix!r}; use one of {', '.join(SUFFIXES)}")


def check_size(path: Path, shape: tuple[int, ...], itemsize: int) -> None:
    """Raises InputError where a file of this type cannot hold an array of this shape; nothing is
    computed yet."""
    suffix = path.suffix.lower()
    height, width = shape[:2]
    bytes_ = int(np.prod(shape, dtype=np.int64)) * (itemsize if suffix in _DEEP else 1)
    side, most = _MAX_SIDE.get(suffix), _MAX_BYTES.get(suffix)
    if side is not None and max(height, width) > side:
        raise InputError(
            f"{path}: {width}x{height} is more than the {side} pixels of a {suffix} file; write .png"
        )
    if most is not None and bytes_ > most:
        raise InputError(
            f"{path}: {width}x{height} has {bytes_} bytes, more than a {suffix} file holds; write .png"
        )


def losses(path: Path, picture: DecodedPicture) -> list[str]:
    """What a file of this type cannot keep of a picture, in words."""
    suffix = path.suffix.lower()
    deep = picture.rgb.itemsize > 1
    bare = suffix in _TIFF and deep  # written by OpenCV
    lost = []
    if deep and suffix not in _DEEP:
        lost.append("16 bits per channel")
    if picture.alpha is not None and suffix in NO_ALPHA:
        lost.append("transparency (the picture is put on white)")
    if picture.icc and (bare or suffix == ".bmp"):
        lost.append("the ICC profile")
    if picture.exif and (bare or suffix == ".bmp"):
        lost.append("EXIF")
    if picture.dpi and bare:
        lost.append("the resolution")
    return lost


def write(
    path: str | Path,
    shape: tuple[int, ...],
    dtype: Any,
    bands: Iterable[tuple[int, Pixels]],
    icc: bytes | None = None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """Write a picture given as bands (first row, rows) from top to bottom, whole or not at all;
    type by suffix.

    Large PNGs are written band by band and never held whole. JPEG gets quality 95 without chroma
    subsampling, WebP is lossless. A type without 16 bits or alpha gets 8 bits and no alpha.
    `losses` says which types keep profile, EXIF and resolution. Raises WorkError naming the file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    deep = np.dtype(dtype) == np.uint16
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # says that a name is too long before the work is done
        with replacing(path) as file:
            if suffix == ".png" and (deep or np.prod(shape) * np.dtype(dtype).itemsize > _STREAMED_BYTES):
                _stream_png(file, shape, np.dtype(dtype), bands, _png_chunks(icc, exif, dpi))
            else:
                whole = np.empty(shape, dtype)
                for top, band in bands:
                    whole[top : top + len(band)] = band
                _write_whole(file, suffix, whole, _pillow_options(suffix, icc, exif, dpi))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WorkError(f"{path}: cannot be written ({reason}); try another type or folder") from error


def _write_whole(file: BinaryIO, suffix: str, pixels: Pixels, options: dict[str, Any]) -> None:
    if pixels.dtype == np.uint16 and suffix in _TIFF:
        import cv2

        order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(
            pixels.shape[-1] if pixels.ndim == 3 else 1
        )
        if pixels.ndim == 3 and pixels.shape[2] == 2:
            pixels, order = np.concatenate([pixels[..., :1].repeat(3, 2), pixels[..., 1:]], 2), None
        done, data = cv2.imencode(suffix, pixels if order is None else cv2.cvtColor(pixels, order))
        if not done:
            raise ValueError("OpenCV cannot encode it")
        file.write(data.tobytes())
        return
    pixels = eight_bits(pixels)
    if suffix in NO_ALPHA and pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        pixels = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    image, kind = Image.fromarray(pixels), Image.registered_extensions()[suffix]
    try:
        image.save(file, kind, **options)
    except OSError:
        raise
    except Exception as error:
        bare = {key: value for key, value in options.items() if key not in _METADATA}
        if bare == options:
            raise ValueError(f"{kind} encoder: {error}") from error
        log.warning("%s encoder: %s; written without EXIF, ICC profile and resolution", kind, error)
        file.seek(0)
        file.truncate()
        image.save(file, kind, **bare)


def _pillow_options(
    suffix: str, icc: bytes | None, exif: bytes | None, dpi: tuple[float, float] | None
) -> dict[str, Any]:
    options = dict(_QUALITY.get(suffix, {}))
    if suffix == ".webp" and dpi:
        exif, dpi = metadata.with_resolution(exif, dpi), None
    if icc and suffix != ".bmp":
        options["icc_profile"] = icc
    if exif and suffix in _TIFF:
        options["tiffinfo"] = metadata.tiff_entries(exif)
    elif exif and suffix != ".bmp":
        options["exif"] = exif
    if dpi:
        options["dpi"] = dpi
    return options


def _png_chunks(
    icc: bytes | None, exif: bytes | None, dpi: tuple[float, float] | None
) -> list[tuple[bytes, bytes]]:
    """What stands before the pixels of a PNG, as (kind, data)."""
    chunks = []
    if icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if dpi:  # pixels per metre
        x, y = (round(value / 0.0254) for value in dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", x, y, 1)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    return chunks


def _stream_png(
    file: BinaryIO,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    bands: Iterable[tuple[int, Pixels]],
    extra: Iterable[tuple[bytes, bytes]],
) -> None:
    """PNG (ISO/IEC 15948) with filter "up" on every row: each byte less the one above it."""
    height, width = shape[:2]
    channels = shape[2] if len(shape) == 3 else 1
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(kind: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, dtype.itemsize * 8, colour_type, 0, 0, 0))
    for kind, data in extra:
        chunk(kind, data)
    packer = zlib.compressobj(3)
    above = np.zeros((1, width * channels * dtype.itemsize), np.uint8)
    for _, band in bands:
        for start in range(0, len(band), 256):
            part = np.ascontiguousarray(band[start : start + 256]).astype(dtype.newbyteorder(">"), copy=False)
            rows = part.view(np.uint8).reshape(len(part), -1)
            filtered = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
            filtered[:, 0] = 2
            filtered[:1, 1:] = rows[:1] - above
            filtered[1:, 1:] = rows[1:] - rows[:-1]
            above = rows[-1:].copy()
            if data := packer.compress(filtered.data):
                chunk(b"IDAT", data)
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")
