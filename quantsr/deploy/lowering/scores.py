"""Products that a module computes of values of the picture, in the making: of queries and keys,
scaled, with biases, through a softmax, times values. What attention that is, say `attention`,
`rectangles` and `channels`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, as_tensor

from quantsr.deploy.folded import MASKED
from quantsr.deploy.lowering.traced import Record, Traced

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scores:
    """The products of queries and keys, (B, N, M)."""

    misuse = "multiplies values of the picture by each other"
    q: Index
    """References, (B, N, d)."""
    k: Index
    """(B, d, M)"""
    factor: NDArray[np.float32] | None = None
    """(B, N, M), by which they are multiplied."""
    added: tuple[NDArray[np.float32], ...] = ()
    """(B, N, M), added to them one after the other."""
    softmax: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, N, M)"""
        return (*self.q.shape[:2], self.k.shape[2])

    @property
    def number(self) -> float | None:
        """The factor, where it is one number."""
        if self.factor is None:
            return 1.0
        first = float(self.factor.flat[0])
        return first if (self.factor == self.factor.flat[0]).all() else None


def reordered(scores: Scores, order: Index) -> Scores:
    """Those of batches in another order."""
    return replace(
        scores,
        q=scores.q[order],
        k=scores.k[order],
        factor=None if scores.factor is None else scores.factor[order],
        added=tuple(each[order] for each in scores.added),
    )


def pending(record: Record, x: Any) -> Any:
    """What is in the making, where a tensor refers to that."""
    if not isinstance(x, Traced) or not x.numel():
        return None
    first = int(np.searchsorted(record.starts, int(x.references.reshape(-1)[0]), "right")) - 1
    return record.pending.get(first)


def scores_of(record: Record, x: Any) -> Scores | None:
    """The scores that a tensor refers to."""
    found = pending(record, x)
    return found if isinstance(found, Scores) else None


def started(record: Record, a: Index, b: Index) -> Traced:
    """New scores, of references (B, N, d) and (B, d, M)."""
    scores = Scores(a, b)
    return refer(record, scores, scores.shape)


def biased(record: Record, x: Traced, constant: Any) -> Traced:
    """Scores plus a constant tensor."""
    scores = scores_of(record, x)
    if scores is None or scores.softmax or not in_order(record, x):
        raise record.refuse("adds a constant to products of values of the picture")
    values = _spread(constant, x).reshape(scores.shape)
    return _like(record, x, replace(scores, added=(*scores.added, values)))


def masked(record: Record, x: Traced, where: Any, value: Any) -> Traced:
    """Scores with minus infinity where a mask says: with MASKED added, of which softmax makes 0."""
    if scores_of(record, x) is None or float(value) > MASKED:
        raise record.refuse("calls aten.masked_fill")
    return biased(record, x, MASKED * as_tensor(where).float())


def scaled(record: Record, x: Traced, constant: Any) -> Traced:
    """Scores times a number or a constant tensor."""
    scores = scores_of(record, x)
    if scores is None or scores.softmax or scores.added or not in_order(record, x):
        raise record.refuse("multiplies products of values of the picture by a constant")
    values = _spread(constant, x).reshape(scores.shape)
    factor = values if scores.factor is None else scores.factor * values
    return _like(record, x, replace(scores, factor=factor))


def softmax(record: Record, x: Any, dim: int) -> Traced:
    """Of scores, along the keys."""
    scores = scores_of(record, x)
    if scores is None or scores.softmax or dim % x.dim() != x.dim() - 1 or not in_order(record, x):
        raise record.refuse("computes a softmax of other values than attention's")
    return _like(record, x, replace(scores, softmax=True))


def refer(record: Record, what: Any, shape: tuple[int, ...]) -> Traced:
    """References to something in the making."""
    return record.refer(what, shape)


def in_order(record: Record, x: Traced) -> bool:
    """Whether a tensor has all of something in the making, as it was made."""
    references = x.references.reshape(-1).numpy()
    index = int(np.searchsorted(record.starts, int(references[0]), "right")) - 1
    whole = len(references) == record.maps[index].channels
    return whole and np.array_equal(references, np.arange(len(references)) + record.starts[index])


def _like(record: Record, x: Traced, scores: Scores) -> Traced:
    return refer(record, scores, tuple(x.shape))


def _spread(constant: Any, x: Tensor) -> NDArray[np.float32]:
    """A constant of the shape of `x`."""
    values: NDArray[np.float32] = as_tensor(constant).detach().float().cpu().broadcast_to(x.shape).numpy()
    return values
