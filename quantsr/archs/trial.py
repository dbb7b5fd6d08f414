"""The picture on which a network is run to see what it does."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def trial_side(window: int) -> int:
    """Height and width in pixels: whole windows, two of them, and at least 16."""
    return 2 * max(window, 8)


def trial_picture(net: nn.Module, window: int) -> Tensor:
    """(1, 3, side, side) of noise in [0, 1], always the same, as the network's parameters are kept.

    Args:
        window: side of the network's attention windows in pixels, 1 without them.
    """
    side = trial_side(window)
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return noise.to(next(net.parameters()))
