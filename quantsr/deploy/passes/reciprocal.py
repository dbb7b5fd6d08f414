"""Multiplying instead of dividing by a step, with the same codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import is_wide

_PAIRS = 1000  # of factors tried


def reciprocal(step: NDArray[np.float32], limits: tuple[int, int]) -> list[NDArray[np.float32]]:
    """What to multiply by, in turn, instead of dividing by `step` (1,), a division being several
    times as slow, so that codes between `limits` stay the same.

    `rint(x * (1 / step))` differs from `rint(x / step)` for a few single float32 numbers next to
    edges between codes. Of the numbers next to `1 / step` and a thousand pairs whose product it is,
    these are the first with which the fewest differ: with 4 bits none, as a rule. Of several steps,
    the plain reciprocals.
    """
    plain = np.float32(1) / step
    if step.size != 1 or is_wide(limits):
        return [plain]
    values = _near_edges(step, limits)
    wanted = np.rint(values / step)
    first = np.concatenate([np.ones(5), np.linspace(0.5, 1, _PAIRS, endpoint=False)]).astype(np.float32)
    second = (1 / (step.astype(np.float64) * first)).astype(np.float32)
    second[:5] = (plain.view(np.int32) + np.array([0, 1, -1, 2, -2], np.int32)).view(np.float32)
    codes = np.rint(values * first[:, None] * second[:, None])
    best = int(np.argmin((codes != wanted).sum(1)))
    return [part[best : best + 1] for part in (first, second) if part[best] != 1]


def exact_factors(
    step: NDArray[np.float32], limits: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Two factors (1,) whose multiplication in turn gives, for every float32 number, the code that
    dividing by `step` gives; None where there are none among those tried, or several steps."""
    if step.size != 1 or is_wide(limits):
        return None
    one = np.ones(1, np.float32)
    first, second = (*reciprocal(step, limits), one, one)[:2]
    values = _near_edges(step, limits)
    same = np.rint(values * first * second) == np.rint(values / step)
    return (first, second) if same.all() else None


def _near_edges(step: NDArray[np.float32], limits: tuple[int, int]) -> NDArray[np.float32]:
    """The float32 numbers next to the edges between codes; of all others both give the same."""
    near = ((np.arange(*limits, dtype=np.float64) + 0.5) * step).astype(np.float32)
    return (near.view(np.int32)[:, None] + np.arange(-4, 5, dtype=np.int32)).view(np.float32).ravel()
