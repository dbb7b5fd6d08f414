"""Base classes and registry of quantizers.

A quantizer is one file, ``NAME_quantizer.py`` beside this one
(docs/how-to/add_a_quantizer.md). These files are imported when a name is looked up that is not
registered yet. A registered :class:`Quantizer` has a class for weights and a class for activations.
Both are modules that return fake-quantized tensors and raise an error if they run before
calibration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from quantsr.basicsr_compat import QUANTIZER_REGISTRY
from quantsr.discovery import import_files
from quantsr.quant.autograd import (
    ActivationQuant,
    QuantizedWeight,
    activation_codes,
    fake_quantize_activation,
)
from quantsr.ranges import IntRange

Granularity = Literal["tensor", "channel"]


class Integers(NamedTuple):
    """Activation quantizer of packed files and engines: ``step * (code - zero_point) + offset``."""

    spec: ActivationQuant
    offset: float = 0.0
    """Added through the bias of the layer that reads the codes.

    The padding of a convolution then has the value ``offset``; in training it is 0.
    """


class Quantizer:
    """A method: its two quantizer classes. Subclass, set both, and register the subclass."""

    weight: ClassVar[type[WeightQuantizer]]
    activation: ClassVar[type[ActivationQuantizer]]


class _Calibrated(nn.Module):
    """State that both halves share: whether calibration has happened."""

    learned_step: ClassVar[bool] = True
    """Whether the step is a parameter; else a buffer, which calibration or the weight sets."""
    calibrated: Tensor
    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calibrated", torch.tensor(False))
        self._ready = False  # host copy of the buffer: forward passes need no synchronization
        self.search_step = False
        """Whether calibration searches the step of least squared error (else: the formula)."""

    def _add_step(self, count: int) -> None:
        """``step``, (count,), as :attr:`learned_step` says."""
        if self.learned_step:
            self.step = nn.Parameter(torch.ones(count))
        else:
            self.register_buffer("step", torch.ones(count))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._sync()

    def _sync(self) -> None:
        self._ready = bool(self.calibrated)

    def _mark_calibrated(self) -> None:
        self.calibrated.fill_(True)
        self._sync()

    def unit(self, name: str) -> float:
        """What a learning rate relative to the step multiplies for a parameter: the mean step."""
        return float(self.step.detach().abs().mean())

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
        self._add_step(out_channels if granularity == "channel" else 1)

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
            ValueError: if the method's values are no multiples of a step, or two's complement of
                its bits does not hold them.
        """
        with torch.no_grad():
            codes = self.quantize(weight, torch.float32).codes
        if codes is None:
            raise ValueError(
                f"{type(self).__name__} has no integer codes: its values are no multiples of a step"
            )
        held = IntRange.of(self.bits, signed=True)
        low, high = int(codes.min()), int(codes.max())
        if low < held.qmin or high > held.qmax:
            raise ValueError(
                f"{type(self).__name__} has no integer codes of {self.bits} bits: they go from {low} to {high}"
            )
        return codes.to(torch.int8)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, granularity={self.granularity}"


class ActivationQuantizer(_Calibrated):
    """Base class: fake-quantizes a layer's input.

    Args:
        bits: 2..8.
        channels: C.
        channel_dim: where the channels are: 1 for (B, C, H, W), -1 for (..., C).
    """

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
        """Update the state from one calibration batch; the quantizer can run after each call."""
        raise TypeError(f"{type(self).__name__} must define observe")

    def reset(self) -> None:
        """Forget the statistics of earlier calibration batches (not the calibrated state)."""
        self._statistics = {}

    def spec(self) -> ActivationQuant | None:
        """Parameters for layers on codes; None if values are no multiples of a step."""
        return None

    def clipping_range(self) -> tuple[Tensor, Tensor] | None:
        """The smallest and the largest input that is not clipped, (1,) or (C,), no gradient.

        None if the method has no such range.
        """
        spec = self.spec()
        if spec is None:
            return None
        step, tau = spec.step.detach(), spec.tau.detach()
        return spec.centred.qmin * step - tau, spec.centred.qmax * step - tau

    def integers(self) -> Integers | None:
        """The form for packed files and engines; None if values are no multiples of a step."""
        spec = self.spec()
        return None if spec is None else Integers(spec)

    @torch.no_grad()
    def load_integers(self, *, step: Tensor, tau: Tensor, codes: IntRange) -> None:
        """Set the state from a packed file, whose codes have the zero point subtracted.

        The quantizer is calibrated afterwards.

        Args:
            step: (1,).
            tau: (C,).
            codes: their range.

        Raises:
            ValueError: the method has no such codes.
        """
        self.step.copy_(step)
        self.signed.fill_(codes.qmin < 0)
        self._mark_calibrated()
        self._require_codes(self.spec(), tau, codes)

    def _require_codes(self, spec: ActivationQuant | None, tau: Tensor, codes: IntRange) -> None:
        """Raises ``ValueError`` unless ``spec`` has this offset and these codes."""
        if spec is None or spec.centred != codes or not torch.equal(spec.tau.detach().cpu(), tau):
            raise ValueError(
                f"{type(self).__name__} of {self.bits} bits has no codes from {codes.qmin} to {codes.qmax}"
                + (" with tau" if tau.any() else "")
            )

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x`` including an offset; shape and type of ``x``.

        A method without :meth:`spec` overrides it.
        """
        spec = self.spec()
        if spec is None:
            raise TypeError(f"{type(self).__name__} must define spec or forward")
        return fake_quantize_activation(x, spec)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of ``x`` as int16 (unsigned 8-bit codes do not fit int8), shape of ``x``.

        Their values are ``step * (codes - zero_point)``, the zero point being that of :meth:`spec`.

        Raises:
            ValueError: if the method's values are no multiples of a step.
        """
        spec = self.spec()
        if spec is None:
            raise ValueError(
                f"{type(self).__name__} has no integer codes: its values are no multiples of a step"
            )
        return activation_codes(x.float(), spec.tau, spec.step, spec, torch.int16) + spec.zero_point

    def extra_repr(self) -> str:
        return f"bits={self.bits}, signed={bool(self.signed)}"


def quantizer_names() -> list[str]:
    """The names of all quantizers, those of every file ``quantsr/quant/*_quantizer.py`` among them.

    Raises:
        InputError: one of these files cannot be imported; the message names it.
    """
    import_files("quant", "_quantizer")
    return sorted(key for key, _ in QUANTIZER_REGISTRY)


def get_quantizer(name: str) -> type[Quantizer]:
    """The quantizer registered as ``name``; files are imported only for an unregistered name.

    Raises:
        ValueError: if there is none; the message lists what there is.
        InputError: see :func:`quantizer_names`.
    """
    if name not in QUANTIZER_REGISTRY and name not in (names := quantizer_names()):
        raise ValueError(f"quantizer {name!r} is not registered; choose from {', '.join(names)}")
    found: type[Quantizer] = QUANTIZER_REGISTRY.get(name)
    return found


def step_parameters(net: nn.Module) -> Mapping[str, nn.Parameter]:
    """Names and parameters of all quantizers in ``net`` (steps, offsets and the like)."""
    found: dict[str, nn.Parameter] = {}
    for prefix, module in quantizers_of(net):
        found.update(module.named_parameters(prefix, recurse=False))
    return found


def step_magnitudes(net: nn.Module) -> dict[str, float]:
    """The unit of each name in :func:`step_parameters`: the mean step, or 1 for factors."""
    return {
        f"{prefix}.{name}" if prefix else name: module.unit(name)
        for prefix, module in quantizers_of(net)
        for name, _ in module.named_parameters(recurse=False)
    }


def quantizers_of(net: nn.Module) -> Iterator[tuple[str, WeightQuantizer | ActivationQuantizer]]:
    """Names and modules of all quantizers in ``net``."""
    for name, module in net.named_modules():
        if isinstance(module, (WeightQuantizer, ActivationQuantizer)):
            yield name, module
