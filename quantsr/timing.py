"""Fair timing of alternatives: interleaved in one run, with medians, quartiles, and a description
of the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

from quantsr import cpu


@dataclass(frozen=True)
class Timing:
    """Times of one contender in milliseconds."""

    name: str
    times: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.times)

    @property
    def spread(self) -> float:
        """Distance between the quartiles; 0 for a single run."""
        if len(self.times) < 2:
            return 0.0
        low, _, high = quantiles(self.times, n=4)
        return high - low

    @property
    def fastest(self) -> float:
        return min(self.times)

    def row(self) -> dict[str, float]:
        """Median, fastest and slowest run, for a table."""
        return {
            "median_ms": round(self.median, 3),
            "min_ms": round(self.fastest, 3),
            "max_ms": round(max(self.times), 3),
        }


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    sync: Callable[[], object] | None = None,
) -> list[Timing]:
    """Run every contender once per round, so that a temporary load of the machine affects all
    alike.

    Each contender first runs `warm_up` times untimed; `sync`, if given, is called before each
    reading of the clock, to wait for the device.
    """
    wait = sync or (lambda: None)
    for call in contenders.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            times[name].append((time.perf_counter() - start) * 1e3)
    return [Timing(name, tuple(values)) for name, values in times.items()]


def machine() -> str:
    """Processor, cores this process may use, and the vector extensions that matter for low-bit
    arithmetic."""
    name, flags = cpu.describe()
    wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    extensions = " ".join(f for f in wanted if f in flags) or "no known vector extension"
    cores = cpu.cores()
    return f"{name}, {cores} core{'s' * (cores > 1)}, {extensions}"


def load_per_core() -> float:
    """Runnable processes per core over the last minute. Where it is above about 0.5 before a
    measurement, the times are unreliable."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)
