"""Which parameters need gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def requiring_gradients(net: nn.Module, required: bool) -> Iterator[None]:
    """While entered, all parameters need gradients or none does; afterwards each as before."""
    before = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    try:
        net.requires_grad_(required)
        yield
    finally:
        for parameter, was_required in before:
            parameter.requires_grad_(was_required)
