"""Eight-bit steps for the layers that training left in float: weights per output channel, inputs per tensor, both by least squared error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantsr.deploy.model import Codes, Float, code_range

_QMIN, _QMAX = code_range(8, signed=True)
_SAMPLES_PER_CALL = 20_000
_HISTOGRAM_BINS = 4096
_ACT_CANDIDATES = np.linspace(0.2, 1.0, 161)
_WEIGHT_CANDIDATES = np.linspace(0.6, 1.0, 41)


@dataclass(frozen=True)
class StepChoice:
    """What calibration chose for one input, for the report."""

    name: str
    step: float
    largest: float
    """Largest magnitude seen."""
    clipped: float
    """Share of the values that the chosen step clips."""
    error: float
    """Root mean square of the rounding and clipping error over that of the values."""

    def __str__(self) -> str:
        return (
            f"{self.name}: step {self.step:.4g}, limit {self.step * _QMAX:.4g} of {self.largest:.4g} seen, "
            f"{100 * self.clipped:.3f} % clipped, relative error {100 * self.error:.2f} %"
        )


@dataclass
class _Samples:
    values: list[Float] = field(default_factory=list)
    largest: float = 0.0


def choose_weight_steps(weight: Float) -> Float:
    """(O,) steps of signed 8-bit codes, each the least squared error over a grid of limits up to the channel's largest weight."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    full = np.maximum(np.abs(rows).max(1), 1e-12) / _QMAX
    best, least = full.copy(), np.full(len(rows), np.inf)
    for share in _WEIGHT_CANDIDATES[::-1]:
        step = (full * share)[:, None]
        error = ((np.clip(np.rint(rows / step), _QMIN, _QMAX) * step - rows) ** 2).sum(1)
        better = error < least
        best[better], least[better] = step[better, 0], error[better]
    return best.astype(np.float32)


def quantize_weight(weight: Float, step: Float) -> Codes:
    """Signed 8-bit codes of (O, ...) with (O,) steps."""
    scaled = weight / step.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(scaled), _QMIN, _QMAX).astype(np.int8)


def choose_input_step(name: str, values: Float, largest: float) -> StepChoice:
    """The step of signed 8-bit codes with the least squared error over `values`; `largest` bounds the grid.

    The search works on a histogram, so its cost does not depend on how many values there are.
    """
    if not largest > 0:
        return StepChoice(name, 1.0, 0.0, 0.0, 0.0)
    counts, edges = np.histogram(np.abs(values), bins=_HISTOGRAM_BINS, range=(0, largest))
    centres = (edges[:-1] + edges[1:]) / 2
    steps = _ACT_CANDIDATES[:, None] * largest / _QMAX
    errors = ((np.minimum(np.rint(centres / steps), _QMAX) * steps - centres) ** 2) @ counts
    step = float(steps[errors.argmin(), 0])
    quantized = np.clip(np.rint(values / step), _QMIN, _QMAX) * step
    relative = float(np.sqrt(((quantized - values) ** 2).mean() / max(float((values**2).mean()), 1e-30)))
    return StepChoice(name, step, largest, float((np.abs(values) > step * (_QMAX + 0.5)).mean()), relative)


@torch.no_grad()
def observe_inputs(
    net: nn.Module, names: Sequence[str], pictures: Sequence[NDArray[np.uint8]], depths: Sequence[int]
) -> dict[str, tuple[Float, float]]:
    """Inputs of the named layers over uint8 (H, W, 3) `pictures`, at every depth: (a fixed sample of the values, the largest magnitude)."""
    seen = {name: _Samples() for name in names}

    def hook(name: str):
        def observe(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            flat = inputs[0].detach().float().reshape(-1)
            seen[name].largest = max(seen[name].largest, float(flat.abs().max()))
            stride = (
                max(1, flat.numel() // _SAMPLES_PER_CALL) | 1
            )  # odd, so that it does not fall in step with the channels
            seen[name].values.append(flat[::stride].cpu().numpy())

        return observe

    handles = [net.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    device = next(net.parameters()).device
    was_training = net.training
    net.eval()
    try:
        for picture in pictures:
            x = (
                torch.from_numpy(np.ascontiguousarray(picture)).to(device).permute(2, 0, 1)[None].float()
                / 255
            )
            for depth in depths:
                net(x, depth=depth)
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    return {name: (np.concatenate(s.values), s.largest) for name, s in seen.items()}
