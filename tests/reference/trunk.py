"""Sub-networks of a network with a trunk, one at a time: every unit gives what the definition
says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn


def sub_network(
    net: nn.Module, units: Sequence[str], shortcuts: Sequence[float], kept: Collection[int]
) -> nn.Module:
    """A copy of a network without depths that runs only the units ``kept`` of these names.

    A unit that gives ``x + F(x)`` gives ``s * x + F(x)`` there, one that is not kept ``s * x``.
    """
    found = copy.deepcopy(net)
    for index, (name, shortcut) in enumerate(zip(units, shortcuts, strict=True)):
        unit = found.get_submodule(name)
        forward = _kept(unit.forward, shortcut) if index in kept else _skipped(shortcut)
        unit.forward = forward  # type: ignore[method-assign]
    return found


def _kept(forward: Callable[..., Tensor], shortcut: float) -> Callable[..., Tensor]:
    return lambda x, *args: forward(x, *args) + (shortcut - 1) * x


def _skipped(shortcut: float) -> Callable[..., Tensor]:
    return lambda x, *args: shortcut * x


def run(net: nn.Module, x: Tensor) -> Tensor:
    """The picture, without gradients."""
    with torch.inference_mode():
        return net.eval()(x)
