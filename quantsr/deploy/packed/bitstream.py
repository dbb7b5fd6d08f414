"""Integer codes as bytes: a dense bit stream, or Huffman coding where that is smaller.

*Dense*: code after code, each in two's complement of `bits` bits, lowest bit first, filling bytes
from the lowest bit; the last byte is padded with 0.

*Huffman*: one byte per code through Deflate with its matching switched off (RFC 1951,
`Z_HUFFMAN_ONLY`), so that a code costs about its entropy. Quantized weights are bell-shaped; at
RLQ's step a 4-bit code carries about 2.8 bits.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from quantsr.ranges import IntRange

Codes = NDArray[np.int8]
DENSE, HUFFMAN = "dense", "huffman"
_CHUNK = 1 << 20  # codes expanded to bits at once; a multiple of 8, so that chunks end on a byte
_CODES_PER_BYTE = 8  # Huffman coding without matches takes at least one bit per code


def encode(codes: Codes, bits: int, coding: str | None = None) -> tuple[str, bytes]:
    """(coding, bytes) of a flat array of signed codes; without `coding`, the smaller of the two.
    Raises ValueError for codes beyond `bits`."""
    dense = pack(codes, bits)
    if coding == DENSE:
        return DENSE, dense
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    squeezed = squeezer.compress(codes.tobytes()) + squeezer.flush()
    return (HUFFMAN, squeezed) if coding == HUFFMAN or len(squeezed) < len(dense) else (DENSE, dense)


def decode(data: bytes, bits: int, count: int, coding: str) -> Codes:
    """The `count` codes in `data`. Raises ValueError where it does not hold exactly that many;
    allocates nothing beyond what it can hold."""
    if coding == DENSE:
        return unpack(data, bits, count)
    if coding != HUFFMAN:
        raise ValueError(f"unknown coding '{coding}'")
    if count > _CODES_PER_BYTE * len(data):
        raise ValueError(f"{len(data)} bytes cannot hold {count} codes")
    reader = zlib.decompressobj(-15)
    try:
        plain = reader.decompress(data, count + 1)
    except zlib.error as error:
        raise ValueError(f"broken Huffman data ({error})") from error
    if len(plain) != count or reader.unused_data or reader.unconsumed_tail:
        raise ValueError(f"the Huffman data does not hold {count} codes")
    codes = np.frombuffer(plain, np.int8)
    _check_range(codes, bits)
    return codes


def pack(codes: Codes, bits: int) -> bytes:
    """Dense bit stream of a flat array of signed codes, `ceil(len * bits / 8)` bytes. Raises
    ValueError for codes beyond `bits`."""
    codes = np.ascontiguousarray(codes, np.int8).reshape(-1)
    _check_range(codes, bits)
    parts = []
    for start in range(0, len(codes), _CHUNK):
        chunk = codes[start : start + _CHUNK].view(np.uint8)
        planes = np.unpackbits(chunk[:, None], axis=1, bitorder="little")[:, :bits]  # (n, bits)
        parts.append(np.packbits(planes, bitorder="little").tobytes())
    return b"".join(parts)


def unpack(data: bytes, bits: int, count: int) -> Codes:
    """The `count` signed codes of a dense bit stream. Raises ValueError unless `data` has exactly
    their length and zero padding."""
    if len(data) != -(-count * bits // 8):
        raise ValueError(
            f"{count} codes of {bits} bits take {-(-count * bits // 8)} bytes, there are {len(data)}"
        )
    packed = np.frombuffer(data, np.uint8)
    used = count * bits % 8
    if used and packed[-1] >> used:
        raise ValueError("the padding of the bit stream is not 0")
    codes = np.empty(count, np.int8)
    place = (1 << np.arange(bits)).astype(np.int16)
    place[-1] *= -1  # the sign bit
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        planes = np.unpackbits(packed[start * bits // 8 : -(-stop * bits // 8)], bitorder="little")
        codes[start:stop] = planes[: (stop - start) * bits].reshape(-1, bits) @ place
    return codes


def _check_range(codes: Codes, bits: int) -> None:
    limits = IntRange.of(bits, signed=True)
    if codes.size and not (codes.min() >= limits.qmin and codes.max() <= limits.qmax):
        raise ValueError(f"codes {codes.min()}..{codes.max()} do not fit {bits} bits")
