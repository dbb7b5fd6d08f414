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
    edges = np.arange(*limits, dtype=np.float64) + 0.5
    near = (edges * step).astype(np.float32)
    values = (near.view(np.int32)[:, None] + np.arange(-4, 5, dtype=np.int32)).view(np.float32).ravel()
    wanted = np.rint(values / step)
    first = np.concatenate([np.ones(5), np.linspace(0.5, 1, _PAIRS, endpoint=False)]).astype(np.float32)
    second = (1 / (step.astype(np.float64) * first)).astype(np.float32)
    second[:5] = (plain.view(np.int32) + np.array([0, 1, -1, 2, -2], np.int32)).view(np.float32)
    codes = np.rint(values * first[:, None] * second[:, None])
    best = int(np.argmin((codes != wanted).sum(1)))
    return [part[best : best + 1] for part in (first, second) if part[best] != 1]
