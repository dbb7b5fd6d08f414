"""The losses between a network's output and the ground truth."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quantsr.config import registries
from quantsr.config.training import LossOptions


class Losses(nn.Module):
    """Several registered losses beside each other; their sum is minimised.

    Args:
        options: the losses by name, as `train.losses` has them.
    """

    def __init__(self, options: Mapping[str, LossOptions]) -> None:
        super().__init__()
        known = registries.losses()
        self.terms = nn.ModuleDict(
            {name: known[loss.type](**loss.arguments()) for name, loss in options.items()}
        )

    def forward(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Every loss by its name, scalars; ``output`` and ``target`` are (B, C, H, W) in [0, 1]."""
        return {name: loss(output, target) for name, loss in self.terms.items()}

    def total(self, output: Tensor, target: Tensor) -> Tensor:
        """Their sum."""
        return torch.stack(list(self(output, target).values())).sum()
