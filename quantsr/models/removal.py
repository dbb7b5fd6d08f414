"""QSA: blocks are removed while training, until a depth is reached (QuantSR+, TPAMI 2026). Pure
arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

START = 0.2
"""Share of the iterations after which the first block is removed."""
SPAN = 0.6
"""Share in which all others are, so that the last fifth trains what is left."""


class Removal:
    """When blocks are removed, and which.

    The first is removed after 20 % of the iterations, one more at each validation at which PSNR is
    back where it was at the validation before the last removal, or a number of iterations has
    passed since it: ``2 T / blocks`` in the paper, ``T`` the iterations of the training. That many
    would end behind the training, since half of the blocks are removed; here it is at most
    ``0.6 T / (n - 1)``, ``n`` the blocks to be removed, so that the last goes after 80 %. Before
    the first validation nothing says what PSNR was, and only iterations count.

    Args:
        iterations: ``T``.
        blocks: of the network.
        left: how many stay; half in the paper.

    Attributes:
        removed: indices of the blocks removed so far, in that order.
    """

    def __init__(self, *, iterations: int, blocks: int, left: int) -> None:
        self.blocks, self.left = blocks, left
        self.start = round(START * iterations)
        self.wait = min(2 * iterations / blocks, SPAN * iterations / max(blocks - left - 1, 1))
        self.removed: list[int] = []
        self._last = 0
        self._wanted: float | None = None
        self._seen: float | None = None

    @property
    def depth(self) -> int:
        """How many blocks run now."""
        return self.blocks - len(self.removed)

    @property
    def ranking(self) -> tuple[int, ...]:
        """Blocks in the order of the network, then those removed, the last one first."""
        return (*self._kept(), *reversed(self.removed))

    def _kept(self) -> list[int]:
        return [index for index in range(self.blocks) if index not in self.removed]

    def starts(self, iteration: int) -> bool:
        """Whether the first block is to be removed before ``iteration`` + 1."""
        return not self.removed and self.depth > self.left and iteration >= self.start

    def validated(self, iteration: int, psnr: float) -> bool:
        """Takes the result of a validation; whether one more block is to be removed."""
        recovered = self._wanted is not None and psnr >= self._wanted
        due = recovered or iteration - self._last >= self.wait
        self._seen = psnr
        return bool(self.removed) and self.depth > self.left and due

    def remove(self, iteration: int, shortcuts: Sequence[float]) -> int:
        """Removes the block with the largest shortcut of those left, the first of equal ones.

        Args:
            iteration: the present one.
            shortcuts: of all blocks.

        Returns:
            Its index.
        """
        block = max(self._kept(), key=lambda index: (shortcuts[index], -index))
        self.removed.append(block)
        self._last, self._wanted = iteration, self._seen
        return block

    def state(self) -> dict[str, Any]:
        """The state from which `load_state` goes on."""
        return {
            "removed": list(self.removed),
            "last": self._last,
            "wanted": self._wanted,
            "seen": self._seen,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores `state`."""
        removed = [int(index) for index in state["removed"]]
        if len(set(removed)) != len(removed) or not set(removed) <= set(range(self.blocks)):
            raise ValueError(f"removed blocks {removed} of {self.blocks}")
        self.removed, self._last = removed, int(state["last"])
        self._wanted, self._seen = state["wanted"], state["seen"]
