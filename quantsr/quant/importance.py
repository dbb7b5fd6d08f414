"""How much an error of each channel of a layer's output changes the network's output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def output_importance(net: nn.Module, batch: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """(O,) for each layer: the mean of ``(d(r . y) / dz)^2`` over all places of its output z.

    y is the network's output, r random signs. In expectation this is the diagonal of the
    Gauss-Newton matrix of y's squared error, averaged over the places of each channel, as Fisher's
    diagonal weighs errors in BRECQ (Li et al., ICLR 2021, section 3.2).

    Args:
        net: a float network, in eval mode.
        batch: (B, 3, h, w).
        layers: names of convolution and linear layers, which the network runs.
    """
    outputs: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[..., Tensor]:
        def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            outputs[name] = output
            return output.clone()  # what follows may change it in place

        return keep

    # Copies made here can have gradients, whatever mode the caller is in.
    mutable = torch.autograd.graph.allow_mutation_on_saved_tensors()
    with torch.inference_mode(False), torch.enable_grad(), mutable:
        net = copy.deepcopy(net)
        modules = {name: net.get_submodule(name) for name in layers}
        for name, module in modules.items():
            module.register_forward_hook(keeper(name))
        found = net(batch.clone().requires_grad_(True).clone())  # a leaf cannot change in place
        signs = torch.randint(2, found.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        gradients = torch.autograd.grad(
            found, list(outputs.values()), signs.to(found), allow_unused=True, materialize_grads=True
        )
    return {
        name: gradient.movedim(1 if isinstance(modules[name], nn.Conv2d) else -1, 0)
        .flatten(1)
        .square()
        .mean(1)
        for name, gradient in zip(outputs, gradients, strict=True)
    }
