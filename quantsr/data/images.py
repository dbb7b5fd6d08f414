"""Finding and reading picture files, by OpenCV, as uint8 RGB."""

from __future__ import annotations

import functools
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import cv2

from quantsr.data.resize import U8
from quantsr.errors import InputError, WorkError
from quantsr.files import read_bytes, write_bytes
from quantsr.paths import expanded
from quantsr.pictures import opencv
from quantsr.pictures.decode import decode as decode_whole
from quantsr.pictures.decode import eight_bits
from quantsr.pictures.formats import DamagedError, number_of_frames, opened, pixel_limit
from quantsr.pictures.whole import is_whole_jpeg

logger = logging.getLogger(__name__)

# Pictures are decoded in threads already, and OpenCV's own threads do not work in a forked loader
# process.
cv2.setNumThreads(0)

_DECODED_BY_PILLOW = ("TIFF", "GIF")
_BYTES_OF_A_PIXEL, _BYTES_BESIDE = 16, 1 << 26  # more than any file of one picture has


def as_folders(roots: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """One folder or many, with ``~`` expanded."""
    if isinstance(roots, (str, os.PathLike)):
        roots = [roots]
    return [expanded(root) for root in roots]


def decode(content: bytes | memoryview, name: str | Path) -> U8:
    """Decodes a picture file's bytes to ``(H, W, 3)`` uint8 RGB; grey becomes three equal channels,
    alpha is dropped.

    OpenCV decodes, as in BasicSR, but not TIFF, of which it decodes some kinds wrongly, nor GIF,
    which it supports only since 4.11. Where a file holds several pictures the first is used, with a
    warning.

    Raises:
        InputError: the file is truncated or damaged, of an unsupported format, or larger than
            `quantsr.pictures.formats` allows.
    """
    if not len(content):
        raise InputError(f"{name}: is empty; replace or remove the file")
    with opened(io.BytesIO(content), name) as image:
        kind = image.format
        if kind in ("JPEG", "MPO") and not is_whole_jpeg(content):
            raise DamagedError(f"{name}: is truncated; replace or remove the file")
        if kind not in _DECODED_BY_PILLOW:
            img = cv2.cvtColor(opencv.decode(content, opencv.AS_RGB), cv2.COLOR_BGR2RGB)
        frames = number_of_frames(image)
    if frames > 1:
        _warn_once(f"{name}: holds {frames} pictures; only the first is used")
    return eight_bits(decode_whole(io.BytesIO(content), name).rgb) if kind in _DECODED_BY_PILLOW else img


@functools.lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    """Log a warning once: pictures are decoded many times where they do not fit into memory."""
    logger.warning("%s", message)


def read_rgb(path: Path) -> U8:
    """Reads a picture as ``(H, W, 3)`` uint8 RGB.

    Raises:
        InputError: the file is absent or cannot be decoded.
    """
    try:
        content = read_bytes(path, limit=_BYTES_OF_A_PIXEL * pixel_limit() + _BYTES_BESIDE)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check the path") from None
    return decode(content, path)


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels by the file's header; EXIF orientation may swap them when the
    picture is decoded.

    Raises:
        InputError: the file cannot be opened, or is no picture of a supported format.
    """
    try:
        with path.open("rb") as file, opened(file, path) as image:
            return int(image.height), int(image.width)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check the path") from None


def encode_png(img: U8, compression: int = 3) -> bytes:
    """``(H, W, 3)`` uint8 RGB to the bytes of a PNG file; compression 0 (none) to 9."""
    done, content = cv2.imencode(
        ".png", cv2.cvtColor(img, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, compression]
    )
    if not done:
        raise WorkError("PNG encoding failed")
    return content.tobytes()


def write_file(path: Path, content: bytes) -> None:
    """Writes a picture completely or not at all; makes its folder where it is missing.

    Raises:
        WorkError: it could not be written.
    """
    write_bytes(path, content, sync=False)


def is_written(path: Path) -> bool:
    """Whether the file exists and is not empty, as a power failure can leave it."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
