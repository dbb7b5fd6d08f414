"""Which layers need more bits than others: the gradient of a loss by each layer's bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantsr.quant.gradients import requiring_gradients
from quantsr.quant.layers import QuantizedLayer, quantized_layers
from quantsr.ranges import MAX_BITS, MIN_BITS, Bits


def bit_gradients(net: nn.Module, loss: Callable[[], Tensor]) -> dict[str, float]:
    """``dL / ds`` of every quantized layer by name, ``b + s`` being the bits of its weight and
    input, at ``s = 0`` ("Gradient knows best", CVPR 2026).

    Forward, ``s`` is rounded; backward, it is ``tanh(s)``, whose derivative at 0 is 1. With bounds
    that stay, a step is ``width / (2^b - 1)`` and a value ``v`` between the bounds gives
    ``v_q = step * round(v / step)``, so with a straight-through ``round``
    ``dv_q / ds = (v_q - v) * -ln(2) 2^b / (2^b - 1)``, and 0 beyond the bounds, as the gradient
    that reaches ``v``: the sum of products of that gradient and of the error is all that is needed.

    Args:
        net: calibrated, its quantizers with straight-through gradients, its layers not equalized.
        loss: runs `net` once and returns the loss.
    """
    layers: dict[str, Any] = {
        name: x for name, x in quantized_layers(net).items() if isinstance(x, nn.Conv2d | nn.Linear)
    }
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., tuple[Tensor, ...]]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0].view_as(args[0])  # so that its gradient is that of this layer alone
            x.requires_grad_() if x.is_leaf else x.retain_grad()
            inputs[name] = x
            return (x, *args[1:])

        return hook

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        net.zero_grad()
        with torch.enable_grad(), requiring_gradients(net, True):
            loss().backward()
            return {name: _gradient(layer, inputs[name]) for name, layer in layers.items()}
    finally:
        for handle in handles:
            handle.remove()
        net.zero_grad()


@torch.no_grad()
def _gradient(layer: QuantizedLayer, x: Tensor) -> float:
    found = 0.0
    for quantizer, values in ((layer.weight_quantizer, layer.weight), (layer.input_quantizer, x)):
        if quantizer is not None and values.grad is not None:
            levels = 2**quantizer.bits
            error = quantizer(values) - values
            found -= math.log(2) * levels / (levels - 1) * float((values.grad * error).double().sum())
    return found


def mixed_bits(bits: Mapping[str, Bits], gradients: Mapping[str, float], share: float) -> dict[str, Bits]:
    """One bit more for the layers whose loss falls most with it, one bit less for as many others.

    Args:
        bits: of each layer.
        gradients: from `bit_gradients`, of the same layers.
        share: of the layers at each end of the ranking, 0 to 0.5. The mean of the bits is kept.

    Raises:
        ValueError: bits of a layer would leave 2 to 8.
    """
    order = sorted(bits, key=lambda name: gradients[name])
    count = round(share * len(order))
    found = dict(bits)
    for names, change in ((order[:count], 1), (order[len(order) - count :], -1)):
        for name in names:
            old = bits[name]
            new = Bits(old.weights + change, old.activations + change)
            if not all(MIN_BITS <= b <= MAX_BITS for b in (new.weights, new.activations)):
                raise ValueError(f"{name} of {old} would get {new}, and bits are {MIN_BITS} to {MAX_BITS}")
            found[name] = new
    return found
