"""Reading and writing pictures: what the network sees (RGB), and what travels beside it (alpha, gray, bit depth, ICC profile, EXIF turn).

Pillow reads and writes 8-bit files and all metadata, OpenCV the pixels of 16-bit files, which Pillow would cut to 8 bits in colour.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from quantsr.errors import InputError, WorkError
from quantsr.files import replacing

Pixels = NDArray[Any]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_MAX_PIXELS = 1 << 30  # OpenCV's own limit; Pillow's is lower and meant for untrusted uploads
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC, _EXTRA_SAMPLES = 258, 262, 338  # tags of TIFF 6.0
_WHITE_IS_ZERO, _ASSOCIATED_ALPHA = 0, 1
_STREAMED_BYTES = 256 << 20
_QUALITY: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".webp": {"lossless": True},
}
_NO_ALPHA = (".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded file, upright."""

    rgb: Pixels
    """(H, W, 3) uint8 or uint16; a gray picture three times."""
    alpha: Pixels | None = None
    """(H, W), same type; None where the picture is opaque."""
    gray: bool = False
    """Whether the file had one colour channel; the upscaled one then has one too."""
    icc: bytes | None = None


def read(path: str | Path) -> Picture:
    """Decode a file, apply its EXIF orientation, expand palettes. Raises InputError naming the file."""
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.MAX_IMAGE_PIXELS = _MAX_PIXELS
            # From an open file: given a path, Pillow maps uncompressed TIFFs into memory and leaves those unturned.
            with path.open("rb") as file, Image.open(file) as image:
                return _read_deep(path, image) if _is_deep(path, image) else _read_plain(image)
    except UnidentifiedImageError:
        raise InputError(
            f"{path}: is not a picture this program can read; give {', '.join(SUFFIXES)} of 8 or 16 bits per channel"
        ) from None
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason}); is the file damaged?") from error


def _is_deep(path: Path, image: Image.Image) -> bool:
    """Whether the file has 16 bits per channel (Pillow's modes do not tell for colour)."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24:25] == b"\x10"
    if image.format == "TIFF":
        return 16 in tuple(image.tag_v2.get(_BITS_PER_SAMPLE, ()))  # type: ignore[attr-defined]
    return False


def _read_plain(image: Image.Image) -> Picture:
    icc = image.info.get("icc_profile")
    colour_space = image.mode
    image.load()  # turns TIFFs, whose tag is gone then
    orientation = image.getexif().get(_ORIENTATION, 1)
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        icc = None if colour_space == "CMYK" else icc  # a CMYK profile does not describe the RGB result
        image = image.convert("RGB")
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} with 32 bits per channel is not supported")
    transparent = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    gray = image.mode in ("1", "L", "LA", "La")
    mode = ("L" if gray else "RGB") + ("A" if transparent else "")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return _split(_turn_upright(pixels, orientation), icc)


def _read_deep(path: Path, image: Image.Image) -> Picture:
    import cv2  # on demand: it loads slowly, and most pictures need none of it

    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(error.err) from error
    if pixels is None:
        raise ValueError("OpenCV cannot decode it")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: holds {pixels.dtype} values; save it with 8 or 16 bits, unsigned")
    tags = getattr(image, "tag_v2", {})
    if _ASSOCIATED_ALPHA in tags.get(_EXTRA_SAMPLES, ()):
        raise InputError(
            f"{path}: its colours are multiplied by alpha, which 16-bit files must not be; save it with unassociated alpha"
        )
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        pixels = ~pixels
    transparent = image.info.get("transparency")
    if pixels.ndim == 2 and transparent is not None:  # the one such gray of a PNG, which OpenCV drops
        alpha = np.where(pixels == transparent, 0, np.iinfo(pixels.dtype).max)
        pixels = np.dstack([pixels, alpha.astype(pixels.dtype)])
    elif pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)
        if pixels.shape[2] == 4 and image.format == "PNG" and _png_colour_type(path) == 4:
            pixels = pixels[..., (0, 3)]  # gray with alpha
    if image.format != "TIFF":  # those OpenCV has turned already
        pixels = _turn_upright(pixels, image.getexif().get(_ORIENTATION, 1))
    return _split(pixels, image.info.get("icc_profile"))


def _png_colour_type(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(26)[25]


def _turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo EXIF orientation 1..8 (TIFF 6.0, tag 274)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _split(pixels: Pixels, icc: bytes | None) -> Picture:
    """(H, W), or (H, W, 2..4) with alpha last where there are 2 or 4."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    channels = pixels.shape[2]
    gray = channels <= 2
    alpha = np.ascontiguousarray(pixels[..., -1]) if channels in (2, 4) else None
    rgb = np.repeat(pixels[..., :1], 3, axis=2) if gray else np.ascontiguousarray(pixels[..., :3])
    return Picture(rgb, alpha, gray, icc)


def scale_alpha(alpha: Pixels, scale: int, first: int = 0, stop: int | None = None) -> Pixels:
    """Rows `first` to `stop` (of the upscaled plane) of `alpha` enlarged by bicubic interpolation.

    Transparency is a mask, not a photograph: the network is not run on it.
    """
    import cv2

    height, width = alpha.shape
    stop = height * scale if stop is None else stop
    top, bottom = max(0, first // scale - 2), min(height, -(-stop // scale) + 2)  # what four taps reach
    part = alpha[top:bottom]
    large = cv2.resize(part, (width * scale, len(part) * scale), interpolation=cv2.INTER_CUBIC)
    return large[first - top * scale : stop - top * scale]


def merge(rgb: Pixels, alpha: Pixels | None, gray: bool) -> Pixels:
    """The channels to write: gray is the mean of the three outputs, alpha comes last. (h, w), (h, w, 2), (h, w, 3) or (h, w, 4)."""
    colour = np.rint(rgb.mean(2, dtype=np.float32, keepdims=True)).astype(rgb.dtype) if gray else rgb
    if alpha is not None:
        return np.concatenate([colour, alpha[..., None]], 2)
    return colour[..., 0] if gray else colour


def check_output(path: Path, deep: bool, alpha: bool) -> list[str]:
    """What writing this picture to a file of this type would lose, in words; InputError for an unknown type."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown picture type {suffix!r}; use one of {', '.join(SUFFIXES)}")
    lost = []
    if deep and suffix not in (".png", ".tif", ".tiff"):
        lost.append("16 bits per channel")
    if alpha and suffix in _NO_ALPHA:
        lost.append("transparency")
    return lost


def write(
    path: str | Path,
    shape: tuple[int, ...],
    dtype: Any,
    bands: Iterable[tuple[int, Pixels]],
    icc: bytes | None = None,
) -> None:
    """Write a picture given as bands (first row, rows) from top to bottom, whole or not at all; type by suffix.

    Large PNGs are written band by band and never held whole. JPEG gets quality 95 without chroma subsampling, WebP is lossless. A type
    without 16 bits or alpha gets 8 bits and no alpha. An ICC profile is kept but in BMP and 16-bit TIFF. Raises WorkError naming the file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    deep = np.dtype(dtype) == np.uint16
    try:
        with replacing(path) as file:
            if suffix == ".png" and (deep or np.prod(shape) * np.dtype(dtype).itemsize > _STREAMED_BYTES):
                _stream_png(file, shape, np.dtype(dtype), bands, icc)
            else:
                whole = np.empty(shape, dtype)
                for top, band in bands:
                    whole[top : top + len(band)] = band
                _write_whole(file, suffix, whole, icc)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WorkError(f"{path}: cannot be written ({reason}); try another type or folder") from error


def _write_whole(file: BinaryIO, suffix: str, pixels: Pixels, icc: bytes | None) -> None:
    if pixels.dtype == np.uint16 and suffix in (".tif", ".tiff"):
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
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257.0).astype(np.uint8)
    if suffix in _NO_ALPHA and pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        pixels = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    options = dict(_QUALITY.get(suffix, {}))
    if icc and suffix != ".bmp":
        options["icc_profile"] = icc
    Image.fromarray(pixels).save(file, Image.registered_extensions()[suffix], **options)


def _stream_png(
    file: BinaryIO,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    bands: Iterable[tuple[int, Pixels]],
    icc: bytes | None,
) -> None:
    """PNG (ISO/IEC 15948) with filter "up" on every row: each byte less the one above it."""
    height, width = shape[:2]
    channels = shape[2] if len(shape) == 3 else 1
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(kind: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, dtype.itemsize * 8, colour_type, 0, 0, 0))
    if icc:
        chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
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
