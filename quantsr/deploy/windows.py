"""Indices of a padded picture and its windows, in numpy; for engines that know the size. Imports no
torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import MASKED

Index = NDArray[np.int64]


def reflected(size: int, multiple: int) -> Index:
    """Where each row (or column) of the padded picture comes from: `0, 1, ..., size - 1, size - 2,
    ...`, a multiple of `multiple` of them."""
    period = max(2 * (size - 1), 1)
    position = np.arange(-(-size // multiple) * multiple) % period
    return np.minimum(position, period - position)


def order_index(grid: tuple[int, int], window: int, old: int | None, new: int | None) -> Index:
    """(L,) for each token of the new order its place in the old one; orders as `folded.Order`,
    `grid` is (H, W)."""
    places = np.arange(grid[0] * grid[1])
    if old is not None:  # where each token, row by row, stands in the old order
        # (H / w, W / w, w, w)
        windows = places.reshape(grid[0] // window, grid[1] // window, window, window)
        places = np.roll(windows.transpose(0, 2, 1, 3).reshape(grid), (old, old), (0, 1)).reshape(-1)
    return places if new is None else windowed(places.reshape(grid), window, new).reshape(-1)


def windowed(values: Index, window: int, shift: int) -> Index:
    """(H, W) as (G, N), after a cyclic shift up and to the left."""
    height, width = values.shape
    rolled = np.roll(values, (-shift, -shift), (0, 1))
    # (H / w, w, W / w, w)
    parts = rolled.reshape(height // window, window, width // window, window)
    return parts.transpose(0, 2, 1, 3).reshape(-1, window**2)  # (H / w, W / w, w, w) as (G, N)


def overlapping(grid: tuple[int, int], window: int, overlap: int) -> Index:
    """(G, M) places, row by row, of the pixels of each window and of `overlap` more on every side;
    H * W beyond the map."""
    size = grid[0] * grid[1]
    places = np.pad(np.arange(size).reshape(grid), overlap, constant_values=size)
    side = window + 2 * overlap
    parts = np.lib.stride_tricks.sliding_window_view(places, (side, side))[::window, ::window]
    return parts.reshape(-1, side**2)


def overlapping_tokens(grid: tuple[int, int], window: int, overlap: int) -> Index:
    """The same of tokens that are ordered window by window."""
    tokens = np.append(order_index(grid, window, 0, None), grid[0] * grid[1])
    return tokens[overlapping(grid, window, overlap)]


def mask(grid: tuple[int, int], window: int, shift: int) -> NDArray[np.float32]:
    """(G, 1, N, N) to add to the scores of shifted windows."""
    rows, columns = (
        (np.arange(size) >= size - window).astype(np.int64) + (np.arange(size) >= size - shift)
        for size in grid
    )
    labels = windowed(3 * rows[:, None] + columns[None, :], window, 0)  # of places after the shift
    return np.where(labels[:, :, None] == labels[:, None, :], 0, MASKED).astype(np.float32)[:, None]
