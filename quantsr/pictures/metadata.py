"""Metadata that is kept when a picture is upscaled: resolution, and EXIF without entries that
describe the old pixels."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from PIL import Image

ORIENTATION = 0x0112
_IFDS = (0x8769, 0x8825)  # EXIF, GPS
# Entries of IFD0 that describe the photograph. Others describe the file (sizes, offsets,
# compression).
_DESCRIPTIVE = frozenset(
    {
        0x010E,  # ImageDescription
        0x010F,  # Make
        0x0110,  # Model
        0x0131,  # Software
        0x0132,  # DateTime
        0x013B,  # Artist
        0x4746,  # Rating
        0x8298,  # Copyright
        *range(0x9C9B, 0x9CA0),  # XPTitle, XPComment, XPAuthor, XPKeywords, XPSubject
    }
)
# Pixel dimensions, and the interoperability IFD, which Pillow does not write.
_OF_OLD_PIXELS = frozenset({0xA002, 0xA003, 0xA005})
_RESOLUTION = (0x011A, 0x011B)
_RESOLUTION_UNIT, _INCH, _CENTIMETRE = 0x0128, 2, 3


def exif_of(image: Image.Image) -> tuple[bytes | None, str | None]:
    """The EXIF block for the upscaled picture, None where there is nothing to keep; and the reason
    where the block is lost, else None.

    Orientation (which is applied), sizes, the thumbnail and the layout of a TIFF are left out.
    """
    try:
        entries = _entries(image.getexif(), _DESCRIPTIVE)
        return (_block(entries) if entries else None), None
    except Exception as error:  # damaged blocks raise nearly anything; the pixels are not affected
        return None, str(error).splitlines()[0] if str(error) else type(error).__name__


def tiff_entries(exif: bytes) -> dict[int, Any]:
    """The entries of an EXIF block, for a TIFF's own directory."""
    block = Image.Exif()
    block.load(exif)
    return _entries(block, frozenset(block))


def _entries(source: Image.Exif, tags: frozenset[int]) -> dict[int, Any]:
    """The entries of `tags` and of the two IFDs of `_IFDS`, in Pillow's form."""
    found: dict[int, Any] = {tag: _stored(source[tag]) for tag in sorted(tags & set(source) - set(_IFDS))}
    for ifd in _IFDS:
        entries = {
            tag: _stored(value) for tag, value in source.get_ifd(ifd).items() if tag not in _OF_OLD_PIXELS
        }
        if entries:
            found[ifd] = entries
    return found


def _block(entries: dict[int, Any]) -> bytes:
    block = Image.Exif()
    for tag, value in entries.items():
        block[tag] = value
    return block.tobytes()


def _stored(value: Any) -> Any:
    """Text encoded as Latin-1, as Pillow decodes it; Pillow itself would write ASCII with question
    marks."""
    return value.encode("latin-1", "replace") if isinstance(value, str) and not value.isascii() else value


def dpi_of(image: Image.Image) -> tuple[float, float] | None:
    """Dots per inch (x, y), where the file or its EXIF has plausible ones."""
    with contextlib.suppress(Exception):  # damaged EXIF raises nearly anything
        found: Any = image.info.get("dpi")
        if found is None:
            block = image.getexif()
            per_inch = {_INCH: 1.0, _CENTIMETRE: 2.54}[block.get(_RESOLUTION_UNIT, _INCH)]
            found = [float(block[tag]) * per_inch for tag in _RESOLUTION]
        x, y = (float(value) for value in found)
        # Pillow gives 1 for TIFFs without a resolution.
        if all(math.isfinite(value) and 1 < value < 65535 for value in (x, y)):
            return x, y
    return None


def with_resolution(exif: bytes | None, dpi: tuple[float, float]) -> bytes:
    """The EXIF block with the resolution added, for formats without another field for it."""
    entries = tiff_entries(exif) if exif else {}
    return _block(entries | dict(zip(_RESOLUTION, dpi, strict=True)) | {_RESOLUTION_UNIT: _INCH})
