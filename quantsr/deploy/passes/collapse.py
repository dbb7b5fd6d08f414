"""A linear tail (`tail.py`) as one convolution at low resolution. Imports no torch.

Where a network ends in convolutions and pixel shuffles, nothing there is non-linear but roundings:
they compose to one 5x5 convolution from the features at low resolution to the `scale**2 * 3` values
of each low-resolution pixel. At x4 with 64 channels that is 77k multiplications per low-resolution
pixel instead of 766k, and no tensor with many channels exists at high resolution.

What is not shift-invariant is the picture's border: the network pads every layer's input with
zeros, so the outermost ring of low-resolution pixels sees other kernels. There are nine in all
(first, inner, last row x first, inner, last column).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import FoldedConv

RADIUS = 2
"""Low-resolution pixels the collapsed tail sees on each side, at any scale above 1 (3x3 convs)."""
MIN_SIZE = RADIUS + 1
"""Height and width from which the nine kernels describe every pixel."""

# (size of the domain, index of the pixel computed) along one axis; beyond the domain is outside the
# picture, or not seen.
POSITIONS = {"first": (RADIUS + 1, 0), "inner": (2 * RADIUS + 1, RADIUS), "last": (RADIUS + 1, RADIUS)}


@dataclass(frozen=True, eq=False)
class Stage:
    """A 3x3 convolution and the pixel shuffle behind it."""

    conv: FoldedConv
    shuffle: int
    """Factor of the pixel shuffle; 1: none."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """One region's convolution; P = scale**2 * 3 outputs in the order (row phase, column phase,
    colour), in pixel values."""

    weight: NDArray[np.float32]
    """(P, C, kh, kw); kh and kw are 5 inside and 3 at a border, where the missing rows or columns
    lie outside the picture."""
    bias: NDArray[np.float32]
    """(P,)"""


Positions = Mapping[str, tuple[int, int]]


def values(tail: Sequence[Stage]) -> int:
    """The most numbers that `collapse` holds in one array."""
    side, factor, most = 2 * RADIUS + 1, 1, 0
    for stage in tail:
        most = max(most, max(stage.conv.weight.shape[:2]) * (side * factor) ** 2)
        factor *= stage.shuffle
    colours = _colours(tail[-1])
    return colours * factor**2 * max(most, colours * (side * factor) ** 2)


def _colours(last: Stage) -> int:
    return len(last.conv.bias) // last.shuffle**2


def collapse(
    tail: Sequence[Stage], rows: Positions = POSITIONS, columns: Positions = POSITIONS
) -> dict[tuple[str, str], Kernel]:
    """Compose the tail's convs, without the roundings and limits between them, into a kernel for
    every (row, column) position: nine by default."""
    stages = [_Values.of(stage) for stage in tail]
    # in small pictures one pixel is at several positions
    wanted = {(row, column) for row in rows.values() for column in columns.values()}
    kernels = {(row, column): _kernel(stages, row, column) for row, column in wanted}
    return {(y, x): kernels[rows[y], columns[x]] for y in rows for x in columns}


def positions(length: int) -> Positions:
    """`POSITIONS` of an axis of that length: where it is shorter than `MIN_SIZE`, of its first,
    first and last pixel in all of it."""
    if length >= MIN_SIZE:
        return POSITIONS
    return {"first": (length, 0), "inner": (length, 0), "last": (length, length - 1)}


@dataclass(frozen=True, eq=False)
class _Values:
    weight: NDArray[np.float64]  # (O, I, k, k), multiplier included
    bias: NDArray[np.float64]
    shuffle: int

    @staticmethod
    def of(stage: Stage) -> _Values:
        conv = stage.conv
        weight = conv.weight.astype(np.float64) * conv.multiplier.astype(np.float64).reshape(-1, 1, 1, 1)
        return _Values(weight, conv.bias.astype(np.float64), stage.shuffle)


def _kernel(stages: Sequence[_Values], rows: tuple[int, int], columns: tuple[int, int]) -> Kernel:
    """Walk back from one low-resolution pixel's outputs to the features: the adjoint of the tail on
    a small domain."""
    (height, y), (width, x) = rows, columns
    scale = int(np.prod([stage.shuffle for stage in stages]))
    colours = len(stages[-1].bias) // stages[-1].shuffle ** 2
    # (row phase, column phase, colour of the output; colour, H * scale, W * scale of what it is
    # read from)
    impulses = np.zeros((scale, scale, colours, colours, height * scale, width * scale))
    for p, q, c in np.ndindex(scale, scale, colours):
        impulses[p, q, c, c, y * scale + p, x * scale + q] = 1
    grad: NDArray[np.float64] = impulses.reshape(
        -1, *impulses.shape[3:]
    )  # (P, colours, H * scale, W * scale)
    bias = np.zeros(len(grad))
    for stage in reversed(stages):
        grad = _unshuffle(grad, stage.shuffle)
        bias += grad.sum((2, 3)) @ stage.bias
        grad = _conv_adjoint(grad, stage.weight)
    return Kernel(grad.astype(np.float32), bias.astype(np.float32))


def _unshuffle(grad: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Adjoint of PixelShuffle: (P, C, H*r, W*r) -> (P, C*r*r, H, W)."""
    n, c, h, w = grad.shape
    split = grad.reshape(n, c, h // factor, factor, w // factor, factor)  # (P, C, H, r, W, r)
    split = split.transpose(0, 1, 3, 5, 2, 4)  # (P, C, r, r, H, W)
    return split.reshape(n, c * factor**2, h // factor, w // factor)  # (P, C*r*r, H, W)


def _conv_adjoint(grad: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjoint of a zero-padded stride-1 conv with weight (O, I, k, k): (P, O, H, W) -> (P, I, H,
    W)."""
    n, _, h, w = grad.shape
    k = weight.shape[-1]
    pad = k // 2
    rows = np.ascontiguousarray(grad.transpose(0, 2, 3, 1))  # (P, H, W, O)
    at, y, x = np.nonzero(rows.any(3))  # each output depends on few positions
    used = rows[at, y, x]
    out = np.zeros((n, h + 2 * pad, w + 2 * pad, weight.shape[1]))
    for dy, dx in np.ndindex(k, k):
        out[at, y + dy, x + dx] += used @ weight[:, :, dy, dx]
    return out[:, pad : pad + h, pad : pad + w].transpose(0, 3, 1, 2)  # (P, I, H, W)
