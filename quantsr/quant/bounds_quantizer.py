"""Bounds searched on calibration data and learned: 2DQuant's quantizer (Liu et al., NeurIPS 2024).

DOBI, its search: among 100 positions of the bounds between the extremes of the data and their
middle, that of the least squared error. DQC, its training of the bounds, is
`quantsr.engine.bounds_training`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantsr.quant import functional
from quantsr.quant.autograd import ActivationQuant
from quantsr.quant.kernels import MIN_STEP, wide
from quantsr.quant.quantizers import QUANTIZER_REGISTRY, Integers, Quantizer
from quantsr.quant.rlq_quantizer import LSQWeight
from quantsr.quant.uniform import CalibrationStatistics, UniformActivation, least_error
from quantsr.ranges import IntRange

POSITIONS = 100
"""Positions of the bounds that are tried."""


class BoundsWeight(LSQWeight):
    """``s * round(clip(w / s, Qn, Qp))``, ``s`` learned; its bounds ``s Qn`` and ``s Qp`` are
    searched.

    The code of a weight of 0 is 0, so one number is both bounds.
    """

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """The step of least squared error, over the tensor or each output channel.

        Tried are ``k / 100`` of the least step that clips nothing.
        """
        rows = weight.reshape(self.step.numel(), -1)  # (1, O * ...) or (O, ...)
        qmin, qmax = self.range.bounds
        widest = torch.maximum(rows.amax(1) / qmax, rows.amin(1) / qmin).clamp_min(MIN_STEP)
        best = torch.full_like(widest, torch.inf)
        found = widest
        for k in range(POSITIONS, 0, -1):
            step = widest * (k / POSITIONS)
            error = (functional.fake_quantize(rows, step[:, None], qmin, qmax) - rows).square().mean(1)
            found, best = torch.where(error < best, step, found), torch.minimum(error, best)
        self.step.copy_(found)
        self._mark_calibrated()


class BoundsActivation(UniformActivation):
    """``a_q = s (q - z)``, ``q = clip(round(a / s) + z, 0, 2^b - 1)`` with learned bounds.

    ``s = (high - low) / (2^b - 1)`` and ``z = round(-low / s)``: the bounds move by at most half a
    step, so that one of the values is 0, which convolutions pad with.

    Both bounds are one number for the tensor. They start at the least squared error over a sample
    of the calibration batches, `search_bounds`; `train.initial_steps` has no effect. Gradients are
    those of 2DQuant's equations, with a straight-through ``round``: of ``high`` 1 above and
    ``(round(u) - u) / (2^b - 1)`` between the bounds, of ``low`` 1 below and minus that between.
    """

    learned_step = False

    def __init__(self, *, bits: int, channels: int, channel_dim: int) -> None:
        super().__init__(bits=bits, channels=channels, channel_dim=channel_dim)
        # FP64 holds every multiple of a packed file's step, so that it gives its step again.
        self.low = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.high = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def _sync(self) -> None:
        super()._sync()
        self.range = IntRange.of(self.bits, signed=False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._derive()

    @torch.no_grad()
    def _derive(self) -> None:
        """Set step and sign as the bounds are, for logs and manifests."""
        step, zero_point = _grid(self.low, self.high, self.intervals)
        self.step.copy_(step)
        self.signed.copy_(zero_point[0] > 0)

    @torch.no_grad()
    def fit(self, seen: CalibrationStatistics) -> None:
        """The bounds of least squared error."""
        low, high = search_bounds(seen, self.intervals)
        self.low.fill_(low)
        self.high.fill_(high)
        self._derive()

    def spec(self) -> ActivationQuant | None:
        """None while the bounds are trained, which runs on values."""
        self._require_calibrated()
        if torch.is_grad_enabled() and (self.low.requires_grad or self.high.requires_grad):
            return None
        return self._spec()

    @torch.no_grad()
    def _spec(self) -> ActivationQuant:
        step, zero_point = _grid(self.low, self.high, self.intervals)
        spec = (self.range, False, self.channel_dim, int(zero_point))
        return ActivationQuant(self.no_tau, step.float(), *spec)

    def integers(self) -> Integers:
        self._require_calibrated()
        self._derive()
        return Integers(self._spec())

    @torch.no_grad()
    def load_integers(self, *, step: Tensor, tau: Tensor, codes: IntRange) -> None:
        """As :class:`ActivationQuantizer`; any range of ``2^b`` codes."""
        self.low.copy_(step.double() * codes.qmin)
        self.high.copy_(step.double() * codes.qmax)
        super().load_integers(step=step, tau=tau, codes=codes)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``; its shape and type."""
        if self.spec() is not None:
            return super().forward(x)
        self._derive()
        out: Tensor = _BetweenBounds.apply(wide(x), self.low, self.high, self.intervals)
        return out.to(x.dtype)


def _grid(low: Tensor, high: Tensor, intervals: int) -> tuple[Tensor, Tensor]:
    """Step and zero point of bounds, in FP64."""
    step = ((high - low) / intervals).clamp_min(MIN_STEP)
    return step, (-low / step).round().clamp(0, intervals)


class _BetweenBounds(torch.autograd.Function):
    """:class:`BoundsActivation` on values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, intervals: int) -> Tensor:
        ctx.save_for_backward(x, low, high)
        ctx.intervals = intervals
        step, zero_point = _grid(low, high, intervals)
        step, zero_point = step.to(x.dtype), zero_point.to(x.dtype)
        clipped = torch.minimum(torch.maximum(x / step, -zero_point), intervals - zero_point)
        return clipped.round() * step

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, low, high = ctx.saved_tensors
        grad, n = grads[0], ctx.intervals
        step, zero_point = _grid(low, high, n)
        u = x / step.to(x.dtype)
        above, below = u > n - zero_point, u < -zero_point
        inside = grad.masked_fill(above | below, 0.0)
        between = (inside * (u.round() - u)).sum() / n
        by_low = grad.masked_fill(~below, 0.0).sum() - between
        by_high = grad.masked_fill(~above, 0.0).sum() + between
        return inside, by_low.reshape(1).to(low.dtype), by_high.reshape(1).to(high.dtype), None


def search_bounds(seen: CalibrationStatistics, intervals: int) -> tuple[float, float]:
    """The lower and upper bound of least squared error (2DQuant's DOBI).

    Tried are 100 positions with both bounds moved by ``k / 200`` of the range towards each other,
    for symmetric data, and 100 with the upper one moved by ``k / 100``, for data behind GELU or
    softmax. The paper chooses between both by the layer, which is not known here. No bound moves
    beyond 0.
    """
    low, high = seen.low, seen.high
    width = high - low
    both = [
        (min(low + width * k / (2 * POSITIONS), 0.0), max(high - width * k / (2 * POSITIONS), 0.0))
        for k in range(POSITIONS)
    ]
    upper = [(low, max(low + width * (1 - k / POSITIONS), 0.0)) for k in range(POSITIONS)]

    def between(x: Tensor, bounds: tuple[float, float]) -> Tensor:
        low, high = torch.tensor(bounds, dtype=torch.float64)
        step, zero_point = _grid(low, high, intervals)
        first = -int(zero_point)
        return functional.fake_quantize(x, step.to(x.dtype), first, first + intervals)

    return least_error(
        seen.sample, [pair for pair in both + upper if pair[0] < pair[1]] or [(low, high)], between
    )


@QUANTIZER_REGISTRY.register()
class Bounds(Quantizer):
    """Bounds that are searched and learned (2DQuant)."""

    weight = BoundsWeight
    activation = BoundsActivation
