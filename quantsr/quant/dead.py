"""Quantizers that training has lost: their layers give (almost) nothing, or NaN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantsr.quant.kernels import MIN_STEP
from quantsr.quant.layers import quantized_layers
from quantsr.quant.quantizers import ActivationQuantizer, WeightQuantizer


@torch.no_grad()
def dead_quantizers(net: nn.Module) -> dict[str, str]:
    """Problems of calibrated quantizers of ``net`` by layer name; empty if there are none.

    A step at its floor, or below, is used as the floor: the layer's output is almost 0. A
    weight that is 0 throughout needs no step and is not reported. Synchronizes with
    the device once per layer.
    """
    found = {}
    for name, layer in quantized_layers(net).items():
        faults = []
        for kind, quantizer in (("weight", layer.weight_quantizer), ("input", layer.input_quantizer)):
            if quantizer is not None and quantizer.is_calibrated:
                weight = layer.weight if kind == "weight" else None
                faults += _faults(kind, quantizer, weight)
        if faults:
            found[name] = ", ".join(faults)
    return found


def _faults(kind: str, quantizer: WeightQuantizer | ActivationQuantizer, weight: Tensor | None) -> list[str]:
    state = [*quantizer.parameters(recurse=False), *quantizer.buffers(recurse=False)]
    if not all(bool(values.isfinite().all()) for values in state):
        return [f"{kind} quantizer not finite"]
    low = quantizer.step <= MIN_STEP  # (1,) or (O,)
    if weight is not None:
        low = low & (weight.reshape(len(low), -1).abs().amax(1) > MIN_STEP)
    count = int(low.sum())
    if not count:
        return []
    return [
        f"{count} of {len(low)} {kind} steps at or below zero"
        if len(low) > 1
        else f"{kind} step at or below zero"
    ]


def describe_dead(found: dict[str, str], most: int = 8) -> str:
    """One line for a log: ``LAYER (what), LAYER (what), ... and 3 more``."""
    shown = ", ".join(f"{name} ({fault})" for name, fault in list(found.items())[:most])
    return shown + (f" and {len(found) - most} more" if len(found) > most else "")
