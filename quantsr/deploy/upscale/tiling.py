"""Cutting a picture into overlapping tiles whose joined results equal the whole picture's, bit for
bit. Imports no torch.

A tile reads `halo` pixels more than it keeps on every side that is not the picture's border, `halo`
being the receptive field. At the picture's border it has no halo, so the network pads it with zeros
there and nowhere else that reaches a kept pixel. All tiles of a picture have one shape: those that
would reach over the border are shifted inwards and keep less.

A network of windows sees the picture on a grid. Its tiles start and end on that grid, so that its
windows are those of the whole picture, and those that reach over the right or lower border continue
the picture by reflection, as the network itself does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from quantsr.deploy.costs import MAX_TILE_AREA
from quantsr.errors import InputError


@dataclass(frozen=True)
class Span:
    """One axis of a tile: it reads `start .. start + size` and keeps `keep_start .. keep_stop`
    (picture coordinates)."""

    start: int
    size: int
    keep_start: int
    keep_stop: int

    @property
    def read(self) -> slice:
        """Of the picture."""
        return slice(self.start, self.start + self.size)

    def kept(self, scale: int) -> slice:
        """Of the tile's result."""
        return slice((self.keep_start - self.start) * scale, (self.keep_stop - self.start) * scale)

    def written(self, scale: int) -> slice:
        """Of the upscaled picture."""
        return slice(self.keep_start * scale, self.keep_stop * scale)


@dataclass(frozen=True)
class Plan:
    """Tiles are `rows` x `columns`, row by row."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width) that every tile reads."""
        return self.rows[0].size, self.columns[0].size

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def area(self) -> int:
        """Pixels computed, overlaps counted as often as they are."""
        return self.count * self.tile[0] * self.tile[1]


def plan(
    height: int,
    width: int,
    halo: int,
    tile: int | None = None,
    max_area: int = MAX_TILE_AREA,
    *,
    grid: int = 1,
) -> Plan:
    """The tiles of a `height` x `width` picture.

    `tile` is the side that a tile keeps at most, without its halo. Where it is None, the tiles are
    those that compute the fewest pixels among all with at most `max_area` pixels each: a single one
    for a picture that small. On a `grid`, tiles and their halos are multiples of it (a `tile` below
    it becomes one cell of the grid). Raises InputError for `tile` < 1.
    """
    if tile is not None and tile < 1:
        raise InputError(f"tile: must be at least 1 pixel, got {tile}")
    if grid > 1:
        cells = plan(
            -(-height // grid),
            -(-width // grid),
            -(-halo // grid),
            None if tile is None else max(1, tile // grid),
            max_area // grid**2,
        )
        return Plan(_enlarged(cells.rows, grid, height), _enlarged(cells.columns, grid, width))
    if tile is not None:
        return Plan(spans(height, tile + 2 * halo, halo), spans(width, tile + 2 * halo, halo))
    best: tuple[int, int, int] | None = None  # area, tile height, tile width
    for count in range(1, height + 1):
        tall = _size_of(height, count, halo)
        room = max_area // tall
        if room >= width:
            columns = 1
        elif room > 2 * halo:
            columns = -(-(width - 2 * halo) // (room - 2 * halo))
        else:
            continue  # too narrow beside this height
        wide = _size_of(width, columns, halo)
        area = count * tall * columns * wide
        if best is None or area < best[0]:
            best = area, tall, wide
    if best is None:  # not even the halo fits: the smallest useful tiles
        return plan(height, width, halo, tile=max(1, halo))
    return Plan(spans(height, best[1], halo), spans(width, best[2], halo))


def read(image: np.ndarray[Any, Any], row: Span, column: Span) -> np.ndarray[Any, Any]:
    """What a tile reads of (H, W, 3): (row.size, column.size, 3), beyond the right and lower border
    reflected."""
    part = image[row.read, column.read]
    missing = (row.size - part.shape[0], column.size - part.shape[1])
    return np.pad(part, [(0, missing[0]), (0, missing[1]), (0, 0)], "reflect") if any(missing) else part


def _enlarged(cells: tuple[Span, ...], grid: int, length: int) -> tuple[Span, ...]:
    """Spans counted in cells of a grid, in pixels of an axis of `length`; the last may read beyond
    it."""
    return tuple(
        Span(c.start * grid, c.size * grid, c.keep_start * grid, min(c.keep_stop * grid, length))
        for c in cells
    )


def spans(length: int, size: int, halo: int) -> tuple[Span, ...]:
    """Cover `length` with windows of `size`, each keeping what lies `halo` inside it or at the
    border."""
    if size >= length:
        return (Span(0, length, 0, length),)
    result: list[Span] = []
    done = 0
    while done < length:
        start = 0 if not result else min(done - halo, length - size)
        stop = start + size
        keep_stop = length if stop >= length else stop - halo
        result.append(Span(start, size, done, keep_stop))
        done = keep_stop
    return tuple(result)


def _size_of(length: int, count: int, halo: int) -> int:
    """The smallest window size with which `count` windows cover `length`."""
    return min(length, -(-(length + 2 * halo * (count - 1)) // count)) if count > 1 else length
