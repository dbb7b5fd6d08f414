"""Whether the data of a file are complete; decoders leave missing rows black or gray without an
error."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_WHOLE_ROWS = ((0, 0, 1, 1),)
# First column and row, and their increments, of the passes of Adam7 (ISO/IEC 15948, 8.2).
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_PART = 1 << 20


def is_whole_jpeg(content: bytes | memoryview) -> bool:
    """Whether a JPEG file has its end marker. OpenCV 4.10 fills missing pixels with gray.

    ITU-T T.81, B.1.1: segments up to the first scan have a length; inside a scan, 0xFF is followed
    by 0 or a restart marker.
    """
    content, at = bytes(content), 2
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            return content.find(b"\xff\xd9", at) >= 0
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0xDA:  # start of scan
            return content.find(b"\xff\xd9", at) >= 0
        else:
            at += 2 if 0xD0 <= marker <= 0xD8 else 2 + struct.unpack_from(">H", content, at + 2)[0]
    return False


def is_whole_png(file: BinaryIO) -> bool:
    """Whether the pixel data of a PNG are as long as its header requires; Pillow decodes shorter
    data without an error.

    Args:
        file: with a valid header; its position is moved.
    """
    file.seek(8)
    need = have = 0
    inflate = zlib.decompressobj()
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IHDR":
            need = _png_bytes(file.read(length))
        elif kind == b"IDAT":
            data = file.read(length)
            while data and have < need:
                have += len(inflate.decompress(data, _PART))
                data = inflate.unconsumed_tail
        else:
            file.seek(length, 1)
        if kind == b"IEND" or (need and have >= need):
            break
        file.seek(4, 1)  # the checksum
    return have >= need


def _png_bytes(header: bytes) -> int:
    width, height, depth, colour_type, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _PNG_CHANNELS[colour_type]
    total = 0
    for left, top, right, down in _ADAM7 if interlaced else _WHOLE_ROWS:
        columns, rows = -((left - width) // right), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)  # a byte for the filter
    return total
