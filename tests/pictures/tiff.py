"""A writer of TIFFs (TIFF 6.0) of kinds that Pillow and OpenCV do not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_TYPES = {"B": 1, "H": 3, "I": 4}


def tiff(
    pixels: NDArray,
    *,
    order: str = "<",
    photometric: int | None = None,
    extra: tuple[int, ...] | None = None,
    planar: bool = False,
    tile: int = 0,
    deflate: bool = False,
    predictor: bool = False,
    tags: Mapping[int, tuple[str, tuple[int, ...]]] | None = None,
) -> bytes:
    """The bytes of a TIFF.

    Args:
        pixels: (H, W) or (H, W, C), any integer or float type.
        order: byte order, "<" or ">".
        photometric: default RGB for three channels and more, else 0 is black.
        extra: the tag ExtraSamples; None for none.
        planar: whether each channel is stored by itself.
        tile: side of square tiles; 0 for one strip.
        deflate, predictor: compression, and horizontal differences before it (integers only).
        tags: further or replaced tags: number to (type B, H or I, values).
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    planes = [pixels[..., [c]] for c in range(channels)] if planar else [pixels]
    blocks = [_packed(block, order, deflate, predictor) for plane in planes for block in _blocks(plane, tile)]
    bits, kind = pixels.itemsize * 8, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries = {
        256: ("I", (width,)),
        257: ("I", (height,)),
        258: ("H", (bits,) * channels),
        259: ("H", (8 if deflate else 1,)),
        262: ("H", (photometric if photometric is not None else 2 if channels >= 3 else 1,)),
        277: ("H", (channels,)),
        284: ("H", (2 if planar else 1,)),
        317: ("H", (2 if predictor else 1,)),
        339: ("H", (kind,) * channels),
    }
    places, position = [], 8
    for block in blocks:
        places.append(position)
        position += len(block) + len(block) % 2
    sizes = tuple(len(block) for block in blocks)
    if tile:
        entries |= {322: ("I", (tile,)), 323: ("I", (tile,)), 324: ("I", tuple(places)), 325: ("I", sizes)}
    else:
        entries |= {273: ("I", tuple(places)), 278: ("I", (height,)), 279: ("I", sizes)}
    if extra is not None:
        entries[338] = ("H", extra)
    entries |= dict(tags or {})
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, position)
    body = b"".join(block + b"\0" * (len(block) % 2) for block in blocks)
    return head + body + _directory(entries, order, position)


def _blocks(plane: NDArray, tile: int) -> list[NDArray]:
    """(H, W, C) as tiles, row by row, padded with zeros at the borders."""
    if not tile:
        return [plane]
    height, width, _ = plane.shape
    padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
    return [
        padded[top : top + tile, left : left + tile]
        for top in range(0, height, tile)
        for left in range(0, width, tile)
    ]


def _packed(block: NDArray, order: str, deflate: bool, predictor: bool) -> bytes:
    if predictor:
        block = np.concatenate([block[:, :1], block[:, 1:] - block[:, :-1]], 1)
    data = block.astype(block.dtype.newbyteorder(order)).tobytes()
    return zlib.compress(data) if deflate else data


def _directory(entries: Mapping[int, tuple[str, tuple[int, ...]]], order: str, position: int) -> bytes:
    """The image file directory at `position`, followed by its longer values."""
    rows, behind = b"", b""
    end = position + 2 + 12 * len(entries) + 4
    for tag, (letter, values) in sorted(entries.items()):
        data = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(data) > 4:
            place = struct.pack(f"{order}I", end + len(behind))
            behind += data + b"\0" * (len(data) % 2)
        else:
            place = data.ljust(4, b"\0")
        rows += struct.pack(f"{order}HHI", tag, _TYPES[letter], len(values)) + place
    return struct.pack(f"{order}H", len(entries)) + rows + bytes(4) + behind
