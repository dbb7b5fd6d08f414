"""Shared by all stress tests: a seed that is printed, and a time budget."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest


class Budget:
    """A seeded run with a time limit.

    Args:
        seconds: duration of `rounds`.
        seed: of all random numbers of the run.

    Attributes:
        rng: the random generator of the test.
        count: rounds begun so far.
    """

    def __init__(self, seconds: float, seed: int) -> None:
        self.seconds, self.seed = seconds, seed
        self.rng = random.Random(seed)
        self.count = 0

    def rounds(self, at_most: int | None = None) -> Iterator[int]:
        """Number the rounds from 0 until the time is used up, or ``at_most`` of them were begun."""
        end = time.monotonic() + self.seconds
        while time.monotonic() < end and (at_most is None or self.count < at_most):
            self.count += 1
            yield self.count - 1


@pytest.fixture
def budget() -> Iterator[Budget]:
    """The budget of one stress test: QUANTSR_STRESS_SECONDS and QUANTSR_STRESS_SEED, see
    scripts/check.sh."""
    given = os.environ.get("QUANTSR_STRESS_SEED")
    seed = int(given) if given else random.SystemRandom().randrange(2**32)
    found = Budget(float(os.environ.get("QUANTSR_STRESS_SECONDS", "60")), seed)
    print(f"QUANTSR_STRESS_SEED={seed}")
    yield found
    print(f"{found.count} rounds")
