"""The modes of a network's modules, training or evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """While entered, every module is in eval mode; afterwards in the mode that it had before."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
