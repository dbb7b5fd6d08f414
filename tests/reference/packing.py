"""Reference of bit streams: one bit at a time."""

from __future__ import annotations

from collections.abc import Iterable


def pack(codes: Iterable[int], bits: int) -> bytes:
    """Two's complement codes of `bits` bits, packed from the lowest bit, padded with 0."""
    stream = [(code >> place) & 1 for code in codes for place in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return bytes(sum(bit << i for i, bit in enumerate(stream[k : k + 8])) for k in range(0, len(stream), 8))


def unpack(data: bytes, bits: int, count: int) -> list[int]:
    """The inverse of `pack`."""
    stream = [(byte >> i) & 1 for byte in data for i in range(8)]
    codes = []
    for k in range(count):
        field = stream[k * bits : (k + 1) * bits]
        value = sum(bit << place for place, bit in enumerate(field))
        codes.append(value - (1 << bits) if field[-1] else value)
    return codes
