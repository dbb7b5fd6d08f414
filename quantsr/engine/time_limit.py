"""The time limit of a training run in leased time: when it writes checkpoints and stops, and its
measured speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

SKIPPED_STEPS = 10
"""First iterations of each stage in a session that are left out when its speed is measured: kernels
are chosen and CUDA graphs recorded in them."""

FEWEST_STEPS = 30
"""Iterations before ``part`` can end a session: enough to measure the speed of a stage."""


@dataclass
class TimeLimit:
    """A limit on the wall-clock time of a run, checked by `quantsr.engine.trainer.Trainer` after
    every iteration.

    Attributes:
        stop_at: reading of ``clock`` from which on the run stops, with a checkpoint.
        part: seconds after the first iteration from which on it stops too, once `FEWEST_STEPS`
            iterations are done.
        steps: iterations after which it stops too.
        save_every: seconds between checkpoints, in addition to those of the options.
        clock: a monotonic clock in seconds.
    """

    stop_at: float
    part: float = math.inf
    steps: float = math.inf
    save_every: float = 45.0
    clock: Callable[[], float] = time.monotonic
    _saved_at: float = field(init=False)
    _began_at: float | None = field(init=False, default=None)
    _steps: dict[int, int] = field(init=False, default_factory=dict)
    _first: dict[int, float] = field(init=False, default_factory=dict)
    _last: dict[int, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._saved_at = self.clock()

    def reached(self) -> bool:
        """Whether the run must stop now."""
        now = self.clock()
        steps = sum(self._steps.values())
        if steps >= self.steps:
            return True
        if self._began_at is None or steps < FEWEST_STEPS:
            return now >= self.stop_at
        return now >= min(self.stop_at, self._began_at + self.part)

    def stepped(self, stage: int) -> None:
        """Counts one iteration of ``stage``."""
        self._steps[stage] = self._steps.get(stage, 0) + 1
        self._last[stage] = self.clock()
        self._began_at = self._last[stage] if self._began_at is None else self._began_at
        if self._steps[stage] == SKIPPED_STEPS:
            self._first[stage] = self._last[stage]

    def save_is_due(self) -> bool:
        """Whether the last checkpoint is ``save_every`` seconds old."""
        return self.clock() - self._saved_at >= self.save_every

    def saved(self) -> None:
        """Notes that a checkpoint was written."""
        self._saved_at = self.clock()

    def speeds(self) -> dict[int, float]:
        """Iterations per second of each measured stage, including its checkpoints and
        validations."""
        return {
            stage: (self._steps[stage] - SKIPPED_STEPS) / (self._last[stage] - first)
            for stage, first in self._first.items()
            if self._last[stage] > first
        }
