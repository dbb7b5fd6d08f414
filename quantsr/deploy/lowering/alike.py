"""Modules of other projects that compute what a layer of programs does: found by running them on
random parameters and inputs, whatever their class is called."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantsr.deploy.passes.fold import relative_positions

_BOUND = 1e-4  # of the differences of float32, for values of about 1
_PARTS = ("qkv", "proj", "relative_position_bias_table", "num_heads")


@torch.no_grad()
def channel_norm(module: nn.Module) -> float | None:
    """The eps of a LayerNorm over the channels of maps (B, C, h, w) that a module computes with its
    parameters `weight` and `bias`, (C,); None for any other module."""
    parameters = dict(module.named_parameters())
    eps = getattr(module, "eps", None)
    if parameters.keys() != {"weight", "bias"} or not isinstance(eps, float):
        return None
    weight, bias = parameters["weight"], parameters["bias"]
    if weight.dim() != 1 or weight.shape != bias.shape or type(module).__module__.startswith("torch."):
        return None
    with _random(weight, bias):
        x = torch.randn(2, len(weight), 3, 4).to(weight)
        norm = F.layer_norm(x.movedim(1, -1), (len(weight),), weight, bias, eps).movedim(-1, 1)
        return eps if _gives(lambda: type(module).forward(module, x.clone()), norm) else None


def has_parts_of_window_attention(module: nn.Module) -> bool:
    """Whether a module has the parts of Swin's window attention, by their usual names."""
    qkv, proj, table, heads = (getattr(module, name, None) for name in _PARTS)
    linear = isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear)
    return linear and isinstance(table, nn.Parameter) and isinstance(heads, int)


@torch.no_grad()
def is_window_attention(
    module: Any,
    forward: Callable[..., Any],
    shape: Sequence[int],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> bool:
    """Whether `forward`, that of the module's class, computes Swin's window attention of tokens
    (B * G, N, C) with these arguments."""
    qkv, proj, table, heads = (getattr(module, name) for name in _PARTS)
    count, tokens, channels = shape
    window, mask = math.isqrt(tokens), mask_in(args, kwargs)
    wanted = (channels, 3 * channels, channels, ((2 * window - 1) ** 2, heads))
    if (qkv.in_features, qkv.out_features, proj.out_features, tuple(table.shape)) != wanted:
        return False
    if window**2 != tokens or channels % heads:
        return False
    with _random(table), _plain(module, "qkv", "proj"):
        x = torch.randn(count, tokens, channels)
        q, k, v = module.qkv(x).view(count, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (channels // heads) ** -0.5
        scores = scores + table.float().cpu()[relative_positions(window)].permute(2, 0, 1)
        if mask is not None:
            scores = scores + mask.float().cpu().repeat(count // len(mask), 1, 1)[:, None]
        attended = module.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))
        return _gives(lambda: forward(module, x, *args, **kwargs), attended)


def mask_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The mask (windows, N, N) among the arguments of a window attention: the only one in float."""
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point()]
    return tensors[0] if len(tensors) == 1 and tensors[0].dim() == 3 else None


def _gives(run: Callable[[], Any], wanted: Tensor) -> bool:
    try:
        found = run()
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return False
    return float((found - wanted).abs().max()) <= _BOUND * max(1.0, float(wanted.abs().max()))


@contextlib.contextmanager
def _random(*parameters: Tensor) -> Iterator[None]:
    """While entered, these have random values, which depend on nothing."""
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape))
        try:
            yield
        finally:
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.copy_(values)


@contextlib.contextmanager
def _plain(module: nn.Module, *names: str) -> Iterator[None]:
    """While entered, these linear layers are others of their size with random parameters, which are
    not traced."""
    kept = {name: getattr(module, name) for name in names}
    for name, layer in kept.items():
        setattr(module, name, nn.Linear(layer.in_features, layer.out_features, layer.bias is not None))
    try:
        yield
    finally:
        for name, layer in kept.items():
            setattr(module, name, layer)
