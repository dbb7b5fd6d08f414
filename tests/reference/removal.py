"""QSA step by step: the blocks removed in a training whose PSNR and shortcuts are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def removals(
    total: int, blocks: int, left: int, psnr: Mapping[int, float], shortcuts: Sequence[float]
) -> list[tuple[int, int]]:
    """Iterations and blocks of all removals; ``psnr`` by the iteration of its validation."""
    found: list[tuple[int, int]] = []
    alive = list(range(blocks))
    before = seen = None  # PSNR of the validation before the last removal, and of the last one
    longest = min(2 * total / blocks, 0.6 * total / max(blocks - left - 1, 1))
    for iteration in range(1, total + 1):
        remove = False
        if iteration in psnr and found:
            back = before is not None and psnr[iteration] >= before
            remove = back or iteration - found[-1][0] >= longest
        if iteration in psnr:
            seen = psnr[iteration]
        if not found and iteration >= round(0.2 * total):
            remove = True
        if remove and len(alive) > left:
            worst = alive[0]
            for block in alive:
                if shortcuts[block] > shortcuts[worst]:
                    worst = block
            alive.remove(worst)
            found.append((iteration, worst))
            before = seen
    return found
