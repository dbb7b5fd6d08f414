"""Losses on features, one number at a time; a feature map is a nested list (B, C, positions)."""

from __future__ import annotations

import math
from collections.abc import Sequence

Maps = Sequence[Sequence[Sequence[float]]]


def pams(student: Maps, teacher: Maps) -> float:
    """Mean over pictures and positions of the squared difference of two normalized maps."""
    total, count = 0.0, 0
    for ours, theirs in zip(student, teacher, strict=True):
        maps = []
        for channels in (ours, theirs):
            energy = [sum(c[i] ** 2 for c in channels) / len(channels) for i in range(len(channels[0]))]
            norm = math.sqrt(sum(e * e for e in energy))
            maps.append([e / norm for e in energy])
        total += sum((a - b) ** 2 for a, b in zip(*maps, strict=True))
        count += len(maps[0])
    return total / count


def sfd(student: Maps, teacher: Maps) -> float:
    """The Euclidean distance of all features of two maps."""
    return math.sqrt(
        sum(
            (a - b) ** 2
            for ours, theirs in zip(student, teacher, strict=True)
            for c, d in zip(ours, theirs, strict=True)
            for a, b in zip(c, d, strict=True)
        )
    )
