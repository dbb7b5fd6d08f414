"""Integer ranges: the only place that turns a bit-width into bounds, for training and for
deployment. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

MIN_BITS = 2
MAX_BITS = 8
WIDE_BITS = 16
"""Bits of the layer inputs that conversion quantizes outside the blocks; not used in training."""
FLOAT_BITS = 32
"""The bit-width that means "not quantized"."""


def check_bits(bits: int, what: str = "bits") -> int:
    """Return ``bits`` if it is 2..8 or 32 (float).

    Raises:
        ValueError: otherwise; the message names ``what``.
    """
    if bits != FLOAT_BITS and not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"{what} must be {MIN_BITS}..{MAX_BITS}, or {FLOAT_BITS} for float, got {bits}")
    return bits


@dataclass(frozen=True)
class Bits:
    """Bit-widths of a layer's weight and of its input: 2..8, or 32 for float.

    >>> str(Bits.parse("4")), str(Bits.parse("W4A8")), str(Bits.parse("float"))
    ('W4A4', 'W4A8', 'float')
    """

    weights: int
    activations: int

    @classmethod
    def parse(cls, text: str) -> Bits:
        """``4`` for both, ``W4A8``, or ``float``. Raises ValueError for another text."""
        if text == "float":
            return cls(FLOAT_BITS, FLOAT_BITS)
        match = re.fullmatch(r"(\d)|[wW](\d)[aA](\d)", text)
        if match is None:
            raise ValueError(f"{text!r} names no bits; write 4, W4A8 or float")
        weights, activations = (int(match[1] or match[group]) for group in (2, 3))
        if not all(MIN_BITS <= bits <= MAX_BITS for bits in (weights, activations)):
            raise ValueError(f"{text!r}: bits are {MIN_BITS} to {MAX_BITS}")
        return cls(weights, activations)

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.weights == self.activations == FLOAT_BITS

    def __str__(self) -> str:
        return "float" if self.is_float else f"W{self.weights}A{self.activations}"


@dataclass(frozen=True)
class IntRange:
    """The integers from ``qmin`` to ``qmax``, both included.

    >>> IntRange.of(bits=4, signed=True)
    IntRange(qmin=-8, qmax=7)
    >>> IntRange.of(bits=4, signed=False)
    IntRange(qmin=0, qmax=15)
    """

    qmin: int
    qmax: int

    @classmethod
    def of(cls, bits: int, signed: bool, *, wide: bool = False) -> IntRange:
        """Two's complement when signed, natural numbers otherwise (``Qn``, ``Qp`` of QuantSR).

        Args:
            bits: 2..8, or 16 where ``wide`` allows it.

        Raises:
            ValueError: for other ``bits``.
        """
        if not MIN_BITS <= bits <= MAX_BITS and not (wide and bits == WIDE_BITS):
            or_wide = f" or {WIDE_BITS}" if wide else ""
            raise ValueError(f"bits must be {MIN_BITS}..{MAX_BITS}{or_wide}, got {bits}")
        if signed:
            return cls(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return cls(0, 2**bits - 1)

    @property
    def bounds(self) -> tuple[int, int]:
        """``(qmin, qmax)``, the form of ranges in folded networks."""
        return self.qmin, self.qmax

    def shifted(self, by: int) -> IntRange:
        """The range with ``by`` added to both ends."""
        return IntRange(self.qmin + by, self.qmax + by)

    @property
    def levels(self) -> int:
        """The number of codes."""
        return self.qmax - self.qmin + 1
