"""Decoding a picture file to RGB, the network's input, with alpha and metadata beside it.

Pillow decodes 8-bit files and reads all metadata. 16-bit files, whose colours Pillow would reduce
to 8 bits, are decoded by OpenCV after Pillow has decoded them without an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from quantsr.errors import InputError
from quantsr.pictures import metadata, tiff
from quantsr.pictures.formats import DamagedError, KindError, number_of_frames, opened
from quantsr.pictures.whole import is_whole_png

Pixels = NDArray[Any]

_PNG_GRAY_WITH_ALPHA = 4
_CONVERTED = ("CMYK", "YCbCr", "LAB", "HSV")


@dataclass(frozen=True, eq=False)
class DecodedPicture:
    """A decoded file, upright."""

    rgb: Pixels
    """(H, W, 3) uint8 or uint16; a gray picture has three equal channels."""
    alpha: Pixels | None = None
    """(H, W), same type; None where the picture is opaque."""
    gray: bool = False
    """Whether the file had one colour channel; the upscaled file then has one too."""
    icc: bytes | None = None
    exif: bytes | None = None
    """The entries that `metadata.exif_of` keeps."""
    dpi: tuple[float, float] | None = None
    """Dots per inch (x, y)."""
    notes: tuple[str, ...] = ()
    """Descriptions of content of the file that is not in this picture."""


def read(path: str | Path, *, limit: int | None = None, accept_truncated: bool = False) -> DecodedPicture:
    """`decode` of a file on disk. Raises InputError also where it cannot be opened."""
    path = Path(path)
    # opening a pipe would wait for its writer
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: is no regular file; give a picture")
    try:
        with path.open("rb") as file:
            return decode(file, path, limit=limit, accept_truncated=accept_truncated)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); check the file") from error


def decode(
    file: BinaryIO, name: str | Path, *, limit: int | None = None, accept_truncated: bool = False
) -> DecodedPicture:
    """Decode the first picture of a file, apply its EXIF orientation, expand palettes.

    Args:
        file: seekable. Not a path: for paths, Pillow maps uncompressed TIFFs into memory and does
            not apply their orientation.
        name: for messages.
        limit: see `formats.opened`.
        accept_truncated: decode a file that ends early as far as possible, the rest black.

    Raises:
        InputError: see `formats.opened`, or an unsupported kind of TIFF.
        DamagedError: the file is truncated or damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _decode(file, name, limit)
        except DamagedError as error:
            if not accept_truncated:
                raise
            reason = str(error.__cause__)
        with _truncated_files_accepted():
            picture = _decode(file, name, limit)
    note = f"is truncated or damaged ({reason}); what is missing is filled with black"
    return dataclasses.replace(picture, notes=(note, *picture.notes))


def eight_bits(pixels: Pixels) -> Pixels:
    """uint16 values rounded to uint8; uint8 values unchanged."""
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257.0).astype(np.uint8)


@contextlib.contextmanager
def _truncated_files_accepted() -> Iterator[None]:
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _decode(file: BinaryIO, name: str | Path, limit: int | None) -> DecodedPicture:
    frames = _number_of_frames(file, name, limit)
    file.seek(0)
    head = file.read(26)
    file.seek(0)
    with opened(file, name, limit) as image:
        deep = _is_deep(image, head)
        icc, colour_space, dpi = image.info.get("icc_profile"), image.mode, metadata.dpi_of(image)
        notes = [f"holds {frames} pictures; only the first is used"] if frames > 1 else []
        image.load()  # applies the orientation of TIFFs, and removes the tag
        if image.format == "PNG" and not ImageFile.LOAD_TRUNCATED_IMAGES and not is_whole_png(file):
            raise ValueError("its pixels end early")
        if deep:
            pixels = _deep_pixels(image, file, head)
        else:
            pixels = _plain_pixels(image)
        if image.format == "TIFF" and tiff.has_other_channels(image.tag_v2):  # type: ignore[attr-defined]
            notes.append("has a channel that is neither colour nor alpha, which is left out")
        if icc and colour_space in ("CMYK", "LAB"):  # it does not describe the RGB result
            icc = None
            notes.append(f"is converted from {colour_space} without its ICC profile, which cannot be kept")
        exif, lost = metadata.exif_of(image)
        if lost is not None:
            notes.append(f"has EXIF that cannot be kept ({lost})")
        return dataclasses.replace(_split(pixels), icc=icc, exif=exif, dpi=dpi, notes=tuple(notes))


def _number_of_frames(file: BinaryIO, name: str | Path, limit: int | None) -> int:
    with opened(file, name, limit) as image:  # opened again: counting seeks to other frames
        return number_of_frames(image)


def _is_deep(image: Image.Image, head: bytes) -> bool:
    """Whether the file has 16 bits per channel (Pillow has no modes for such colours)."""
    if image.format == "PNG":
        return head[24:25] == b"\x10"
    if image.format == "TIFF":
        return tiff.is_deep(image.tag_v2)  # type: ignore[attr-defined]
    if image.format == "PPM" and (image.mode.startswith(("I", "F")) or _levels(image) > 256):
        raise KindError("has more than 256 levels, or no integers; save it as PNG or TIFF")
    return False


def _levels(image: Image.Image) -> int:
    """Number of levels of a PPM, 0 where unknown. Pillow reduces more than 256 levels to 256."""
    arguments = image.tile[0][3] if image.tile else ()  # type: ignore[attr-defined]
    top = arguments[1] if isinstance(arguments, tuple) and len(arguments) > 1 else 0
    return int(top) + 1 if isinstance(top, int) else 0


def _plain_pixels(image: Image.Image) -> Pixels:
    orientation = image.getexif().get(metadata.ORIENTATION, 1)
    if image.mode in _CONVERTED:
        image = _with_format(image.convert("RGB"), image)
    if image.mode.startswith(("I", "F")):
        raise KindError(f"has 32 bits per channel (mode {image.mode}); save it with 8 or 16 bits, unsigned")
    transparent = image.has_transparency_data
    if image.format == "TIFF" and "A" in image.getbands():
        transparent = tiff.has_alpha(image.tag_v2)  # type: ignore[attr-defined]
    gray = image.mode in ("1", "L", "LA", "La")
    mode = ("L" if gray else "RGB") + ("A" if transparent else "")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return _apply_orientation(pixels, orientation)


def _with_format(converted: Image.Image, original: Image.Image) -> Image.Image:
    converted.format = original.format
    return converted


def _deep_pixels(image: Image.Image, file: BinaryIO, head: bytes) -> Pixels:
    # on demand: OpenCV loads slowly, and most pictures do not need it
    from quantsr.pictures import opencv

    file.seek(0)
    pixels = opencv.decode(file.read(), opencv.AS_STORED)
    if pixels.dtype != np.uint16:
        raise KindError(f"is decoded to {pixels.dtype}; save it with 8 or 16 bits, unsigned")
    is_tiff = image.format == "TIFF"
    if is_tiff and tiff.is_white_zero(image.tag_v2):  # type: ignore[attr-defined]
        pixels = ~pixels
    transparent = image.info.get("transparency")
    # a PNG's transparent gray level, which OpenCV ignores
    if pixels.ndim == 2 and transparent is not None:
        alpha = np.where(pixels == transparent, 0, np.iinfo(pixels.dtype).max)
        pixels = np.dstack([pixels, alpha.astype(pixels.dtype)])
    elif pixels.ndim == 3:
        pixels = pixels[..., (2, 1, 0, 3)[: pixels.shape[2]]]
        if pixels.shape[2] == 4 and not is_tiff and head[25] == _PNG_GRAY_WITH_ALPHA:
            pixels = pixels[..., (0, 3)]
        if pixels.shape[2] == 4 and is_tiff and not tiff.has_alpha(image.tag_v2):  # type: ignore[attr-defined]
            pixels = pixels[..., :3]
    if not is_tiff:  # for TIFFs OpenCV has applied it
        pixels = _apply_orientation(pixels, image.getexif().get(metadata.ORIENTATION, 1))
    return pixels


def _apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels upright, by EXIF orientation 1..8 (TIFF 6.0, tag 274)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _split(pixels: Pixels) -> DecodedPicture:
    """Split pixels (H, W) or (H, W, 2..4), with alpha last where there are 2 or 4 channels."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels = pixels.shape[2]
    gray = channels <= 2
    alpha = np.ascontiguousarray(pixels[..., -1]) if channels in (2, 4) else None
    rgb = np.repeat(pixels[..., :1], 3, axis=2) if gray else np.ascontiguousarray(pixels[..., :3])
    return DecodedPicture(rgb, alpha, gray)
