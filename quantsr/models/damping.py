"""Damping of weights that oscillate between two codes (Nagel et al., ICML 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from quantsr.errors import InputError
from quantsr.quant import quantized_layers


class Damping:
    """The distance of weights from the values that they are quantized to, and its gradient.

    The loss is ``factor sum ||q - clip(w, lowest, highest)||^2`` (equation 7), ``q`` being the
    quantized weight, with a gradient to ``w`` alone: it draws weights into the middle of their
    steps, whose ends they would cross again and again. ``factor`` rises from 0 to ``weight`` by
    half a cosine over the training, so that weights can still change their codes at first.

    Args:
        net: the network in training.
        weight: of the loss at the end.
        iterations: of the training.

    Raises:
        InputError: the network has no quantized weights, or its method no integer codes of them.
    """

    def __init__(self, net: nn.Module, weight: float, iterations: int) -> None:
        self.weight, self.iterations = weight, iterations
        self.layers = [
            layer for layer in quantized_layers(net).values() if layer.weight_quantizer is not None
        ]
        if not self.layers:
            raise InputError("train.damping_weight: no weight of network_g is quantized; leave it out")
        for layer in self.layers:
            try:
                layer.weight_codes()
            except ValueError as error:
                raise InputError(
                    f"train.damping_weight: {error}; choose another quantizer, or leave it out"
                ) from error
        self.factor = torch.zeros((), device=self.layers[0].weight.device)
        """On the device, where a recorded step reads it."""

    def set_iteration(self, iteration: int) -> None:
        """Set the factor for that iteration, from 1."""
        share = min(iteration / self.iterations, 1.0)
        self.factor.fill_(self.weight * (1 - math.cos(math.pi * share)) / 2)

    @torch.no_grad()
    def add_gradients(self) -> Tensor:
        """Add the gradients to those that the weights have; the loss, 0-dim.

        Weights that have none, in blocks that are removed, are left alone.
        """
        loss = torch.zeros_like(self.factor)
        for layer in self.layers:
            if layer.weight.grad is None:
                continue
            quantized, codes = layer.quantized_weight(), layer.weight_quantizer.range
            lowest, highest = codes.qmin * quantized.step, codes.qmax * quantized.step
            distance = layer.weight.clamp(lowest, highest) - quantized.values
            layer.weight.grad.add_(2 * self.factor * distance)
            loss += self.factor * distance.square().sum()
        return loss
