"""The constructors of networks by their registered names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from quantsr.archs import contract
from quantsr.archs.swinir import SwinIR
from quantsr.config import registries
from quantsr.errors import InputError


def build_network(kind: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network registered as ``kind``, float or quantized, randomly initialised; ``SwinIR`` with
    padding.

    Raises:
        InputError: no such network, or arguments that its constructor rejects.
    """
    known: dict[str, Callable[..., nn.Module]] = {**registries.networks(), "SwinIR": SwinIR}
    if kind not in known:
        raise InputError(f"network_g.type: no network {kind!r}; choose from {', '.join(sorted(known))}")
    try:
        return contract.build(kind, known[kind], arguments)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"network_g: {kind} cannot be built ({reason}); see docs/reference/options.md"
        ) from error
