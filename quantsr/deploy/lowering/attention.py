"""Attention that a module computes by products of its own, found among the operations of torch:
that of windows to larger windows around them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quantsr.deploy import windows
from quantsr.deploy.lowering import channels, everywhere, rectangles
from quantsr.deploy.lowering.scores import Index, Scores, in_order, scores_of, started
from quantsr.deploy.lowering.traced import Map, Record, Traced
from quantsr.deploy.passes.fold import relative_positions

_CLOSE = 1e-6  # of biases, relative to the largest


def product(record: Record, a: Any, b: Any) -> Traced:
    """Scores of queries and keys, or what attention by scores gives of values."""
    if not isinstance(a, Traced) or not isinstance(b, Traced):
        raise record.refuse("multiplies by a constant matrix")
    scores, (left, right) = scores_of(record, a), (x.references.numpy().astype(np.int64) for x in (a, b))
    if scores is not None and scores.softmax and in_order(record, a):
        if channels.attends(record, scores):
            of_pixels = channels.of_pixels(record, scores)
            if of_pixels is None:
                return channels.attention(record, scores, right)
            return rectangles.attention(record, of_pixels, right, cosine=True)
        _, queries, keys = scores.shape
        if queries != keys and (found := everywhere.attention(record, scores, right)) is not None:
            return found
        return (rectangles.attention if queries == keys else _overlapping)(record, scores, right)
    if scores is not None or scores_of(record, b) is not None:
        raise record.refuse("multiplies values of the picture by each other")
    return started(record, left, right)


def _overlapping(record: Record, scores: Scores, v: Index) -> Traced:
    """The operation `window_attention` with an overlap; InputError for any other attention."""
    _, queries, size = scores.q.shape
    window, side = math.isqrt(queries), math.isqrt(v.shape[1])
    value, columns, pixels, factor = _source(record, scores.q)
    keys, values = (_source(record, x) for x in (scores.k.transpose(0, 2, 1), v))
    source = record.maps[value]
    total, grid = source.channels // 3, source.size
    heads, overlap = max(1, total // size), (side - window) // 2
    if not (
        record.operations[source.value - 1].kind == "linear"
        and keys[0] == values[0] == value
        and (window**2, side**2) == (queries, v.shape[1])
        and (total * 3, heads * size, window + 2 * overlap) == (source.channels, total, side)
        and overlap > 0
        and not any(n % window for n in grid)
        and (factor, keys[3], values[3], scores.number) == (size**-0.5, 1, 1, 1)
    ):
        raise record.refuse("attends to other windows than those around its own")
    every = np.arange(math.prod(grid)).reshape(grid)
    inside = windows.windowed(every, window, 0)  # (G, N)
    around = windows.overlapping(grid, window, overlap)  # (G, M)
    for part, (_, found, at, _), places in (
        (0, (value, columns, pixels, factor), inside),
        (1, keys, around),
        (2, values, around),
    ):
        beyond = np.repeat(places, heads, 0)[..., None] == every.size
        column = part * total + np.arange(total).reshape(heads, 1, size)
        wanted = np.where(beyond, -1, np.tile(column, (len(places), places.shape[1], 1)))
        where = np.where(beyond, -1, np.repeat(places, heads, 0)[..., None])
        if not np.array_equal(found, wanted) or not np.array_equal(at, np.broadcast_to(where, at.shape)):
            raise record.refuse("attends to other windows than those around its own")
    name = record.modules[-1] if record.modules else ""
    table = record.parameters.get(f"{name}.relative_position_bias_table")
    rows = relative_positions(window, overlap)
    if table is None or tuple(table.shape) != (int(rows.max()) + 1, heads):
        raise record.refuse("attends without a table of biases by relative positions")
    bias = table.detach().float().cpu().numpy()[rows].transpose(2, 0, 1)  # (h, N, M)
    added = np.zeros(scores.shape, np.float32)
    for addend in scores.added:
        added = added + addend
    if np.abs(added - np.tile(bias, (len(inside), 1, 1))).max() > _CLOSE * max(1, np.abs(bias).max()):
        raise record.refuse("adds other biases than those of its table of relative positions")
    how = {"heads": heads, "window": window, "shift": 0, "quantized": 0, "overlap": overlap}
    output = record.append("window_attention", source.value, name=name, **how)
    column = np.arange(total).reshape(heads, 1, size) * every.size
    places = np.tile(column, (len(inside), 1, 1)) + np.repeat(inside, heads, 0)[..., None]
    return record.tensor(Map(output, total, grid), places)


def _source(record: Record, references: Index) -> tuple[int, Index, Index, float]:
    """The map that references go back to through scales and slices, of each the channel and the
    pixel, -1 of zeros beyond the map, and the product of the scales."""
    owner = np.searchsorted(record.starts, references, "right") - 1
    used = np.unique(owner[references > 0])
    if len(used) != 1:
        raise record.refuse("multiplies values of several sources")
    target, start = record.maps[used[0]], record.starts[used[0]]
    channel, pixel = np.divmod(references - start, math.prod(target.size))
    value, factor = target.value, 1.0
    while value > 0 and (op := record.operations[value - 1]).kind in ("scale", "slice"):
        factor *= op.attributes.get("factor", 1.0)
        channel = channel + op.attributes.get("start", 0)
        value = op.inputs[0]
    for x in (channel, pixel):
        x[references == 0] = -1
    index = next((i for i, found in enumerate(record.maps) if found.value == value), -1)
    return index, channel, pixel, factor
