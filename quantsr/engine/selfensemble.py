"""Self-ensemble: the mean of a network's outputs for the eight flips and rotations of its input
(EDSR, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def transform(x: Tensor, index: int) -> Tensor:
    """The ``index``-th of the eight symmetries of the square, on the last two axes of ``x (..., H,
    W)``.

    Bit 0 of ``index`` is hflip, bit 1 vflip, bit 2 transpose, in this order.
    """
    if index & 1:
        x = x.flip(-1)
    if index & 2:
        x = x.flip(-2)
    return x.transpose(-1, -2) if index & 4 else x


def inverse(x: Tensor, index: int) -> Tensor:
    """Undoes `transform`."""
    if index & 4:
        x = x.transpose(-1, -2)
    if index & 2:
        x = x.flip(-2)
    return x.flip(-1) if index & 1 else x


def self_ensemble(forward: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
    """The mean of ``inverse(forward(transform(x)))`` over all eight symmetries, one for each output
    of ``forward``.

    One symmetry runs at a time, so the memory is that of a single run.
    """
    totals: list[Tensor] = []
    for index in range(8):
        outputs = [inverse(output, index) for output in forward(transform(x, index).contiguous())]
        totals = [t + o for t, o in zip(totals, outputs, strict=True)] if totals else outputs
    return tuple(total / 8 for total in totals)
