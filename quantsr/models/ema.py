"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """Moving average of ``net``: ``shadow += (1 - d) * (net - shadow)``; buffers are copied.

    At update ``t = 1, 2, ...`` ``d = min(decay, (1 + t) / (10 + t))``: with ``decay`` from the
    beginning, a run of ``1 / (1 - decay)`` updates would end with a third of its first weights in
    the shadow.

    Attributes:
        net: the shadow network, in eval mode, without gradients.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        self.decay = decay
        self.net = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, net: nn.Module, count: int) -> None:
        """One step, the ``count``-th, towards ``net``'s present parameters."""
        decay = min(self.decay, (1 + count) / (10 + count))
        shadows = [parameter.detach() for _, parameter in sorted(self.net.named_parameters())]
        sources = [parameter.detach() for _, parameter in sorted(net.named_parameters())]
        torch._foreach_lerp_(shadows, sources, 1.0 - decay)
        buffers = dict(net.named_buffers())
        if buffers:
            pairs = [(buffer, buffers[name]) for name, buffer in self.net.named_buffers()]
            torch._foreach_copy_([old for old, _ in pairs], [new for _, new in pairs])
