"""Merging of what a float network computes in several layers and one convolution can: weight norm,
batch norm and factors behind a layer, re-parameterized blocks, strides. Quantization needs the
merged network."""

from __future__ import annotations

import copy
import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from quantsr.archs import contract
from quantsr.archs.modes import eval_mode
from quantsr.archs.strides import has_other_form, of_stride_1
from quantsr.archs.trial import trial_picture
from quantsr.errors import InputError

MOST_CHANGE = 1e-4
"""Of the network's output by merging, relative to its largest magnitude: float32 rounds in another
order."""

_REACH = 7
"""Pixels from the centre of the largest kernel that blocks are merged to."""
_LINEAR = 1e-9  # error of float64 in a block, relative to its largest output
_OTHERS = (
    "torch.nn.modules.activation",
    "torch.nn.modules.normalization",
    "torch.nn.modules.pixelshuffle",
    "torch.nn.modules.pooling",
    "torch.nn.modules.upsampling",
)
"""Modules of torch that no block with one of them merges."""

_Norm = nn.BatchNorm1d | nn.BatchNorm2d
_Layer = nn.Conv2d | nn.Linear


def copied(net: nn.Module) -> nn.Module:
    """A copy of a network, whose weights may be parametrized."""
    for module in net.modules():  # a weight with a history cannot be copied; each run computes it anew
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _OLD):
                setattr(module, hook.name, getattr(module, hook.name).detach())
    return copy.deepcopy(net)


def merge(net: nn.Module) -> nn.Module:
    """``net`` with its layers merged, changed in place; names of layers stay.

    1. Parametrizations of weights (``torch.nn.utils.parametrizations``, and those of the older
       ``weight_norm`` and ``spectral_norm``) are replaced by the weights that they give.
    2. A batch norm that reads what a convolution or linear layer gives, and nothing else does, goes
       into that layer's weight and bias.
    3. A parameter with one number for each channel that a layer's output is multiplied by, both of
       them read nowhere else, goes into that layer.
    4. Strided, transposed, dilated and oblong convolutions become others (`strides`).
    5. A module that is one convolution computed by several, and has more weights than it, becomes
       that convolution, whatever its class: it maps (B, C, h, w) to (B, O, h, w), is affine, and
       the response to single pixels is its kernel. Compared are the border and random input, in
       float64.

    What cannot be merged in this way stays as it is. Networks with depths are left alone, and one
    that holds nothing of the kind is not run.

    Raises:
        InputError: the merged network cannot be run, or its output on a random picture differs by
            more than `MOST_CHANGE` of the largest value.
    """
    if can_merge(net):
        with eval_mode(net):
            _merge(net)
    return net


def can_merge(net: nn.Module) -> bool:
    """Whether a network holds what could be merged."""
    if contract.of(net).depth_dynamic is not None:
        return False
    return any(
        _is_parametrized(module)
        or isinstance(module, _Norm)
        or has_other_form(module)
        or bool(_factors(module))
        or (name and _could_merge(module))
        for name, module in net.named_modules()
    )


def _merge(net: nn.Module) -> None:
    parametrized = [name for name, module in net.named_modules() if _is_parametrized(module)]
    picture = trial_picture(net, contract.of(net).window)
    before, seen = _watched(net, picture)
    for name in parametrized:
        _keep_weights(net.get_submodule(name))
    merged = list(parametrized)
    for norm, layer in seen.behind(net).items():
        _fold_norm(net.get_submodule(layer), net.get_submodule(norm))  # type: ignore[arg-type]
        _replace(net, norm, nn.Identity())
        merged.append(norm)
    for factor, layer in seen.before(net).items():
        _fold_factor(net.get_submodule(layer), net.get_parameter(factor))  # type: ignore[arg-type]
        merged.append(factor)
    for name in [name for name, module in net.named_modules() if name and has_other_form(module)]:
        _replace(net, name, of_stride_1(net.get_submodule(name)))  # type: ignore[arg-type]
        merged.append(name)
    blocks = {name for name, module in net.named_modules() if name and _could_merge(module)}
    done: list[str] = []
    for name in sorted(blocks & seen.channels.keys()):
        if any(name.startswith(f"{outer}.") for outer in done):
            continue
        conv = as_convolution(net.get_submodule(name), seen.channels[name])
        if conv is not None:
            _replace(net, name, conv)
            done.append(name)
    merged += done
    if merged:
        _compare(net, picture, before, merged)


@torch.no_grad()
def as_convolution(block: nn.Module, channels: int) -> nn.Conv2d | None:
    """The convolution with zero padding that a module computes, in float32; None where it is none
    with fewer weights.

    Args:
        block: in eval mode.
        channels: of its input.
    """
    whole = copy.deepcopy(block).double()
    generator = torch.Generator().manual_seed(0)
    side = 2 * _REACH + 3
    a, b = (torch.randn(1, channels, side, side, generator=generator, dtype=torch.float64) for _ in range(2))
    try:
        zero, of_a, of_b, of_both = (whole(x) for x in (0 * a, a, b, a - 2 * b))
    except (IndexError, RuntimeError, TypeError, ValueError):
        return None
    if not isinstance(zero, Tensor) or zero.dim() != 4 or zero.shape[2:] != a.shape[2:]:
        return None
    if not _close(of_both - zero, (of_a - zero) - 2 * (of_b - zero)):
        return None
    # kernel size and groups are those for any weights, not for those that happen to be zero
    random = copy.deepcopy(whole)
    for parameter in random.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    shape = _response(random, channels)
    reach = _reach(shape)
    if reach is None:
        return None
    middle = slice(_REACH + 1 - reach, _REACH + 2 + reach)
    kernel = _response(whole, channels)[..., middle, middle].flip(2, 3)
    groups = _groups(shape)
    bias = zero[0, :, _REACH + 1, _REACH + 1]
    weight = kernel.unflatten(0, (groups, -1)).unflatten(2, (groups, -1))
    weight = weight.diagonal(dim1=0, dim2=2).movedim(-1, 0).flatten(0, 1)  # (O, C / groups, k, k)
    if sum(p.numel() for p in block.parameters() if p.dim() == 4) <= weight.numel():
        return None
    found = nn.Conv2d(channels, len(weight), 2 * reach + 1, padding=reach, groups=groups).double()
    found.weight.copy_(weight)
    assert found.bias is not None
    found.bias.copy_(bias)
    return found.float().eval() if _close(found(a), of_a) else None


def _response(block: nn.Module, channels: int) -> Tensor:
    """(O, C, side, side): what a pixel in the middle of each channel adds to the result."""
    side = 2 * _REACH + 3
    pixels = torch.zeros(channels, channels, side, side, dtype=torch.float64)
    pixels[range(channels), range(channels), _REACH + 1, _REACH + 1] = 1
    found: Tensor = block(pixels) - block(torch.zeros_like(pixels[:1]))
    return found.transpose(0, 1)


def _reach(response: Tensor) -> int | None:
    """How far from the middle a response goes; None where that is to the border."""
    most = response.abs().amax((0, 1))
    rows, columns = torch.nonzero(most > _LINEAR * most.max(), as_tuple=True)
    far = max(int((places - _REACH - 1).abs().max()) for places in (rows, columns)) if len(rows) else 0
    return far if far <= _REACH else None


def _groups(response: Tensor) -> int:
    """The largest number of groups of a convolution with this kernel (O, C, ...)."""
    most = response.abs().amax((2, 3))  # (O, C)
    used = most > _LINEAR * most.max()
    outputs, inputs = most.shape
    for groups in range(math.gcd(outputs, inputs), 1, -1):
        if math.gcd(outputs, inputs) % groups == 0:
            blocks = torch.eye(groups, dtype=torch.bool)
            within = blocks.repeat_interleave(outputs // groups, 0).repeat_interleave(inputs // groups, 1)
            if not bool((used & ~within).any()):
                return groups
    return 1


def _close(found: Tensor, wanted: Tensor) -> bool:
    bound = _LINEAR * max(float(wanted.abs().max()), 1e-30)
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= bound


def _is_parametrized(module: nn.Module) -> bool:
    if parametrize.is_parametrized(module):
        return True
    return any(isinstance(hook, _OLD) for hook in module._forward_pre_hooks.values())


_OLD = (WeightNorm, SpectralNorm)


def _keep_weights(module: nn.Module) -> None:
    """Without its parametrizations, with the weights that they give."""
    with torch.no_grad():
        if parametrize.is_parametrized(module):
            # torch's remove_parametrizations changes the class, which copies of the module share
            names = [str(name) for name in module.parametrizations]  # type: ignore[union-attr]
            weights = {name: getattr(module, name).detach().clone() for name in names}
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            for name, weight in weights.items():
                module.register_parameter(name, nn.Parameter(weight))
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)


def _could_merge(module: nn.Module) -> bool:
    """Whether a module, by what it holds, can be several convolutions in place of one."""
    if isinstance(module, nn.Conv2d | nn.ModuleList | nn.ModuleDict):
        return False
    weights = sum(parameter.dim() == 4 for parameter in module.parameters())
    return weights > 1 and not any(type(part).__module__ in _OTHERS for part in module.modules())


@torch.no_grad()
def _fold_norm(layer: _Layer, norm: _Norm) -> None:
    """Let ``layer`` give what ``norm`` makes of its output."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = 1 / (norm.running_var.double() + norm.eps).sqrt()
    shift = -norm.running_mean.double() * factor
    if norm.affine:
        factor, shift = factor * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    bias = 0 if layer.bias is None else layer.bias.double()
    shape = (-1, *[1] * (layer.weight.dim() - 1))
    layer.weight.copy_(layer.weight.double() * factor.view(shape))
    layer.bias = nn.Parameter((bias * factor + shift).float())


@torch.no_grad()
def _fold_factor(layer: _Layer, factor: nn.Parameter) -> None:
    """Let ``layer`` give what the product of its output and ``factor`` is, which becomes 1."""
    each = factor.flatten()
    layer.weight.mul_(each.view(-1, *[1] * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias.mul_(each)
    factor.fill_(1)


def _factors(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module itself that can be one number for each channel."""
    if type(module).__module__.startswith("torch."):
        return {}
    own = dict(module.named_parameters(recurse=False))
    return {name: p for name, p in own.items() if p.dim() > 1 and p.numel() == max(p.shape) > 1}


def _replace(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)


@dataclass
class _Seen:
    """What one run of a network shows."""

    norms: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Of batch norms the layer whose output each reads, and how many functions read that."""
    channels: dict[str, int] = field(default_factory=dict)
    """Of the one tensor (B, C, h, w) that each module reads."""
    calls: Counter[str] = field(default_factory=Counter)
    factors: dict[str, str] = field(default_factory=dict)
    """Of parameters the layer whose output is multiplied by each, where nothing else reads them."""

    def before(self, net: nn.Module) -> dict[str, str]:
        """Factors of each channel, and the layers that each can go into."""
        found = {}
        for factor, layer in self.factors.items():
            channels = net.get_parameter(factor).shape[
                -3 if isinstance(net.get_submodule(layer), nn.Conv2d) else -1 :
            ]
            whole = channels[0] == net.get_parameter(factor).numel() == len(net.get_submodule(layer).weight)  # type: ignore[arg-type]
            if whole and self.calls[layer] == 1:
                found[factor] = layer
        return found

    def behind(self, net: nn.Module) -> dict[str, str]:
        """Batch norms with running statistics, and the layers that each can go into."""
        return {
            norm: layer
            for norm, (layer, reads) in self.norms.items()
            if self.calls[norm] == self.calls[layer] == reads == 1
            and net.get_submodule(norm).running_mean is not None
        }


class _Reads(TorchFunctionMode):
    """Counts the functions that read each tensor and give one, by the tensors' identities."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.products: list[tuple[int, int]] = []
        """Identities of what was multiplied by each other."""
        self._kept: list[Tensor] = []  # so that no other tensor takes an identity

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(x, Tensor) for x in tree_leaves(result)):
            read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self.counts.update({id(x) for x in read})
            if getattr(func, "__name__", "") in ("mul", "multiply", "__mul__", "__rmul__") and len(read) == 2:
                self.products.append((id(read[0]), id(read[1])))
            self._kept += read
        return result


@torch.no_grad()
def _watched(net: nn.Module, picture: Tensor) -> tuple[Tensor, _Seen]:
    """The output of a network on a picture, and what its modules read."""
    seen, reads = _Seen(), _Reads()
    made: dict[int, tuple[str, Tensor]] = {}  # by identity the layer that gave a tensor, and it

    def before(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.calls[name] += 1
        x = inputs[0] if len(inputs) == 1 else None
        if not isinstance(x, Tensor):
            return
        if x.dim() == 4:
            seen.channels[name] = x.shape[1]
        fits = x.dim() == (4 if isinstance(module, nn.BatchNorm2d) else 2)
        if isinstance(module, _Norm) and fits and id(x) in made:
            seen.norms[name] = (made[id(x)][0], id(x))

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, _Layer) and isinstance(output, Tensor):
            made[id(output)] = (name, output)

    handles = []
    for name, module in net.named_modules():
        handles.append(module.register_forward_pre_hook(functools.partial(before, name)))
        handles.append(module.register_forward_hook(functools.partial(after, name)))
    try:
        with reads:
            result = _run(net, picture)
    finally:
        for handle in handles:
            handle.remove()
    factors = {
        id(p): f"{name}.{key}" if name else key
        for name, m in net.named_modules()
        for key, p in _factors(m).items()
    }
    for pair in reads.products:
        for one, other in (pair, pair[::-1]):
            if one in made and other in factors and reads.counts[one] == reads.counts[other] == 1:
                seen.factors[factors[other]] = made[one][0]
    seen.norms = {norm: (layer, reads.counts[read]) for norm, (layer, read) in seen.norms.items()}
    return result, seen


@torch.no_grad()
def _run(net: nn.Module, picture: Tensor) -> Tensor:
    size = "x".join(str(side) for side in picture.shape[2:])
    found = _refused(lambda: net(picture.clone()), f"cannot be run on a picture of {size} pixels")
    if not isinstance(found, Tensor):
        raise InputError("network: does not give a picture (B, 3, height, width)")
    return found


def _refused(run: Callable[[], Any], what: str) -> Any:
    try:
        return run()
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"network: {what} ({reason})") from error


def _compare(net: nn.Module, picture: Tensor, before: Tensor, merged: list[str]) -> None:
    names = f"{', '.join(merged[:3])}{' ...' if len(merged) > 3 else ''}"
    with torch.no_grad():
        after = _refused(lambda: net(picture.clone()), f"cannot be run with {names} merged")
    largest = max(float(before.abs().max()), 1e-6)
    change = float((after - before).abs().max()) / largest if after.shape == before.shape else math.inf
    if not change <= MOST_CHANGE:
        raise InputError(
            f"network: with {names} merged its output changes by {change:.1g} of its largest value, more than "
            f"{MOST_CHANGE:g}; merge them with the network's own code, and save it again"
        )
