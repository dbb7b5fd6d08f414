"""The formats that are read, and checks before decoding."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Importing a plugin registers it: Image.open then imports no others.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from quantsr.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
"""Pillow's names of the formats that are read, independent of a file's suffix. None of the decoders
runs a program, unlike those of EPS (Ghostscript) and others."""

MAX_PIXELS = 1 << 28
"""Default of the largest picture that is read: 268 million pixels, 16384 x 16384."""

_LIMIT_VARIABLE = "QUANTSR_MAX_PIXELS"
_LOCK = threading.Lock()


class DamagedError(InputError):
    """A picture of a supported format that is damaged or truncated."""


class KindError(ValueError):
    """An unsupported kind of picture; `opened` turns it into an InputError that names the file."""


def pixel_limit() -> int:
    """The largest number of pixels that is read: the environment variable `QUANTSR_MAX_PIXELS`, or
    `MAX_PIXELS`.

    Raises:
        InputError: the variable is no positive integer.
    """
    text = os.environ.get(_LIMIT_VARIABLE, "")
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or not int(text):
        raise InputError(f"{_LIMIT_VARIABLE}: must be a positive integer, got {text!r}")
    return int(text)


@contextlib.contextmanager
def opened(file: BinaryIO, name: str | Path, limit: int | None = None) -> Iterator[Image.Image]:
    """The picture in an open file, with its header read and its size checked, not yet decoded.

    Every exception of a decoder, here or in the body, is raised as an InputError that names the
    file.

    Args:
        name: of the file, for messages.
        limit: largest number of pixels; default `pixel_limit()`.

    Raises:
        InputError: an unsupported format, more pixels than the limit, or none.
        DamagedError: the decoder failed.
    """
    limit = pixel_limit() if limit is None else limit
    try:
        with _open(file, limit) as image:
            width, height = image.size
            if width * height > limit:
                raise Image.DecompressionBombError
            if width * height == 0:
                raise ValueError(f"its size is {width}x{height}")
            yield image
    except InputError:
        raise
    except KindError as error:
        raise InputError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{name}: is not a picture this program can read; replace or remove the file "
            f"({', '.join(FORMATS)} of 8 or 16 bits per channel, unsigned and interleaved, are read)"
        ) from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{name}: has more than {limit} pixels; raise the limit ({_LIMIT_VARIABLE} in the environment, "
            "--max-pixels of 'quantsr upscale') where the file can be trusted"
        ) from None
    except MemoryError as error:
        raise InputError(f"{name}: needs more memory than there is; cut or shrink it") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(f"{name}: cannot be read ({reason}); is the file damaged?") from error


def _open(file: BinaryIO, limit: int) -> Image.Image:
    """`Image.open` with `FORMATS` and ``limit``. Pillow's own limit is global, and restored for
    other users of Pillow."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = (limit + 1) // 2  # Pillow refuses more than twice this number
        try:
            return Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def number_of_frames(image: Image.Image) -> int:
    """How many pictures a file holds: frames of an animation, pages of a TIFF; 1 where that is
    unknown.

    Some decoders seek through the file to count: decode `image` before, or not at all.
    """
    try:
        return max(1, int(getattr(image, "n_frames", 1)))
    except Exception:  # damaged after the first picture
        return 1
