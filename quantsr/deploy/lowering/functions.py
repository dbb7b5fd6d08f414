"""Operations of torch on references."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from quantsr.deploy.lowering import attention, channels, scores
from quantsr.deploy.lowering.traced import Found, Map, Record, Traced, decimal

_MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "permute",
        "transpose",
        "t",
        "unsqueeze",
        "squeeze",
        "expand",
        "slice",
        "select",
        "narrow",
        "index_select",
        "index",
        "roll",
        "flip",
        "reflection_pad2d",
        "replication_pad2d",
        "clone",
        "alias",
        "detach",
        "split",
        "split_with_sizes",
        "unbind",
        "cat",
        "stack",
        "_reshape_alias",
        "as_strided",
        "repeat",
        "contiguous",
        "im2col",
    ]
)
"""Operations of torch that move elements and compute nothing."""


class Tracing(Record):
    """A record of what torch is called to do."""

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """One operation of torch; one that is not known raises InputError."""
        name: str = func.overloadpacket.__name__
        if name == "copy_" and all(isinstance(x, Traced) for x in args[:2]):
            args[0].references.copy_(args[1].references)
            return args[0]
        if name == "cat":
            args = (self._joined_with_constants([self.continued(x) for x in args[0]]), *args[1:])
        if name in _MOVES:
            return self._move(func, args, kwargs)
        in_place = name.endswith("_")
        method = _OPERATIONS.get(name.removesuffix("_"))
        if method is None:
            raise self.refuse(f"calls {func.overloadpacket}")
        result = method(self, *args, **kwargs)
        if in_place:
            args[0].references.copy_(result.references)
            return args[0]
        return result

    def _joined_with_constants(self, parts: list[Any]) -> list[Any]:
        """Tensors (1, C, h, w) of which some are one number everywhere, as references."""
        traced = next((x for x in parts if isinstance(x, Traced)), None)
        constant = [isinstance(x, Tensor) and not isinstance(x, Traced) for x in parts]
        if traced is None or traced.dim() != 4 or not any(constant):
            return parts
        numbers = [torch.unique(x) if known else None for x, known in zip(parts, constant, strict=True)]
        return [
            x if number is None or len(number) > 1 else self._everywhere(float(number), x, traced)
            for x, number in zip(parts, numbers, strict=True)
        ]

    def _everywhere(self, number: float, shape: Tensor, beside: Traced) -> Tensor:
        """A number at every pixel of a map beside another: `2 number sigmoid(0 x)`, which it is."""
        if number == 0 or shape.dim() != 4 or shape.shape[2:] != beside.shape[2:]:
            return shape
        found = self.find_map(beside)
        value = self.append("scale", self._once("slice", found.map.value, start=0, stop=1), factor=0.0)
        value = self.append("scale", self.append("sigmoid", value), factor=2 * decimal(number))
        places = np.arange(math.prod(found.map.size)).reshape(1, 1, *found.map.size)
        return self.tensor(Map(value, 1, found.map.size), places).expand(shape.shape)

    def _move(self, func: Any, args: Any, kwargs: Any) -> Any:
        def references(x: Any) -> Any:
            if isinstance(x, Traced):
                return x.references
            if isinstance(x, Tensor) and x.is_floating_point():
                raise self.refuse("joins values and a constant tensor")
            return x.cpu() if isinstance(x, Tensor) else x

        moved = func(*tree_map(references, args), **tree_map(references, kwargs))
        return tree_map(lambda x: Traced(self, x) if isinstance(x, Tensor) else x, moved)

    def _to_copy(self, x: Traced, dtype: torch.dtype | None = None, **_: Any) -> Traced:
        if dtype is not None and not dtype.is_floating_point:
            raise self.refuse("rounds values to integers")
        return Traced(self, x.references.clone())

    def _gelu(self, x: Traced, *, approximate: str = "none") -> Traced:
        if approximate != "none":
            raise self.refuse(f"computes GELU by {approximate}")
        return self.elementwise("gelu", x)

    def _leaky_relu(self, x: Traced, slope: float = 0.01) -> Traced:
        return self.elementwise("leaky_relu", x, slope=float(slope))

    def _neg(self, x: Traced) -> Traced:
        return self._scaled(x, -1.0)

    def _scaled(self, x: Tensor, factor: float) -> Traced:
        if factor == 1 and isinstance(x, Traced):
            return x
        if not isinstance(x, Traced):
            return self.elementwise("scale", x, factor=factor)
        constant, values = self.numbers(x)
        if not constant.any():
            return self.elementwise("scale", x, factor=factor)
        scaled, inside = self.of_constants(factor * values), torch.from_numpy(~constant)
        if inside.any():
            part = Traced(self, x.references[inside])
            scaled[inside] = self.elementwise("scale", part, factor=factor).references
        return Traced(self, scaled)

    def _constant_pad_nd(self, x: Traced, pad: Sequence[int], value: float = 0) -> Traced:
        if value:
            raise self.refuse(f"pads with {value:g}")
        return Traced(self, F.pad(x.references, list(pad)))

    def _add(self, a: Any, b: Any, *, alpha: float = 1) -> Traced:
        if isinstance(a, Traced) and isinstance(b, Traced):
            return self._binary("add", a, self._scaled(b, float(alpha)))
        x, constant = (a, b) if isinstance(a, Traced) else (b, a)
        if scores.scores_of(self, x) is not None and alpha == 1:
            return scores.biased(self, x, constant)
        return self._offset(x, constant, float(alpha) if x is a else 1.0)

    def _sub(self, a: Any, b: Any, *, alpha: float = 1) -> Traced:
        if isinstance(a, Traced) and isinstance(b, Traced):
            return self._binary("subtract", a, self._scaled(b, float(alpha)))
        if not isinstance(a, Traced):
            return self._offset(self._scaled(b, -float(alpha)), a, 1.0)
        return self._offset(a, b, -float(alpha))

    def _rsub(self, a: Traced, b: Any, alpha: float = 1) -> Traced:
        return self._sub(b, a, alpha=alpha)

    def _mul(self, a: Any, b: Any) -> Traced:
        if isinstance(a, Traced) and isinstance(b, Traced):
            return self._binary("multiply", a, b)
        x, constant = (a, b) if isinstance(a, Traced) else (b, a)
        if isinstance(constant, Tensor) and constant.data_ptr() in self.units:
            return self.elementwise("unit", x, unit=self.units[constant.data_ptr()])
        if scores.scores_of(self, x) is not None:
            return scores.scaled(self, x, constant)
        if isinstance(constant, Tensor) and _has_several(constant):
            return self._each_channel("factors", x, constant, "multiplies by a constant tensor")
        return self._scaled(x, self.number(constant))

    def _div(self, a: Any, b: Any) -> Traced:
        if not isinstance(a, Traced):
            raise self.refuse("divides by a value")
        if isinstance(b, Traced):
            return channels.divided(self, a, b)
        if isinstance(b, Tensor) and _has_several(b):
            return self._each_channel("factors", a, 1 / b, "divides by a constant tensor")
        number = self.number(b)
        return a if number == 1 else self.elementwise("divide", a, number=number)

    def _offset(self, x: Traced, constant: Any, sign: float) -> Traced:
        """Plus `sign` times a number, or one for each channel."""
        if isinstance(constant, Tensor):
            return self._each_channel("offset", x, sign * constant, "adds a constant tensor")
        return self._each_channel("offset", x, sign * torch.tensor(float(constant)), "")

    def _each_channel(self, kind: str, x: Traced, constant: Tensor, misuse: str) -> Traced:
        """`offset` or `factors` by a constant that is one number for each channel."""
        found = self.find(x)
        each = constant.detach().double().cpu()
        if torch.broadcast_shapes(each.shape, x.shape) != x.shape:
            raise self.refuse(misuse)
        values = each.broadcast_to(x.shape).numpy()
        if (values == (kind == "factors")).all():
            return x
        column = found.places // math.prod(found.map.size)
        channels = np.zeros(found.map.channels)
        channels[column] = values
        if not np.array_equal(channels[column], values):
            raise self.refuse(misuse)
        numbers = [decimal(v) for v in channels.tolist()]
        return self.elementwise(kind, x, name=self.modules[-1] if self.modules else "", values=numbers)

    def _binary(self, kind: str, a: Traced, b: Traced) -> Traced:
        left, right = self.find(a), self.find(b)
        if 1 < right.map.channels < left.map.channels or 1 < left.map.channels < right.map.channels:
            left, right = self.find(self.repeated(a)), self.find(self.repeated(b))
        if kind != "subtract" and right.places.size and _amount(right.map) > _amount(left.map):
            left, right = right, left
        area = math.prod(left.map.size)
        shape = np.broadcast_shapes(left.places.shape, right.places.shape)
        places, other = (np.broadcast_to(x.places, shape) for x in (left, right))
        if right.map.size == left.map.size:
            expected = places if right.map.channels == left.map.channels else places % area
        else:
            expected = places // area if right.map.channels == left.map.channels else np.zeros_like(places)
        fits = right.map.channels in (1, left.map.channels) and right.map.size in ((1, 1), left.map.size)
        if not fits or not np.array_equal(other, expected):
            raise self.refuse(f"computes {kind} of values that lie differently")
        value = self.append(kind, left.map.value, right.map.value)
        return self.tensor(Map(value, left.map.channels, left.map.size), places)

    def _pixel_shuffle(self, x: Traced, factor: int) -> Traced:
        found = self.find_map(x)
        height, width = found.map.size
        size = (height * factor, width * factor)
        if factor == 1:
            return x
        return self.whole("pixel_shuffle", found, found.map.channels // factor**2, size, factor=factor)

    def _pixel_unshuffle(self, x: Traced, factor: int) -> Traced:
        found = self.find_map(x)
        height, width = found.map.size
        size = (height // factor, width // factor)
        if factor == 1:
            return x
        if not self.is_unrounded(size):
            raise self.refuse(f"makes channels of {factor} x {factor} pixels at any size of picture")
        return self.whole("pixel_unshuffle", found, found.map.channels * factor**2, size, factor=factor)

    def _upsample_nearest2d(self, x: Traced, size: Sequence[int], *_: Any) -> Traced:
        return self._upsampled("upsample_nearest", x, size)

    def _upsample_bilinear2d(self, x: Traced, size: Sequence[int], align_corners: bool, *_: Any) -> Traced:
        if align_corners:
            raise self.refuse("interpolates with align_corners")
        return self._upsampled("upsample_bilinear", x, size)

    def _upsampled(self, kind: str, x: Traced, size: Sequence[int]) -> Traced:
        found = self.find_map(x)
        back = kind == "upsample_nearest" and found.map.size in self.pooled
        back = back and not self.is_unrounded(found.map.size)
        if back:
            kind = "resize_nearest"
        height, width = self.grid if back else found.map.size
        factor = size[0] // height
        if factor < (1 if back else 2) or (size[0], size[1]) != (height * factor, width * factor):
            old = " x ".join(map(str, found.map.size))
            raise self.refuse(f"resizes maps of {old} to {size[0]} x {size[1]}")
        return self.whole(kind, found, found.map.channels, (size[0], size[1]), factor=factor)

    def _max_pool(self, x: Traced, size: Sequence[int]) -> tuple[Traced, Tensor]:
        """Adaptive pooling, and where the largest values lie, which nothing may read."""
        found, rows_columns = self.find_map(x), (size[0], size[1])
        factor = min(old // max(1, new) for old, new in zip(found.map.size, rows_columns, strict=True))
        if factor < 2 or rows_columns != tuple(old // factor for old in found.map.size):
            height, width = found.map.size
            raise self.refuse(f"pools maps of {height} x {width} to {size[0]} x {size[1]}")
        self.pooled.add(rows_columns)
        result = self.whole("max_pool", found, found.map.channels, rows_columns, factor=factor)
        return result, torch.empty(0, dtype=torch.int64)

    def _mean(self, x: Traced, dims: Sequence[int] | None = None, keepdim: bool = False, **_: Any) -> Traced:
        found = self.find_map(x)
        if dims is not None and [dim % 4 for dim in dims] == [1] and found.map.channels <= _MOST_SUMMED:
            result = self._mean_of_channels(found)
            return result if keepdim else result[:, 0]  # type: ignore[return-value]
        if dims is None or sorted(dim % 4 for dim in dims) != [2, 3]:
            raise self.refuse("averages over other dimensions than height and width")
        result = self.whole("mean", found, found.map.channels, (1, 1))
        return result if keepdim else result.view(1, -1)  # type: ignore[return-value]

    def _mean_of_channels(self, found: Found) -> Traced:
        """As a sum of slices; (1, 1, h, w)."""
        value, count = found.map.value, found.map.channels
        total = self._once("slice", value, start=0, stop=1)
        for channel in range(1, count):
            total = self.append("add", total, self._once("slice", value, start=channel, stop=channel + 1))
        mean = self.append("scale", total, factor=1 / count)
        places = np.arange(math.prod(found.map.size)).reshape(1, 1, *found.map.size)
        return self.tensor(Map(mean, 1, found.map.size), places)


_MOST_SUMMED = 16
"""Channels whose mean is a sum of operations."""

_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{
        kind: lambda record, x, kind=kind: record.elementwise(kind, x)
        for kind in ("relu", "sigmoid", "silu", "mish", "tanh")
    },
    "adaptive_max_pool2d": Tracing._max_pool,
    "_softmax": lambda record, x, dim, *_: scores.softmax(record, x, dim),
    "bmm": lambda record, a, b: attention.product(record, a, b),
    "clamp_min": lambda record, x, least: channels.at_least(record, x, least),
    "constant_pad_nd": Tracing._constant_pad_nd,
    "linalg_vector_norm": lambda record, x, *args, **kwargs: channels.lengths(record, x, *args, **kwargs),
    "_to_copy": Tracing._to_copy,
    "add": Tracing._add,
    "div": Tracing._div,
    "gelu": Tracing._gelu,
    "leaky_relu": Tracing._leaky_relu,
    "masked_fill": lambda record, x, where, value: scores.masked(record, x, where, value),
    "mean": Tracing._mean,
    "mul": Tracing._mul,
    "neg": Tracing._neg,
    "pixel_shuffle": Tracing._pixel_shuffle,
    "pixel_unshuffle": Tracing._pixel_unshuffle,
    "rsub": Tracing._rsub,
    "sub": Tracing._sub,
    "upsample_bilinear2d": Tracing._upsample_bilinear2d,
    "upsample_nearest2d": Tracing._upsample_nearest2d,
}
"""By torch's names, without the underscore of those in place."""


def _has_several(constant: Tensor) -> bool:
    """Whether a tensor has other values than one."""
    return bool((constant != constant.flatten()[:1]).any())


def _amount(target: Map) -> tuple[int, int]:
    return math.prod(target.size), target.channels
