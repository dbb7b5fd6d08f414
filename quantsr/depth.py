"""Depth: which blocks a sub-network keeps (QuantSR's depth-dynamic architecture, section 3.3). No
torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

DepthRule = Literal["exact", "released"]
"""``exact``: a sub-network of depth d has d blocks. ``released``: it has d + 1 below full depth, as
the test script of the released code counts (17 and 9 of 32)."""


def default_depths(num_block: int) -> tuple[int, ...]:
    """``(2N, N, N/2)``, deepest first, for a network of ``2N`` blocks; fewer where they coincide or
    reach 0.

    >>> default_depths(32)
    (32, 16, 8)
    """
    return tuple(sorted({num_block, num_block // 2, num_block // 4} - {0}, reverse=True))


def check_depths(depths: Sequence[int], num_block: int) -> tuple[int, ...]:
    """``depths`` deepest first.

    Raises:
        ValueError: unless all are different, in 1..num_block, and ``num_block`` is among them.
    """
    ordered = tuple(sorted(depths, reverse=True))
    if len(set(ordered)) != len(ordered) or not ordered or not all(1 <= d <= num_block for d in ordered):
        raise ValueError(f"depths must be different numbers in 1..{num_block}, got {list(depths)}")
    if ordered[0] != num_block:
        raise ValueError(f"depths must contain the full depth {num_block}, got {list(depths)}")
    return ordered


def rank_by_shortcut(shortcuts: Sequence[float]) -> tuple[int, ...]:
    """Block indices, the most important first, by ascending learned shortcut: a block with a large
    shortcut contributes little by its residual branch.

    Ties keep the order of the network.

    Args:
        shortcuts: one number for each block.
    """
    return tuple(sorted(range(len(shortcuts)), key=lambda i: (shortcuts[i], i)))


def rank_by_loss(
    count: int, losses: Callable[[Sequence[frozenset[int]]], Sequence[float]]
) -> tuple[int, ...]:
    """Block indices, the most important first, by backward elimination: the block whose removal
    raises the loss least is removed, again and again until one is left.

    Unlike a ranking by one number per block, this takes into account that the effect of a removal
    depends on the remaining blocks.

    Args:
        count: number of blocks.
        losses: maps sets of blocks to the losses of the sub-networks that run them.
    """
    kept, removed = frozenset(range(count)), []
    while len(kept) > 1:
        candidates = sorted(kept)
        found = losses([kept - {block} for block in candidates])
        removed.append(min(zip(found, candidates, strict=True))[1])
        kept -= {removed[-1]}
    return (*kept, *reversed(removed))


def check_ranking(ranking: Sequence[int], num_block: int) -> tuple[int, ...]:
    """``ranking`` as a tuple.

    Raises:
        ValueError: unless it is a permutation of all block indices.
    """
    order = tuple(int(i) for i in ranking)
    if sorted(order) != list(range(num_block)):
        raise ValueError(f"ranking must name each of the {num_block} blocks once, got {list(ranking)}")
    return order


def blocks_kept(ranking: Sequence[int], depth: int, rule: DepthRule = "exact") -> tuple[int, ...]:
    """Indices, in the order of the network, of the blocks that the sub-network of ``depth`` runs.

    Raises:
        ValueError: if ``depth`` is not in 1..number of blocks.
    """
    if not 1 <= depth <= len(ranking):
        raise ValueError(f"depth must be 1..{len(ranking)}, got {depth}")
    count = depth + 1 if rule == "released" and depth < len(ranking) else depth
    return tuple(sorted(ranking[:count]))
