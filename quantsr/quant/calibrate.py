"""Calibration: the explicit phase that gives quantizers their first steps and signs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quantsr.quant.layers import quantized_layers

InitialSteps = Literal["mean", "mse"]
"""Initialization of steps.

- ``mean``: the quantizer's own formula (RLQ, LSQ: ``2 mean|x| / sqrt(Qp)``),
- ``mse``: the multiple of it, 1/4 to 4, with the least squared error. After a ReLU most values are
  0 and the mean is a poor estimate: factor 2.5 is common.
"""


def uncalibrated(net: nn.Module) -> dict[str, Any]:
    """The quantized layers of ``net``, by module name, of which a quantizer has no state yet."""
    return {
        name: layer
        for name, layer in quantized_layers(net).items()
        if any(q is not None and not q.is_calibrated for q in (layer.weight_quantizer, layer.input_quantizer))
    }


@contextmanager
def calibrating(
    net: nn.Module, steps: InitialSteps = "mean", *, only_missing: bool = False
) -> Iterator[None]:
    """Context in which every forward pass of ``net`` is a calibration batch.

    Quantizers update their statistics from it, then quantize with the updated state.

    Earlier statistics are forgotten on entry. With ``only_missing``, layers whose quantizers all
    have their state keep it.
    """
    layers = (uncalibrated(net) if only_missing else quantized_layers(net)).values()
    for layer in layers:
        layer.calibrating = True
        for quantizer in (layer.weight_quantizer, layer.input_quantizer):
            if quantizer is not None:
                quantizer.search_step = steps == "mse"
        if layer.input_quantizer is not None:
            layer.input_quantizer.reset()
    try:
        yield
    finally:
        for layer in layers:
            layer.calibrating = False


@torch.no_grad()
def calibrate(
    net: nn.Module, batches: Iterable[Tensor], steps: InitialSteps = "mean", *, only_missing: bool = False
) -> nn.Module:
    """Set every quantizer of ``net`` from sample inputs (QuantSR: in its first training step).

    Each batch runs at full depth in FP32; a layer sees its input as the quantized layers before it
    make it.

    Args:
        net: a network with quantized layers; its training mode is kept.
        batches: (B, 3, H, W) in [0, 1].
        steps: see :data:`InitialSteps`.
        only_missing: leave layers alone whose quantizers all have their state.

    Returns:
        ``net``.

    Raises:
        ValueError: if there is no batch, or a quantized layer was never reached.
    """
    seen = 0
    with calibrating(net, steps, only_missing=only_missing):
        for batch in batches:
            net(batch)
            seen += 1
    if not seen:
        raise ValueError("calibration needs at least one batch of pictures")
    if missed := uncalibrated(net):
        raise ValueError(f"calibration did not reach {', '.join(missed)}: the network's forward skips them")
    return net


def layer_steps(net: nn.Module) -> dict[str, float]:
    """Steps of every quantizer for a log: ``LAYER/step_w``, ``/step_a``, ``/tau_abs_mean``.

    Per-channel steps give their mean.
    """
    values: dict[str, float] = {}
    for name, layer in quantized_layers(net).items():
        if layer.weight_quantizer is not None:
            values[f"{name}/step_w"] = float(layer.weight_quantizer.step.detach().mean())
        if layer.input_quantizer is not None:
            values[f"{name}/step_a"] = float(layer.input_quantizer.step.detach().mean())
            tau = dict(layer.input_quantizer.named_parameters(recurse=False)).get("tau")
            if tau is not None:
                values[f"{name}/tau_abs_mean"] = float(tau.detach().abs().mean())
    return values
