"""ODM's loss on features beyond their quantizers' ranges (Hong and Lee, ECCV 2024)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from quantsr.errors import InputError
from quantsr.quant import QuantizedLayer, quantized_layers


class Mismatch:
    """The distance of features from the ranges that quantize them, and its part in a step.

    The loss is ``sum_l mean((x_l - clip(x_l, low_l, high_l))^2)`` over every quantized input, the
    ranges constant: it draws features into ranges, not ranges to features. Its gradient is added
    to that of the task with the factor ``weight (cos + 1) / 2``, ``cos`` being that of the angle
    between the two: in full where they agree, not at all where they are opposed.

    The paper says in words what is measured and that only aligned gradients are used; squares, the
    mean over a layer, and one angle over all parameters together are this package's reading.

    Args:
        net: the network in training.
        weight: of the loss; ODM has 1e-5.

    Raises:
        InputError: the network has no quantized inputs.
    """

    def __init__(self, net: nn.Module, weight: float) -> None:
        self.weight = weight
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.layers = [layer for layer in quantized_layers(net).values() if layer.input_quantizer is not None]
        if not self.layers:
            raise InputError("train.mismatch_weight: no input of network_g is quantized; leave it out")
        self._distances: list[Tensor] = []
        self._gradients: list[Tensor | None] = [None] * len(self.parameters)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Context in which the quantized inputs of forward passes are measured.

        A forward pass raises `InputError` where a quantizer has no range.
        """
        self._distances = []
        for layer in self.layers:
            layer.watch = self._measure
        try:
            yield
        finally:
            for layer in self.layers:
                layer.watch = None

    def _measure(self, layer: QuantizedLayer, x: Tensor) -> None:
        quantizer = layer.input_quantizer
        assert quantizer is not None
        limits = quantizer.clipping_range()
        if limits is None:
            raise InputError(
                f"train.mismatch_weight: the inputs of quantizer {layer.quantizer} have no range to be measured by; "
                "choose another, e.g. ODM, or leave mismatch_weight out"
            )
        self._distances.append(distance(x, *limits, layer.channel_dim))

    def backward(self, share: float) -> Tensor:
        """The weighted loss of the last recording, detached; keeps ``share`` times its gradients.

        To be called before the backward pass of the task, whose graph it needs.
        """
        loss = self.weight * share * torch.stack(self._distances).sum()
        self._distances = []
        trained = [index for index, p in enumerate(self.parameters) if p.requires_grad]
        found = torch.autograd.grad(
            loss, [self.parameters[index] for index in trained], retain_graph=True, allow_unused=True
        )
        for index, gradient in zip(trained, found, strict=True):
            kept = self._gradients[index]
            if gradient is not None:
                self._gradients[index] = gradient if kept is None else kept + gradient
        return loss.detach()

    def forget(self) -> None:
        """Drop the gradients that are kept."""
        self._gradients = [None] * len(self.parameters)

    def add_gradients(self) -> None:
        """Add the weighed gradients that are kept to those of the task, which parameters have.

        With several processes, whose gradients of the task are means, to the mean over them.
        Parameters that the loss does not reach, in blocks that are removed, are left alone.
        """
        reached = [(p, g) for p, g in zip(self.parameters, self._gradients, strict=True) if g is not None]
        gradients = [gradient for _, gradient in reached]
        if torch.distributed.is_initialized():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(flat)
            flat /= torch.distributed.get_world_size()
            sizes = [gradient.numel() for gradient in gradients]
            gradients = [
                part.view_as(gradient) for part, gradient in zip(flat.split(sizes), gradients, strict=True)
            ]
        # The angle is that of all parameters: those that are not reached lengthen the task's side.
        others = {id(p) for p, _ in reached}
        task = [torch.zeros_like(p) if p.grad is None else p.grad for p, _ in reached]
        rest = [p.grad for p in self.parameters if id(p) not in others and p.grad is not None]
        factor = cooperation([*task, *rest], [*gradients, *(torch.zeros_like(g) for g in rest)])
        for (parameter, _), own, gradient in zip(reached, task, gradients, strict=True):
            parameter.grad = own.add_(gradient * factor)


def distance(x: Tensor, low: Tensor, high: Tensor, channel_dim: int) -> Tensor:
    """``mean((x - clip(x, low, high))^2)``, FP32.

    Args:
        x: any shape.
        low, high: (1,) or one per channel (C,).
        channel_dim: where the channels of ``x`` are.
    """
    shape = [1] * x.dim()
    shape[channel_dim] = -1
    x = x.float()
    clipped = torch.minimum(torch.maximum(x, low.reshape(shape)), high.reshape(shape))
    return (x - clipped).square().mean()


def cooperation(task: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """``(cos + 1) / 2`` of the angle between two gradients, lists of tensors; 0-dim.

    1/2 where one of them is 0.
    """
    dot, a, b = (
        torch.stack([(x * y).sum() for x, y in zip(left, right, strict=True)]).sum()
        for left, right in ((task, other), (task, task), (other, other))
    )
    norm = a.sqrt() * b.sqrt()
    cosine = torch.where(norm > 0, dot / torch.where(norm > 0, norm, 1.0), 0.0)
    return (cosine.clamp(-1, 1) + 1) / 2
