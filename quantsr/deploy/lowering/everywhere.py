"""Attention of every pixel to all pixels of a smaller map, which a module computes by products of
its own: found among the operations of torch."""

from __future__ import annotations

import math

import numpy as np

from quantsr.deploy.lowering.scores import Index, Scores
from quantsr.deploy.lowering.traced import Found, Map, Record, Traced, decimal


def attention(record: Record, scores: Scores, v: Index) -> Traced | None:
    """The operation `global_attention`, of scores behind a softmax and references (h, M, d); None
    where not all pixels attend to all of a map."""
    if any(bool((x == 0).any()) for x in (scores.q, scores.k, v)):
        return None
    q, k, values = (record.find_channels(x) for x in (scores.q, scores.k.transpose(0, 2, 1), v))
    if not all(map(_is_whole, (q, k, values))) or k.map.size != values.map.size:
        return None
    if scores.added or scores.number is None:
        raise record.refuse("adds biases to products of all pixels, or multiplies some by other numbers")
    query = q.map.value
    if scores.number != 1:
        query = record.append("scale", query, factor=decimal(scores.number))
    name, heads = record.modules[-1] if record.modules else "", len(v)
    inputs = (query, k.map.value, values.map.value)
    output = record.append("global_attention", *inputs, name=name, heads=heads)
    result = Map(output, values.map.channels, q.map.size)
    return record.tensor(result, _places(heads, values.map.channels // heads, q.map.size))


def _is_whole(part: Found) -> bool:
    """Whether it is a whole map as (heads, pixels, channels of a head)."""
    heads, _, size = part.places.shape
    wanted = _places(heads, size, part.map.size)
    return part.map.channels == heads * size and np.array_equal(part.places, wanted)


def _places(heads: int, size: int, grid: tuple[int, int]) -> Index:
    """(h, L, d)"""
    found: Index = np.arange(heads * size * math.prod(grid)).reshape(heads, size, -1).transpose(0, 2, 1)
    return found
