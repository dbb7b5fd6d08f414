"""Networks that the package spandrel recognizes by the names of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantsr.archs.prepared import prepare
from quantsr.archs.sizes import take_any_size
from quantsr.basicsr_compat import ARCH_REGISTRY
from quantsr.errors import InputError
from quantsr.quant.mixins import with_mixin
from quantsr.trained_files import checkpoint


def Spandrel(file: str, scale: int | None = None) -> nn.Module:
    """The network of a checkpoint, with its parameters (https://github.com/chaiNNer-org/spandrel)
    as quantization takes it (`quantsr.archs.prepared`), for pictures of any size.

    Args:
        file: a checkpoint of tensors only; no code in it is run.
        scale: its upscaling factor; default: whatever it has.

    Raises:
        InputError: spandrel is not installed or does not recognize the network, or it has another
            scale or other channels than one or three.
    """
    path = Path(file).expanduser()
    try:
        from spandrel import ModelLoader, UnsupportedModelError, canonicalize_state_dict
    except ImportError as error:
        raise InputError(
            f"network_g.type: Spandrel needs the package spandrel; pip install spandrel ({error})"
        ) from error
    content = checkpoint.load(path)
    try:
        found = ModelLoader(device="cpu").load_from_state_dict(canonicalize_state_dict(content))
    except UnsupportedModelError as error:
        raise InputError(
            f"{path}: spandrel does not recognize its network; give an option file with network_g by -opt FILE"
        ) from error
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: spandrel cannot load it ({reason}); fetch it again") from error
    if (found.input_channels, found.output_channels) not in ((1, 1), (3, 3)):
        raise InputError(
            f"{path}: has {found.input_channels} and {found.output_channels} channels instead of 1 or 3"
        )
    if scale is not None and found.scale != scale:
        raise InputError(f"{path}: is a network of x{found.scale}, not of x{scale}")
    net = take_any_size(
        _as_called(found.model.eval(), found.input_channels, getattr(found, "_call_fn", None)),
        multiple=found.size_requirements.multiple_of,
        scale=found.scale,
        channels=found.input_channels,
        least=found.size_requirements.minimum,
    )
    try:
        return prepare(net)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


class _Called(nn.Module):
    """A network as spandrel calls it: the first of its results, or another range of values."""

    calling: Callable[[Any, Tensor], Tensor]
    is_called = False

    def forward(self, x: Tensor) -> Tensor:
        plain = super().forward
        if self.is_called:  # by what spandrel calls, which may know this module
            return plain(x)
        self.is_called = True
        try:
            with nullcontext() if len(x) == 1 else _Batched():
                return self.calling(_Plain(self, plain), x)
        finally:
            self.is_called = False


class _Batched(TorchFunctionMode):
    """Spandrel calls networks with one picture, and makes what it joins with it for one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.cat and 1 in (*args[1:], (kwargs or {}).get("dim")):
            count = max(len(x) for x in args[0])
            args = ([x.expand(count, *x.shape[1:]) if len(x) == 1 else x for x in args[0]], *args[1:])
        return func(*args, **(kwargs or {}))


class _Plain:
    """A network, called as its own class does."""

    def __init__(self, net: nn.Module, forward: Callable[..., Any]) -> None:
        self._net, self._forward = net, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)


@torch.inference_mode()
def _as_called(net: nn.Module, channels: int, calling: Callable[[Any, Tensor], Tensor] | None) -> nn.Module:
    """``net``, whose class is replaced where spandrel makes something else of what it gives."""
    if calling is None:
        return net
    x = torch.rand(1, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    found, plain = _result(lambda: calling(net, x.clone())), _result(lambda: net(x.clone()))
    if found is None or (plain is not None and torch.equal(found, plain)):
        return net
    net.__class__ = with_mixin(_Called, type(net))
    net.calling = calling  # type: ignore[assignment]
    return net


def _result(run: Callable[[], Any]) -> Tensor | None:
    """A picture; None where there is none."""
    try:
        found = run()
    except RuntimeError:  # torch's, of shapes that do not fit
        return None
    return found if isinstance(found, Tensor) else None


ARCH_REGISTRY.register(Spandrel)
