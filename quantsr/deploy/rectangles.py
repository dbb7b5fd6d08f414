"""Indices of rectangular windows over a map that zeros continue to whole windows, in numpy; for
engines that know the size. Imports no torch.

The map is h x w pixels; H x W are those of the map that zeros continue to multiples of `multiple`,
which both sides of the windows divide. Windows of `rows` x `columns` pixels lie on it after a
cyclic shift by `shift` pixels up and to the left. There are G of them, row by row, of N pixels
each, row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import MASKED

Index = NDArray[np.int64]
Pair = tuple[int, int]


def continued(grid: Sequence[int], multiple: int) -> Pair:
    """(H, W)"""
    height, width = (-(-side // multiple) * multiple for side in grid)
    return height, width


def places(grid: Pair, window: Pair, shift: Pair, multiple: int) -> Index:
    """(G, N) pixels of every window, row by row of the map; h * w for zeros beyond it."""
    height, width = grid
    rows, columns = (
        (at + by) % whole for at, by, whole in _sides(grid, window, shift, multiple)
    )  # (H / rows, 1, rows, 1) and (1, W / columns, 1, columns)
    inside = (rows < height) & (columns < width)
    found: Index = np.where(inside, rows * width + columns, height * width)
    return found.reshape(-1, window[0] * window[1])


def tokens(grid: Pair, window: Pair, shift: Pair, multiple: int) -> Index:
    """(h * w,) where each pixel of the map is in `places`, as one row."""
    (height, width), (rows, columns) = continued(grid, multiple), window
    y = (np.arange(grid[0]) - shift[0]) % height
    x = (np.arange(grid[1]) - shift[1]) % width
    below = y // rows * (rows * width) + y % rows * columns
    right = x // columns * (rows * columns) + x % columns
    return (below[:, None] + right).reshape(-1)


def mask(grid: Pair, window: Pair, shift: Pair, multiple: int) -> NDArray[np.float32]:
    """(G, 1, N, N) to add to the scores of two pixels: MASKED where they were no neighbours before
    the shift."""
    wraps = [at + by >= whole for at, by, whole in _sides(grid, window, shift, multiple)]
    label = (2 * wraps[0] + wraps[1]).reshape(-1, window[0] * window[1])
    apart = label[:, :, None] != label[:, None, :]
    return np.where(apart, MASKED, 0).astype(np.float32)[:, None]


def relative_positions(window: Pair) -> Index:
    """(N, N) for each pair of pixels of a window the row of its table of relative positions."""
    rows, columns = window
    y, x = np.divmod(np.arange(rows * columns), columns)
    below, right = (axis[:, None] - axis + side - 1 for axis, side in ((y, rows), (x, columns)))
    found: Index = below * (2 * columns - 1) + right
    return found


def _sides(grid: Pair, window: Pair, shift: Pair, multiple: int) -> Iterator[tuple[Index, int, int]]:
    """Of rows, then of columns: where they are after the shift, broadcast to the four dimensions of
    windows and pixels in them, the shift, and H or W."""
    for axis, whole in enumerate(continued(grid, multiple)):
        at = np.arange(whole).reshape(-1, 1, window[axis], 1)
        yield at if axis == 0 else at.transpose(1, 0, 3, 2), shift[axis], whole
