"""Quantizers and their registry. Another quantizer is one file: see docs/add_a_quantizer.md.

A registered quantizer is a :class:`Quantizer`: a class for weights and a class for activations. Both are modules that
return fake-quantized tensors, are calibrated explicitly, and refuse to run before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from quantsr.basicsr_compat import Registry
from quantsr.quant import functional
from quantsr.quant.autograd import (
    ActivationQuant,
    QuantizedWeight,
    fake_quantize_activation,
    quantize_weight,
)
from quantsr.quant.kernels import MIN_STEP
from quantsr.quant.ranges import IntRange

Granularity = Literal["tensor", "channel"]

QUANTIZER_REGISTRY = Registry("quantizer")
"""Quantizers by name, as ``network_g.quantizer`` names them."""


class Quantizer:
    """What is registered: the two halves of a method. Subclass, set both, and decorate with the registry."""

    weight: ClassVar[type[WeightQuantizer]]
    activation: ClassVar[type[ActivationQuantizer]]


class _Calibrated(nn.Module):
    """State that both halves share: whether calibration has happened."""

    calibrated: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calibrated", torch.tensor(False))
        self._ready = False  # mirror of the buffer, so that no forward waits for the device
        self.search_step = False
        """Whether calibration looks for the step of least squared error instead of taking the method's formula."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._sync()

    def _sync(self) -> None:
        self._ready = bool(self.calibrated)

    def _mark_calibrated(self) -> None:
        self.calibrated.fill_(True)
        self._sync()

    @property
    def is_calibrated(self) -> bool:
        """Whether the quantizer can run."""
        return self._ready

    def _require_calibrated(self) -> None:
        if not self._ready:
            raise RuntimeError(
                f"{type(self).__name__} is not calibrated; call quantsr.quant.calibrate(net, batches) or load a "
                "calibrated checkpoint first"
            )


class WeightQuantizer(_Calibrated):
    """Base class: fake-quantizes a weight (O, ...), always signed.

    Args:
        bits: 2..8.
        out_channels: O.
        granularity: one step per ``tensor``, or per output ``channel``.
    """

    def __init__(self, *, bits: int, out_channels: int, granularity: Granularity = "tensor") -> None:
        super().__init__()
        if granularity not in ("tensor", "channel"):
            raise ValueError(f"weight_granularity must be tensor or channel, got {granularity!r}")
        self.bits = bits
        self.granularity = granularity
        self.range = IntRange.of(bits, signed=True)
        self.step = nn.Parameter(torch.ones(out_channels if granularity == "channel" else 1))

    def calibrate(self, weight: Tensor) -> None:
        """Set the state from the weight."""
        raise TypeError(f"{type(self).__name__} must define calibrate")

    def quantize(self, weight: Tensor, dtype: torch.dtype) -> QuantizedWeight:
        """Values with a gradient, codes in ``dtype``, and the step."""
        raise TypeError(f"{type(self).__name__} must define quantize")

    def forward(self, weight: Tensor) -> Tensor:
        """Fake-quantized weight, shape of ``weight``."""
        return self.quantize(weight, torch.float32).values

    def codes(self, weight: Tensor) -> Tensor:
        """Integer codes as int8, shape of ``weight``.

        Raises:
            ValueError: if the method's values are no multiples of a step.
        """
        with torch.no_grad():
            codes = self.quantize(weight, torch.float32).codes
        if codes is None:
            raise ValueError(
                f"{type(self).__name__} has no integer codes: its values are no multiples of a step"
            )
        return codes.to(torch.int8)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, granularity={self.granularity}"


_SAMPLE = 2**18
"""How many values of a batch the search for a step looks at."""


def _sample(x: Tensor) -> Tensor:
    """At most ``_SAMPLE`` values of ``x``, the same ones each time: (N,)."""
    values = x.flatten()
    if values.numel() <= _SAMPLE:
        return values
    places = torch.randint(values.numel(), (_SAMPLE,), generator=torch.Generator().manual_seed(0))
    return values[places.to(values.device)]


class ActivationQuantizer(_Calibrated):
    """Base class: fake-quantizes a layer's input.

    Args:
        bits: 2..8.
        channels: C.
        channel_dim: where the channels are: 1 for (B, C, H, W), -1 for (..., C).
    """

    step: nn.Parameter
    signed: Tensor
    _statistics: dict[str, Tensor]

    def __init__(self, *, bits: int, channels: int, channel_dim: int) -> None:
        super().__init__()
        self.bits = bits
        self.channels = channels
        self.channel_dim = channel_dim
        self.register_buffer("signed", torch.tensor(True))
        self.range = IntRange.of(bits, signed=True)
        self.sign_fixed = False
        self._statistics = {}

    def fix_sign(self, signed: bool) -> None:
        """Decide the sign of the range here instead of by calibration."""
        self.signed.fill_(signed)
        self.sign_fixed = True
        self._sync()

    def _sync(self) -> None:
        super()._sync()
        self.range = IntRange.of(self.bits, signed=bool(self.signed))

    def observe(self, x: Tensor) -> None:
        """Take one calibration batch; may be called for several, after each of which the quantizer can run."""
        raise TypeError(f"{type(self).__name__} must define observe")

    def spec(self) -> ActivationQuant | None:
        """What a layer needs to run on codes, or None if this quantizer is no affine map onto codes."""
        return None

    def extra_repr(self) -> str:
        return f"bits={self.bits}, signed={self.range.qmin < 0}"


class RLQWeight(WeightQuantizer):
    """QuantSR's weight quantizer: ``v * round(clip(w / v, Qn, Qp))`` with a learned step (section 3.2)."""

    soft = True

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """``v = 2 mean|w| / sqrt(Qp)``, over the tensor or each output channel."""
        rows = weight.reshape(self.step.numel(), -1)
        step = functional.initial_step(rows.abs().mean(1), self.range.qmax).clamp_min(MIN_STEP)
        if self.search_step:
            step = functional.least_error_step(
                functional.step_errors(rows, step, self.range.qmin, self.range.qmax), step
            )
        self.step.copy_(step)
        self._mark_calibrated()

    def quantize(self, weight: Tensor, dtype: torch.dtype) -> QuantizedWeight:
        self._require_calibrated()
        return quantize_weight(weight, self.step, self.range, self.soft, dtype)


class RLQActivation(ActivationQuantizer):
    """QuantSR's activation quantizer: ``v * round(clip((a + tau) / v, Qn, Qp))``, ``tau`` learned per channel.

    The sign of the range is decided by the first calibration batch and kept (section 3.2; ``ours_operator.py``).
    """

    soft = True
    redistribute = True

    def __init__(self, *, bits: int, channels: int, channel_dim: int) -> None:
        super().__init__(bits=bits, channels=channels, channel_dim=channel_dim)
        self.step = nn.Parameter(torch.ones(1))
        tau = torch.zeros(channels)
        self.tau: Tensor
        if self.redistribute:
            self.tau = nn.Parameter(tau)
        else:
            self.register_buffer("tau", tau, persistent=False)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Set sign and step from the mean of ``|a + tau|`` over all batches seen since the last reset."""
        shape = [1] * x.dim()
        shape[self.channel_dim] = -1
        shifted = x.float() + self.tau.reshape(shape)
        seen = self._statistics
        if not seen and not self.sign_fixed:
            self.signed.fill_(bool(shifted.min() < -functional.SIGN_TOLERANCE))
        seen["sum"] = (
            seen.get("sum", torch.zeros((), dtype=torch.float64)) + shifted.abs().mean().double().cpu()
        )
        seen["count"] = seen.get("count", torch.zeros(())) + 1
        self._mark_calibrated()
        mean = (seen["sum"] / seen["count"]).float()
        step = functional.initial_step(mean, self.range.qmax).clamp_min(MIN_STEP)
        if self.search_step:
            errors = functional.step_errors(
                _sample(shifted), step.to(shifted.device), self.range.qmin, self.range.qmax
            ).cpu()
            seen["errors"] = seen.get("errors", torch.zeros(())) + errors
            step = functional.least_error_step(seen["errors"], step)
        self.step.copy_(step.reshape(1))

    def reset(self) -> None:
        """Forget the statistics of earlier calibration batches (not the calibrated state)."""
        self._statistics = {}

    def spec(self) -> ActivationQuant:
        self._require_calibrated()
        return ActivationQuant(self.tau, self.step, self.range, self.soft, self.channel_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x + tau``; shape and type of ``x``."""
        return fake_quantize_activation(x, self.spec())

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of ``x + tau`` as int16 (an unsigned 8-bit code does not fit int8), shape of ``x``."""
        return (self(x.float()) / self.step.clamp_min(MIN_STEP)).round().to(torch.int16)


class LSQWeight(RLQWeight):
    """LSQ's weight quantizer (Esser et al., 2020): RLQ's with a straight-through gradient of rounding."""

    soft = False


class LSQActivation(RLQActivation):
    """LSQ's activation quantizer: RLQ's without ``tau``, with a straight-through gradient of rounding."""

    soft = False
    redistribute = False


@QUANTIZER_REGISTRY.register()
class RLQ(Quantizer):
    """Redistribution-driven learnable quantizer (QuantSR, NeurIPS 2023, section 3.2)."""

    weight = RLQWeight
    activation = RLQActivation


@QUANTIZER_REGISTRY.register()
class LSQ(Quantizer):
    """Learned step size quantization (Esser et al., ICLR 2020)."""

    weight = LSQWeight
    activation = LSQActivation


def get_quantizer(name: str) -> type[Quantizer]:
    """The quantizer registered as ``name``.

    Raises:
        ValueError: if there is none; the message lists what there is.
    """
    names = [key for key, _ in QUANTIZER_REGISTRY]
    if name not in names:
        raise ValueError(f"quantizer {name!r} is not registered; choose from {', '.join(sorted(names))}")
    found: type[Quantizer] = QUANTIZER_REGISTRY.get(name)
    return found


def step_parameters(net: nn.Module) -> Mapping[str, nn.Parameter]:
    """Names and parameters of all quantizers in ``net`` (steps, offsets and the like)."""
    found: dict[str, nn.Parameter] = {}
    for prefix, module in _quantizers(net):
        found.update(module.named_parameters(prefix, recurse=False))
    return found


def step_magnitudes(net: nn.Module) -> dict[str, float]:
    """For every name in :func:`step_parameters`: the mean step of its quantizer, what its value is measured in."""
    return {
        name: float(module.step.detach().abs().mean())
        for prefix, module in _quantizers(net)
        for name, _ in module.named_parameters(prefix, recurse=False)
    }


def _quantizers(net: nn.Module) -> Iterator[tuple[str, WeightQuantizer | ActivationQuantizer]]:
    for name, module in net.named_modules():
        if isinstance(module, (WeightQuantizer, ActivationQuantizer)):
            yield name, module
