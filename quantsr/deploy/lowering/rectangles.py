"""Attention in windows of rows and columns that a module computes by products of its own: found
among the operations of torch, whatever map zeros continue and however windows are shifted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import from_numpy

from quantsr.deploy import rectangles
from quantsr.deploy.lowering.scores import Index, Scores, refer, reordered
from quantsr.deploy.lowering.traced import Beyond, Map, Record, Traced, decimal

_CLOSE = 1e-6  # of biases, relative to the largest


@dataclass(frozen=True)
class _Windows:
    """Arguments of the functions of `rectangles`."""

    grid: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]
    multiple: int

    @property
    def all(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        """In their order."""
        return self.grid, self.window, self.shift, self.multiple


def attention(record: Record, scores: Scores, v: Index, *, cosine: bool = False) -> Traced:
    """The operation `rectangle_attention`, of scores behind a softmax and references (B, N, d);
    `cosine` says that queries and keys were divided by their lengths. InputError for any other
    attention."""
    batch, _, size = scores.q.shape
    parts = [record.find_channels(x) for x in (scores.q, scores.k.transpose(0, 2, 1), v)]
    grid, channels = parts[0].map.size, parts[0].map.channels
    heads = channels // size
    refusal = record.refuse("attends to other windows than rectangles of pixels")
    same = all(part.map.size == grid and part.map.channels == channels for part in parts)
    if not same or channels % size or batch % heads or v.shape != scores.q.shape:
        raise refusal
    head = parts[0].places.max((1, 2)) // (math.prod(grid) * size)
    order = np.arange(batch).reshape(heads, -1).T.reshape(-1)  # windows before heads
    by_heads = np.repeat(np.arange(heads), batch // heads)
    if 1 < heads < batch and (head == by_heads)[head >= 0].all():  # -1 of windows beyond the map
        result = attention(record, reordered(scores, order), v[order], cosine=cosine)
        return Traced(record, result.references[torch.from_numpy(np.argsort(order))])
    where = _windows(parts[0].places[::heads, :, 0], grid)
    if where is None:
        raise refusal
    places = rectangles.places(*where.all)  # (G, N)
    head = np.arange(channels).reshape(heads, 1, size) * math.prod(grid)
    wanted = np.tile(head, (len(places), 1, 1)) + np.repeat(places, heads, 0)[..., None]
    wanted[np.repeat(places == math.prod(grid), heads, 0)] = -1
    if any(not np.array_equal(part.places, wanted) for part in parts):
        raise refusal
    if not record.is_unrounded(grid):
        raise record.refuse("attends to pixels of maps whose sides are rounded")
    q = parts[0].map.value
    name = record.modules[-1] if record.modules else ""
    how: dict[str, Any] = {"cosine": 1} if cosine else {}
    if cosine:
        record.keep(f"{name}.temperature", _temperature(record, scores, heads))
    elif scores.number is None:
        raise record.refuse("multiplies products by other numbers in some windows than in others")
    elif scores.number != 1:
        q = record.append("scale", q, factor=decimal(scores.number))
    how |= {"heads": heads, "window": list(where.window), "shift": list(where.shift)}
    bias = _bias(record, scores, where, heads)
    table = _table(where, bias)
    if table is None:
        record.keep(f"{name}.pair_bias_table", bias.reshape(heads, -1).T.copy())
        how["pairs"] = 1
    else:
        record.keep(f"{name}.relative_position_bias_table", table)
    beyond = [_beyond(record, x, heads) for x in (scores.k.transpose(0, 2, 1), v)]
    if any(x.any() for x in beyond):
        how["beyond"] = 1
        for part, numbers in zip("kv", beyond, strict=True):
            record.keep(f"{name}.beyond_{part}", numbers)
    values = (q, *(part.map.value for part in parts[1:]))
    output = record.append("rectangle_attention", *values, name=name, **how, multiple=where.multiple)
    record.multiples.add(where.multiple * (record.grid[0] // grid[0]))
    result = record.tensor(Map(output, channels, grid), np.maximum(wanted, 0))
    if (wanted < 0).any():  # what lies beyond the map, nothing may read
        result.references[wanted < 0] = refer(record, Beyond(), (1,)).references
    return result


def _windows(pixels: Index, grid: tuple[int, int]) -> _Windows | None:
    """The windows whose places are `pixels` (G, N), -1 beyond the map."""
    first = np.argwhere(pixels == 0)
    if len(first) != 1:
        return None
    (group, token), found = first[0].tolist(), np.where(pixels < 0, math.prod(grid), pixels)
    for window in _factors(pixels.shape[1]):
        for count in _factors(pixels.shape[0]):
            whole = (window[0] * count[0], window[1] * count[1])
            multiple = _multiple(grid, window, whole)
            above = group // count[1] * window[0] + token // window[1]
            left = group % count[1] * window[1] + token % window[1]
            shift = (-above % whole[0], -left % whole[1])
            if multiple is None or shift[0] >= window[0] or shift[1] >= window[1]:
                continue
            where = _Windows(grid, window, shift, multiple)
            if np.array_equal(rectangles.places(*where.all), found):
                return where
    return None


def _factors(number: int) -> Iterator[tuple[int, int]]:
    """All pairs whose product it is."""
    return ((n, number // n) for n in range(1, number + 1) if number % n == 0)


def _multiple(grid: tuple[int, int], window: tuple[int, int], whole: tuple[int, int]) -> int | None:
    """The least number with whole windows to whose multiples zeros continue a map to that size."""
    cell = math.lcm(*window)
    candidates = range(cell, max(whole) + 1, cell)
    return next((n for n in candidates if rectangles.continued(grid, n) == whole), None)


def _temperature(record: Record, scores: Scores, heads: int) -> NDArray[np.float32]:
    """(heads,) by which products are multiplied."""
    factor = np.ones(scores.shape, np.float32) if scores.factor is None else scores.factor
    found = factor[:heads, 0, 0]
    every = np.tile(found, len(factor) // heads)[:, None, None]
    if not np.array_equal(factor, np.broadcast_to(every, factor.shape)):
        raise record.refuse("multiplies products by other numbers than one for each head")
    return found.copy()


def _beyond(record: Record, x: Index, heads: int) -> NDArray[np.float32]:
    """(C,) numbers of pixels beyond the map, of references (B, N, d)."""
    constant, values = record.numbers(Traced(record, from_numpy(x.astype(np.float64))))
    shape = (-1, heads, *x.shape[1:])
    each, known = values.reshape(shape), constant.reshape(shape)
    found: NDArray[np.float64] = np.zeros((heads, 1, x.shape[2]))
    if known.any():
        group, _, token, _ = np.argwhere(known)[0]
        found = each[group, :, token][:, None]
    if (np.where(known, found, 0) != each).any():
        raise record.refuse("has other numbers at some pixels beyond the map than at others")
    return found.reshape(-1).astype(np.float32)


def _bias(record: Record, scores: Scores, where: _Windows, heads: int) -> NDArray[np.float32]:
    """(h, N, N) biases of all windows, whose mask is as `rectangles.mask`."""
    count, mask = scores.shape[0] // heads, rectangles.mask(*where.all)
    pairs = (mask.shape[2], mask.shape[3])
    bias, masked = np.zeros((1, heads, *pairs), np.float32), not mask.any()
    for values in scores.added:
        each = values.reshape(count, heads, *pairs)
        if not masked and np.array_equal(each, np.broadcast_to(mask, each.shape)):
            masked = True
        elif np.array_equal(each, np.broadcast_to(each[:1], each.shape)):
            bias = bias + each[:1]
        else:
            raise record.refuse("adds other biases to some windows than to others")
    if not masked:
        raise record.refuse("attends across the border that its windows were shifted over")
    return bias[0]


def _table(where: _Windows, bias: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """(positions, heads) biases by relative positions, as `rectangles.relative_positions`; None
    where they depend on more."""
    rows = rectangles.relative_positions(where.window)
    table = np.zeros((int(rows.max()) + 1, len(bias)), np.float32)
    table[rows] = bias.transpose(1, 2, 0)
    close = np.abs(table[rows].transpose(2, 0, 1) - bias).max() <= _CLOSE * max(1, np.abs(bias).max())
    return table if close else None
