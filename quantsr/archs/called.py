"""Linear layers whose weight a network multiplies by itself, with a bias that it puts together, as
modules that it calls: quantization takes modules."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantsr.archs import contract
from quantsr.archs.modes import eval_mode
from quantsr.archs.trial import trial_picture
from quantsr.quant.mixins import with_mixin


class _CallsLayers(nn.Module):
    """Calls the layers named `called_layers` where its forward multiplies by their weights."""

    called_layers: tuple[str, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Calling([self.get_submodule(name) for name in self.called_layers]):
            return super().forward(*args, **kwargs)


class _Calling(TorchFunctionMode):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = {id(layer.weight): layer for layer in layers}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            x, weight, _ = _arguments(args, kwargs or {})
            if id(weight) in self.layers:
                return self.layers[id(weight)](x)
        return func(*args, **(kwargs or {}))


class _Watching(TorchFunctionMode):
    """Biases by the name of the layer whose weight a network multiplies by outside of it."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.found: dict[str, list[Tensor | None]] = {}
        self.running: list[int] = []
        self.ran: set[int] = set()

    def enter(self, linear: nn.Module, _: Any) -> None:
        """A layer runs as a module."""
        self.running.append(id(linear.weight))
        self.ran.add(id(linear.weight))

    def leave(self, *_: Any) -> None:
        """It has run."""
        self.running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            _, weight, bias = _arguments(args, kwargs or {})
            if id(weight) in self.names and id(weight) not in self.running:
                self.found.setdefault(self.names[id(weight)], []).append(bias)
        return func(*args, **(kwargs or {}))


def _arguments(args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """x, weight and bias of a call."""
    named = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    return named.get("input"), named.get("weight"), named.get("bias")


def may_call(net: nn.Module) -> bool:
    """Whether a module of a network has a linear layer without bias and vectors of its own, which
    can be its bias."""
    return any(
        any(isinstance(child, nn.Linear) and child.bias is None for child in module.children())
        and any(parameter.dim() == 1 for parameter in module.parameters(recurse=False))
        for module in net.modules()
    )


@torch.no_grad()
def call_layers(net: nn.Module) -> nn.Module:
    """``net``, changed in place, with linear layers called that its forward only multiplies by the
    weights of, and these with the bias that it adds, which depends on parameters alone."""
    if not may_call(net):
        return net
    linears = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    watching = _Watching({id(module.weight): name for name, module in linears.items()})
    handles = []
    for linear in linears.values():
        handles.append(linear.register_forward_pre_hook(watching.enter))
        handles.append(linear.register_forward_hook(watching.leave))
    picture = trial_picture(net, contract.of(net).window)
    try:
        with eval_mode(net), watching:
            net(picture)
            net(1 - picture)
    except (LookupError, RuntimeError, TypeError, ValueError):
        return net  # merging says what is wrong
    finally:
        for handle in handles:
            handle.remove()
    called = []
    for name, (first, *others) in watching.found.items():
        same = all(
            x is first or (x is not None and first is not None and torch.equal(x, first)) for x in others
        )
        linear = linears[name]
        if not same or id(linear.weight) in watching.ran:
            continue
        if linear.bias is None and first is not None:
            linear.bias = nn.Parameter(first.clone())
        elif first is not linear.bias:
            continue
        called.append(name)
    if called:
        net.__class__ = with_mixin(_CallsLayers, type(net))
        net.called_layers = tuple(called)  # type: ignore[assignment]
    return net
