"""Quantized products of activations in any network, found and replaced where torch computes them.

A network calls ``torch.matmul``, ``@``, ``bmm``, ``einsum`` or ``scaled_dot_product_attention`` on
values that both depend on the picture; each such place gets a
:class:`quantsr.quant.attention.QuantMatmul` of its own, which quantizes both operands. Products
with a parameter are none of these: they are layers.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantsr.quant.attention import QuantMatmul, QuantOperand
from quantsr.quant.gradients import requiring_gradients
from quantsr.quant.mixins import with_mixin

_MATMULS = frozenset(
    [torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.bmm, Tensor.mm, Tensor.__matmul__]
)
_ATTENTION = F.scaled_dot_product_attention
_ATTENTION_NAMES = ("scores", "mixture")
"""Names of a module's products where it has two, as window attention does."""


Shape = tuple[int, int, int, int]
"""Heads, rows, inner size and columns of a product, in the trial run."""

Places = dict[int, list[Shape]]
"""Where a module multiplies: which call of a function above, counted from 0 in each forward, and
the one or two products that it computes."""


class WithProducts(nn.Module):
    """Mixin of modules whose forward computes products that are quantized.

    ``_products`` are the names of the :class:`QuantMatmul` of each such call.
    """

    _products: dict[int, tuple[str, ...]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward, its products quantized."""
        found = {
            call: [cast(QuantMatmul, self.get_submodule(name)) for name in names]
            for call, names in self._products.items()
        }
        with _Quantizing(found):
            return super().forward(*args, **kwargs)


class _Counting(TorchFunctionMode):
    """Counts calls of the functions above, and hands them to :meth:`product`."""

    def __init__(self) -> None:
        super().__init__()
        self.call = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _MATMULS and func not in (torch.einsum, _ATTENTION):
            return func(*args, **kwargs)
        call, self.call = self.call, self.call + 1
        return self.product(call, func, args, kwargs)

    def product(self, call: int, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What the call gives."""
        raise NotImplementedError


class _Quantizing(_Counting):
    def __init__(self, products: dict[int, list[QuantMatmul]]) -> None:
        super().__init__()
        self.products = products

    def product(self, call: int, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        found = self.products.get(call)
        if found is None:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # and modes of outer modules
            if func is _ATTENTION:
                return _attend(found[0], found[1], *args, **kwargs)
            if func is torch.einsum:
                equation, left, right = _einsum_operands(args)
                return torch.einsum(equation, *found[0].operands(left, right))
            return found[0](*_operands(args, kwargs))


class _Finding(_Counting):
    def __init__(self, found: Places) -> None:
        super().__init__()
        self.found = found

    def product(self, call: int, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        operands = _einsum_operands(args)[1:] if func is torch.einsum else _operands(args, kwargs)
        # Parameters need no gradient in the trial run, so what does depends on the picture.
        if not all(isinstance(x, Tensor) and x.requires_grad for x in operands):
            return func(*args, **kwargs)
        left, right = operands
        if func is _ATTENTION:
            rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-2]
            places = [(rows, inner, columns), (rows, columns, inner)]
        elif func is torch.einsum:
            places = [_einsum_shape(args[0], left, right)]
        else:
            places = [(left.shape[-2], left.shape[-1], right.shape[-1])]
        heads = left.shape[-3] if left.dim() > 3 else 1
        # A module that runs several times has the same places each time.
        self.found.setdefault(call, [(heads, *place) for place in places])
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)


def _operands(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Of a product of matrices; of attention, the query and the key."""
    values = [*args, *kwargs.values()]
    return values[0], values[1]


def _einsum_operands(args: Sequence[Any]) -> tuple[Any, Any, Any]:
    """The equation and two operands; operands of None where there are not two."""
    operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
    if not isinstance(args[0], str) or len(operands) != 2:
        return args[0], None, None
    return args[0], operands[0], operands[1]


def _einsum_shape(equation: str, left: Tensor, right: Tensor) -> tuple[int, int, int]:
    """Rows, inner size and columns of an einsum, by the letters of its equation."""
    inputs, _, output = equation.replace(" ", "").replace("...", "").partition("->")
    first, second = inputs.split(",")
    sizes = dict(zip(reversed(first), reversed(left.shape), strict=False))
    sizes |= dict(zip(reversed(second), reversed(right.shape), strict=False))

    def size(letters: set[str]) -> int:
        return math.prod(sizes[letter] for letter in letters)

    kept, a, b = set(output), set(first), set(second)
    return size((a & kept) - b), size((a & b) - kept), size((b & kept) - a)


def _attend(
    scores: QuantMatmul,
    mixture: QuantMatmul,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """``scaled_dot_product_attention`` as its two products."""
    found = scores(query, key.transpose(-2, -1)) * (
        1 / math.sqrt(query.shape[-1]) if scale is None else scale
    )
    if is_causal:
        attn_mask = torch.ones(found.shape[-2:], dtype=torch.bool, device=found.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        found = found.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        found = found + attn_mask
    return cast(Tensor, mixture(F.dropout(found.softmax(-1), dropout_p), value))


def find_products(net: nn.Module, picture: Tensor) -> dict[str, Places]:
    """The products of values that both depend on the picture, by the name of their module.

    Args:
        net: run once on `picture`, (1, C, h, w).
    """
    found: dict[str, Places] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(requiring_gradients(net, False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_without_inference_tensors(net))
        for name, module in net.named_modules():
            watched = functools.partial(_watched, module.forward, found.setdefault(name, {}))
            object.__setattr__(module, "forward", watched)
            stack.callback(object.__delattr__, module, "forward")
        net(picture.detach().clone().requires_grad_())
    return {name: places for name, places in found.items() if places}


@contextlib.contextmanager
def _without_inference_tensors(net: nn.Module) -> Iterator[None]:
    """While entered, the tensors that were made in `torch.inference_mode`, of which autograd keeps
    none, are copies."""
    kept: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for module in net.modules():
            holders: list[dict[str, Any]] = [module._parameters, module._buffers, vars(module)]
            for holder in holders:
                for name, tensor in holder.items():
                    if isinstance(tensor, Tensor) and tensor.is_inference():
                        kept.append((holder, name, tensor))
        for holder, name, tensor in kept:
            holder[name] = tensor.clone()
        yield
    finally:
        for holder, name, tensor in kept:
            holder[name] = tensor


def _watched(forward: Callable[..., Any], found: Places, *args: Any, **kwargs: Any) -> Any:
    with _Finding(found):
        return forward(*args, **kwargs)


def quantize_products(net: nn.Module, picture: Tensor, *, nbits: int, quantizer: str) -> int:
    """Quantize both operands of all products of values that depend on the picture; how many.

    One step, and one ``tau``, for each operand.

    Args:
        net: changed in place.
        picture: (1, C, h, w) that the network runs on once.
        nbits: 2..8.
        quantizer: a name in ``QUANTIZER_REGISTRY``.

    Raises:
        ValueError: there is no such product, or a module has an attribute of a name that its
            products need.
    """
    found = find_products(net, picture)
    if not found:
        raise ValueError("multiplies no values that both depend on the picture")
    for name, places in found.items():
        module = net.get_submodule(name)
        count = sum(map(len, places.values()))
        names = _ATTENTION_NAMES if count == 2 else tuple(f"product{i}" for i in range(count))
        if taken := [n for n in (*names, "_products") if hasattr(module, n)]:
            raise ValueError(f"{name} has an attribute {taken[0]!r}, a name that its products need")
        free, products = iter(names), {}
        for call, shapes in places.items():
            products[call] = tuple(next(free) for _ in shapes)
            for child, shape in zip(products[call], shapes, strict=True):
                left, right = (QuantOperand(channels=1, nbits=nbits, quantizer=quantizer) for _ in range(2))
                module.add_module(child, QuantMatmul(left, right, shape=shape))
        module._products = products  # type: ignore[assignment]
        module.__class__ = with_mixin(WithProducts, type(module))
    return sum(len(shapes) for places in found.values() for shapes in places.values())
