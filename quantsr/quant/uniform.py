"""Base classes of the baselines.

Weights whose step is a fraction of ``max|w|``, and inputs on uniform levels, with bounds from a
sample and the extremes of calibration batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from quantsr.quant.autograd import ActivationQuant
from quantsr.quant.functional import SIGN_TOLERANCE, sample
from quantsr.quant.kernels import MIN_STEP
from quantsr.quant.quantizers import ActivationQuantizer, WeightQuantizer
from quantsr.ranges import IntRange

FRACTIONS = tuple(2.0 ** (-k / 4) for k in range(29))
"""Fractions of the largest value, 1 to 1/128: candidates for a bound of least squared error."""

_SAMPLE = 2**13
"""How many values of a calibration batch are kept."""

Candidate = TypeVar("Candidate")


class CalibrationStatistics(NamedTuple):
    """Statistics of an input quantizer's calibration batches since its last reset."""

    sample: Tensor
    """(N,) values of all batches, FP32, on the CPU."""
    low: float
    """Smallest value of all batches, at most 0; 0 where the range is unsigned."""
    high: float
    """Largest value of all batches, at least 0."""
    peak: float
    """Mean over the batches of each one's largest absolute value."""


def straight_through(values: Tensor, x: Tensor) -> Tensor:
    """``values`` to the last bit, with the gradient of ``x``."""
    return values.detach() + (x - x.detach())


def percentile_of(rows: Tensor, percent: float) -> Tensor:
    """(R,) a percentile of each row of ``rows`` (R, N), linear between its two neighbours."""
    return torch.quantile(rows, percent / 100, dim=1)


def least_error(
    x: Tensor, candidates: Iterable[Candidate], quantize: Callable[[Tensor, Candidate], Tensor]
) -> Candidate:
    """The candidate with which ``quantize`` leaves the least squared error of ``x``."""
    return min(candidates, key=lambda candidate: float((quantize(x, candidate) - x).square().mean()))


def step_of_least_error(
    seen: CalibrationStatistics, reach: float, quantize: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """(1,) the step with which ``quantize`` leaves the least squared error.

    Candidates are those whose bound, ``reach`` steps, is a fraction of the largest value.
    """
    largest = torch.tensor([max(-seen.low, seen.high) / reach])
    return least_error(seen.sample, (largest * f for f in FRACTIONS), quantize)


class MaxAbsWeight(WeightQuantizer):
    """Base of weight quantizers whose step is a fraction of the current ``max|w|``.

    A subclass defines ``quantize``.
    """

    learned_step = False

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Store the step; the levels follow from the weight alone."""
        self._mark_calibrated()
        self.quantize(weight, torch.float32)

    @torch.no_grad()
    def max_abs_step(self, values: Tensor, reach: int) -> Tensor:
        """``max|values| / reach`` per tensor (1,) or output channel (O, 1, ...); sets ``step``."""
        rows = values.reshape(self.step.numel(), -1)  # (1, O * ...) or (O, ...)
        step = (rows.abs().amax(1) / reach).clamp_min(MIN_STEP)
        self.step.copy_(step)
        return step if step.numel() == 1 else step.view(-1, *[1] * (values.dim() - 1))


class UniformActivation(ActivationQuantizer):
    """Base of input quantizers on uniform levels.

    A subclass defines :meth:`fit`, and ``spec`` or ``forward``.

    Args:
        bits, channels, channel_dim: as :class:`ActivationQuantizer`.
    """

    no_tau: Tensor

    def __init__(self, *, bits: int, channels: int, channel_dim: int) -> None:
        super().__init__(bits=bits, channels=channels, channel_dim=channel_dim)
        self._add_step(1)
        self.register_buffer("no_tau", torch.zeros(channels), persistent=False)

    @property
    def intervals(self) -> int:
        """``2^b - 1``, the steps between the lowest and the highest of ``2^b`` levels."""
        return IntRange.of(self.bits, signed=False).qmax

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Update the statistics and the state from a batch; signed once any value was negative."""
        x = x.float()
        new = {
            "sample": sample(x, _SAMPLE).cpu(),
            "low": x.min().cpu().reshape(1),
            "high": x.max().cpu().reshape(1),
            "peak": x.abs().max().cpu().reshape(1),
        }
        seen = self._statistics
        for name, values in new.items():
            seen[name] = torch.cat([seen[name], values]) if name in seen else values
        low, high = min(float(seen["low"].min()), 0.0), max(float(seen["high"].max()), 0.0)
        if not self.sign_fixed:
            self.signed.fill_(low < -SIGN_TOLERANCE)
        self._mark_calibrated()
        self.fit(
            CalibrationStatistics(
                seen["sample"], low if self.signed else 0.0, high, float(seen["peak"].mean())
            )
        )
        self._sync()

    def fit(self, seen: CalibrationStatistics) -> None:
        """Set the state from the calibration statistics; ``signed`` is already set."""
        raise TypeError(f"{type(self).__name__} must define fit")

    def affine(self, codes: IntRange, zero_point: int = 0) -> ActivationQuant:
        """Codes ``clip(round(x / step) + zero_point)`` in that range, straight-through gradient.

        Raises:
            RuntimeError: before calibration.
        """
        self._require_calibrated()
        return ActivationQuant(self.no_tau, self.step, codes, False, self.channel_dim, zero_point)
