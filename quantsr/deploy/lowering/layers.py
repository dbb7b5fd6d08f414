"""Layers that record themselves as one operation while a network is traced."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from quantsr import basicsr_compat
from quantsr.archs.dqa_trunk import ResidualUnit
from quantsr.archs.modes import eval_mode
from quantsr.archs.swin import WindowAttention
from quantsr.deploy import windows
from quantsr.deploy.folded import NORM_EPS
from quantsr.deploy.lowering import alike
from quantsr.deploy.lowering.traced import Beyond, Found, Map, Record, Traced
from quantsr.quant.layers import FirstConv2d, QuantConv2d, QuantizedLayer, QuantLinear
from quantsr.quant.products import WithProducts


@contextlib.contextmanager
def recording(net: nn.Module, record: Record) -> Iterator[None]:
    """While entered, the layers of `net` record themselves, and `record` knows which module
    runs; `net` is in eval mode."""
    handles = []
    patched: list[tuple[nn.Module, str]] = []

    def patch(module: nn.Module, method: str, function: Callable[..., Any]) -> None:
        patched.append((module, method))
        object.__setattr__(module, method, function)

    with eval_mode(net):
        try:
            for name, module in net.named_modules():
                handles.append(module.register_forward_pre_hook(functools.partial(_enter, record, name)))
                handles.append(module.register_forward_hook(functools.partial(_leave, record)))
                layer = _LAYERS.get(type(module).forward) or _like(module)
                if layer is not None and "forward" not in vars(module):
                    patch(module, "forward", functools.partial(_of_values, layer, record, name, module))
                if isinstance(module, QuantizedLayer):
                    patch(module, "quantized_weight", lambda *_: None)  # needs no calibration
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module, method in patched:
                object.__delattr__(module, method)


def _of_values(
    layer: Callable[..., Any], record: Record, name: str, module: nn.Module, x: Any, *args: Any, **kwargs: Any
) -> Any:
    """A layer that records itself; of constants what its forward gives."""
    if isinstance(x, Tensor) and not isinstance(x, Traced):
        return type(module).forward(module, x, *args, **kwargs)
    return layer(record, name, module, x, *args, **kwargs)


def _enter(record: Record, name: str, *_: Any) -> None:
    record.modules.append(name)


def _leave(record: Record, *_: Any) -> None:
    record.modules.pop()


def _conv(
    record: Record, name: str, conv: nn.Conv2d, x: Tensor, weight: object = None, relu: bool = False
) -> Traced:
    size = conv.kernel_size
    for attribute, wanted in (
        ("kernel_size", (size[0], size[0])),
        ("stride", (1, 1)),
        ("padding", (size[0] // 2,) * 2),
        ("dilation", (1, 1)),
        ("padding_mode", "zeros"),
    ):
        value = getattr(conv, attribute)
        if value == "same" or (attribute == "padding" and size[0] == 1 and value == "valid"):
            continue
        if value != wanted:
            raise record.refuse(f"has {attribute} {value}")
    if size[0] % 2 == 0:
        raise record.refuse(f"has kernel_size {size}")
    found = record.find_map(x)
    result = record.whole("conv", found, conv.out_channels, found.map.size, name=name)
    if size[0] == 1:
        record.pointwise.add(len(record.operations))
    return record.elementwise("relu", result) if relu else result


def _linear(record: Record, name: str, linear: nn.Linear, x: Tensor, weight: object = None) -> Traced:
    if isinstance(x, Traced):
        constant, values = record.numbers(x)
        beyond = record.beyond(x)
        if constant.any() or beyond.any():
            return _linear_beyond(record, name, linear, x, constant, values, beyond)
    found = record.find(x)
    pixels = _tokens(record, found)
    value = record.append("linear", found.map.value, name=name)
    return _along_channels(record, Map(value, linear.out_features, found.map.size), pixels)


def _linear_beyond(
    record: Record,
    name: str,
    linear: nn.Linear,
    x: Traced,
    constant: np.ndarray[Any, Any],
    values: np.ndarray[Any, Any],
    beyond: np.ndarray[Any, Any],
) -> Traced:
    """Of tokens (..., I) some of which are constant, or computed of such: those are as well."""
    constant, beyond = np.all(constant, axis=-1), np.all(beyond, axis=-1)
    inside = ~(constant | beyond)
    found = torch.empty((*x.shape[:-1], linear.out_features), dtype=torch.float64)
    if inside.any():
        part = Traced(record, x.references[torch.from_numpy(inside)])
        found[torch.from_numpy(inside)] = _linear(record, name, linear, part).references
    if constant.any():
        given = _of_numbers(linear, torch.from_numpy(values[constant]).float())
        found[torch.from_numpy(constant)] = record.of_constants(given.double().cpu().numpy())
    if beyond.any():
        found[torch.from_numpy(beyond)] = record.refer(Beyond(), (1, 1)).references
    return Traced(record, found)


def _of_numbers(linear: nn.Linear, x: Tensor) -> Tensor:
    """What a linear layer gives of tokens (n, I); as if in float before it is calibrated."""
    x = x.to(linear.weight)
    if isinstance(linear, QuantLinear):
        with contextlib.suppress(RuntimeError):
            return type(linear).forward(linear, x, type(linear).quantized_weight(linear))
    return functional.linear(x, linear.weight, linear.bias)


def _layer_norm(record: Record, name: str, norm: nn.LayerNorm, x: Tensor) -> Traced:
    found = record.find(x)
    _tokens(record, found)
    if norm.normalized_shape != (found.map.channels,):
        raise record.refuse(f"has normalized_shape {norm.normalized_shape}")
    if norm.weight is None or norm.bias is None:
        raise record.refuse("has no weight or no bias")
    value = record.append("layer_norm", found.map.value, name=name, **_eps(norm.eps))
    return record.tensor(Map(value, found.map.channels, found.map.size), found.places)


def _group_norm(record: Record, name: str, norm: nn.GroupNorm, x: Tensor) -> Traced:
    found = record.find_map(x)
    if norm.weight is None or norm.bias is None:
        raise record.refuse("has no weight or no bias")
    how = {"groups": norm.num_groups, **_eps(norm.eps)}
    return record.whole("group_norm", found, found.map.channels, found.map.size, name=name, **how)


def _eps(eps: float) -> dict[str, float]:
    """The attribute, where it is not the usual one."""
    return {} if eps == NORM_EPS else {"eps": eps}


def _prelu(record: Record, name: str, prelu: nn.PReLU, x: Tensor) -> Traced:
    found = record.find(x)
    channel = found.places // math.prod(found.map.size)
    each = np.arange(prelu.num_parameters).reshape(-1, *[1] * (x.dim() - 2))  # along torch's dimension 1
    fits = x.shape[1] == found.map.channels == prelu.num_parameters and (channel == each).all()
    if prelu.num_parameters > 1 and not fits:
        raise record.refuse(f"has num_parameters {prelu.num_parameters}")
    return record.elementwise("prelu", x, name=name)


def _window_attention(
    record: Record,
    name: str,
    attention: Any,
    x: Tensor,
    mask: Tensor | None = None,
    weights: object = None,
) -> Traced:
    """(B * G, N, C) to the same: linear layer, attention in windows, linear layer.

    Args:
        attention: of our class, BasicSR's, or one that computes the same from the same parameters.
    """
    qkv = attention.qkv(x)
    found = record.find(qkv)
    pixels = _tokens(record, found)  # (G, N)
    grid, window = found.map.size, math.isqrt(pixels.shape[-1])
    shift = int(pixels.flat[0]) % grid[1]
    order = windows.windowed(np.arange(math.prod(grid)).reshape(grid), window, shift)
    expected = (
        np.zeros((len(order), 1, window**2, window**2)) if shift == 0 else windows.mask(grid, window, shift)
    )
    given = expected * 0 if mask is None else mask.detach().cpu().numpy()[:, None]
    usual = (found.map.channels // 3 // attention.num_heads) ** -0.5
    if getattr(attention, "scale", usual) != usual:
        raise record.refuse(f"has scale {attention.scale}")
    if not np.array_equal(order, pixels) or not np.array_equal(given, expected):
        raise record.refuse("attends to other windows than those of Swin layers")
    value = record.append(
        "window_attention",
        found.map.value,
        name=name,
        heads=attention.num_heads,
        window=window,
        shift=shift,
        quantized=int(_has_quantized_products(attention)),
    )
    result = _along_channels(record, Map(value, found.map.channels // 3, grid), pixels)
    projected: Traced = attention.proj(result)
    return projected


def _has_quantized_products(attention: nn.Module) -> bool:
    if isinstance(attention, WindowAttention):
        return attention.scores.is_quantized
    return isinstance(attention, WithProducts)


def _with_products(record: Record, name: str, module: WithProducts, *args: Any, **kwargs: Any) -> Traced:
    kind: type[nn.Module] = type(module).__bases__[1]  # behind the mixin
    if kind.forward is basicsr_compat.WindowAttention.forward:
        return _window_attention(record, name, module, *args, **kwargs)
    raise record.refuse("multiplies quantized values of the picture by each other")


def _residual_unit(
    record: Record, name: str, unit: ResidualUnit, x: Tensor, *args: Any, **kwargs: Any
) -> Traced:
    before, after = record.find(x), record.find(unit.without_shortcut(x, *args, **kwargs))
    if not np.array_equal(before.places, after.places) or before.map.channels != after.map.channels:
        raise record.refuse("gives a tensor that lies differently from its input")
    index = record.units[unit.shortcut.data_ptr()]
    value = record.append("around", before.map.value, after.map.value, unit=index)
    return record.tensor(Map(value, after.map.channels, after.map.size), after.places)


def _tokens(record: Record, found: Found) -> np.ndarray[Any, Any]:
    """The pixel of each token of a tensor (..., C) that has whole tokens."""
    channels = found.map.channels
    pixel = found.places[..., :1] % math.prod(found.map.size)
    expected = np.arange(channels) * math.prod(found.map.size) + pixel
    if found.places.shape[-1] != channels or not np.array_equal(found.places, expected):
        raise record.refuse("reads other channels than those of its last dimension")
    return pixel[..., 0]


def _along_channels(record: Record, target: Map, pixels: np.ndarray[Any, Any]) -> Traced:
    """Tokens (..., C) of a new value, at these pixels."""
    return record.tensor(target, pixels[..., None] + np.arange(target.channels) * math.prod(target.size))


def _channel_norm(record: Record, name: str, norm: nn.Module, x: Tensor, eps: float) -> Traced:
    """LayerNorm over the channels of a map (B, C, h, w)."""
    found = record.find_map(x)
    return record.whole("layer_norm", found, found.map.channels, found.map.size, name=name, **_eps(eps))


def _like(module: nn.Module) -> Callable[..., Traced] | None:
    """How a module of a class of its own records itself where it computes what a layer does."""
    if (eps := alike.channel_norm(module)) is not None:
        return functools.partial(_channel_norm, eps=eps)
    if alike.has_parts_of_window_attention(module):
        return functools.partial(_attention_or_parts, type(module).forward)
    return None


def _attention_or_parts(
    forward: Callable[..., Any],
    record: Record,
    name: str,
    module: nn.Module,
    x: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """As window attention, where the module computes that with these arguments; else what its
    forward does."""
    if alike.is_window_attention(module, forward, x.shape, args, kwargs):
        return _window_attention(record, name, module, x, alike.mask_in(args, kwargs))
    return forward(module, x, *args, **kwargs)


_LAYERS: dict[Any, Callable[..., Traced]] = {
    nn.Conv2d.forward: _conv,
    FirstConv2d.forward: _conv,
    QuantConv2d.forward: _conv,
    nn.Linear.forward: _linear,
    QuantLinear.forward: _linear,
    nn.LayerNorm.forward: _layer_norm,
    nn.GroupNorm.forward: _group_norm,
    nn.PReLU.forward: _prelu,
    ResidualUnit.forward: _residual_unit,
    WindowAttention.forward: _window_attention,
    basicsr_compat.WindowAttention.forward: _window_attention,
    WithProducts.forward: _with_products,
}
"""By the method that a layer's class has, so that a subclass which computes something else is
traced, not taken for a layer."""
