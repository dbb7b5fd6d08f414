"""Attention between channels that a module computes by products of its own: found among the
operations of torch, with the lengths that queries and keys are divided by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantsr.deploy.folded import LEAST_LENGTH
from quantsr.deploy.lowering.scores import Index, Scores, in_order, pending, refer
from quantsr.deploy.lowering.traced import Map, Record, Traced


@dataclass(frozen=True, eq=False)
class Lengths:
    """Of vectors along the last dimension of a tensor."""

    misuse = "computes with lengths of vectors"
    of: Index
    """References of that tensor."""
    least: float = 0.0
    """What shorter ones count as."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Vectors along the last dimension, divided by their lengths."""

    misuse = "computes with vectors of length 1"
    of: Index
    """References of what was divided."""


def lengths(
    record: Record,
    x: Traced,
    order: Any = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    **_: Any,
) -> Traced:
    """The Euclidean norm along the last dimension."""
    if order != 2 or dim is None or [n % x.dim() for n in dim] != [x.dim() - 1] or not keepdim:
        raise record.refuse("computes another norm than that along the last dimension")
    return refer(record, Lengths(_references(x)), (*x.shape[:-1], 1))


def at_least(record: Record, x: Any, least: Any) -> Traced:
    """Lengths of which none is smaller than a number."""
    found = pending(record, x)
    if not isinstance(found, Lengths) or not in_order(record, x):
        raise record.refuse("calls aten.clamp_min")
    return refer(record, replace(found, least=float(least)), tuple(x.shape))


def divided(record: Record, x: Traced, by: Traced) -> Traced:
    """Vectors divided by their lengths."""
    found = pending(record, by)
    if not isinstance(found, Lengths):
        raise record.refuse("divides by a value")
    each = by.references
    whole = Traced(record, each[..., :1]) if each.shape == x.shape and (each == each[..., :1]).all() else by
    if not in_order(record, whole) or not np.array_equal(found.of, _references(x)):
        raise record.refuse("divides vectors by other lengths than theirs")
    if not math.isclose(found.least, LEAST_LENGTH, rel_tol=1e-6):
        raise record.refuse(f"divides by lengths of at least {found.least:g} instead of {LEAST_LENGTH:g}")
    return refer(record, Directions(found.of), tuple(x.shape))


def attends(record: Record, scores: Scores) -> bool:
    """Whether scores are products of vectors that were divided by their lengths."""
    return all(isinstance(record.pending.get(_owner(record, x)), Directions) for x in (scores.q, scores.k))


def of_pixels(record: Record, scores: Scores) -> Scores | None:
    """The scores of what was divided, where each vector has channels of one pixel; else None."""
    q, k = (_undivided(record, x) for x in (scores.q, scores.k.transpose(0, 2, 1)))
    if not q.size or q.shape[-1] < 2:
        return None
    inside = q[(q > 0).all(-1)]
    if not inside.size:
        return None
    owner = _owner(record, inside)
    pixel = (inside[0] - record.starts[owner]) % math.prod(record.maps[owner].size)
    return replace(scores, q=q, k=k.transpose(0, 2, 1)) if (pixel == pixel[0]).all() else None


def attention(record: Record, scores: Scores, v: Index) -> Traced:
    """The operation `channel_attention`, of scores behind a softmax and references (B, d, L);
    InputError for any other attention."""
    heads, size, _ = v.shape
    q, k = (_undivided(record, x) for x in (scores.q, scores.k.transpose(0, 2, 1)))
    refusal = record.refuse("attends to other channels than all of a head, over all pixels")
    if q.shape != v.shape or k.shape != v.shape:
        raise refusal
    parts = [record.find_channels(x) for x in (q, k, v)]
    grid, channels = parts[0].map.size, heads * size
    wanted = np.arange(channels * math.prod(grid)).reshape(heads, size, -1)
    for part in parts:
        if part.map.size != grid or not np.array_equal(part.places, wanted):
            raise refusal
    if scores.added:
        raise record.refuse("adds a constant to products of channels")
    factor = np.ones(scores.shape, np.float32) if scores.factor is None else scores.factor
    temperature = factor[:, 0, 0]
    if not np.array_equal(factor, np.broadcast_to(temperature[:, None, None], factor.shape)):
        raise record.refuse("multiplies products of channels by other numbers than one for each head")
    name = record.modules[-1] if record.modules else ""
    record.keep(f"{name}.temperature", temperature.copy())
    values = (part.map.value for part in parts)
    output = record.append("channel_attention", *values, name=name, heads=heads)
    return record.tensor(Map(output, channels, grid), wanted)


def _undivided(record: Record, x: Index) -> Index:
    """What directions (B, d, L) are of; an empty array where they are not whole ones."""
    owner = _owner(record, x)
    directions = record.pending[owner]
    assert isinstance(directions, Directions)
    at = x - record.starts[owner]
    length = directions.of.shape[-1]
    whole = x.shape[-1] == length and np.array_equal(at, at[..., :1] + np.arange(length))
    if not whole or (at[..., 0] % length).any() or at.min() < 0 or at.max() >= directions.of.size:
        return np.empty((0, 0, 0), np.int64)
    found: Index = directions.of.reshape(-1)[at]
    return found


def _owner(record: Record, x: Index) -> int:
    """The number of the map that the first reference is to."""
    return int(np.searchsorted(record.starts, x.flat[0], "right")) - 1


def _references(x: Traced) -> Index:
    found: Index = x.references.numpy().astype(np.int64)
    return found
