"""The formats that are read, and what is checked before decoding."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Imported, a plugin is registered: Image.open then looks for no others.
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
"""Pillow's names of the formats that are read, whatever a file's suffix. No decoder among them runs
a program that the file holds or names, as those of EPS (Ghostscript) and others do."""

MAX_PIXELS = 1 << 28
"""Default of the largest picture that is read: 268 million pixels, 16384 x 16384."""

_LIMIT_VARIABLE = "QUANTSR_MAX_PIXELS"
_LOCK = threading.Lock()


class DamagedError(InputError):
    """A picture of a known format that cannot be decoded whole."""


class KindError(ValueError):
    """A kind of picture that is not decoded; `opened` makes it an InputError that names the
    file."""


def pixel_limit() -> int:
    """The largest number of pixels that is read: `QUANTSR_MAX_PIXELS` of the environment, or
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
    """The picture in an open file, its header read and its size checked, its pixels not yet
    decoded.

    Every exception of a decoder, here or in the body, is raised as the InputError of this picture.

    Args:
        name: of the file, for messages.
        limit: largest number of pixels; default `pixel_limit()`.

    Raises:
        InputError: another format, more pixels than the limit, or none.
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
    """`Image.open` with our list and limit. Pillow's own limit is a global, which others may rely
    on."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = (limit + 1) // 2  # it refuses more than twice as many
        try:
            return Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def number_of_frames(image: Image.Image) -> int:
    """How many pictures a file holds: frames of an animation, pages of a TIFF; 1 where that cannot
    be told.

    Some decoders walk through the file for it: decode `image` before, or not at all.
    """
    try:
        return max(1, int(getattr(image, "n_frames", 1)))
    except Exception:  # damaged behind the first picture
        return 1
