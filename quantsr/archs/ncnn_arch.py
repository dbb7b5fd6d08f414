"""Networks in ncnn's files (``.param`` and ``.bin``), as upscaling applications have them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from quantsr.archs.gray import reads_gray
from quantsr.basicsr_compat import ARCH_REGISTRY
from quantsr.errors import InputError

_MAGIC = "7767517"
_FLOAT16, _FLOAT32 = 0x01306B47, 0  # tags before a weight
_MOST_VALUES = 2**28


@dataclass(frozen=True)
class Line:
    """A layer of a ``.param`` file."""

    kind: str
    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    options: Mapping[int, str]
    """By ncnn's keys; those of arrays are -23300 less the key."""

    def number(self, key: int, default: float = 0.0) -> float:
        """Raises ValueError."""
        return float(self.options.get(key, default))

    def integer(self, key: int, default: int = 0) -> int:
        """Raises ValueError."""
        return int(self.options.get(key, default))

    def numbers(self, key: int) -> list[float]:
        """An array; raises ValueError."""
        count, *values = self.options.get(-23300 - key, "0").split(",")
        if int(count) != len(values):
            raise ValueError(f"{self.name}: option {key} has {len(values)} values instead of {count}")
        return [float(value) for value in values]


@ARCH_REGISTRY.register()
class NcnnNetwork(nn.Module):
    """A network of convolutions read from ncnn's files, in float32.

    From (B, 3, h, w) RGB in [0, 1] to (B, 3, r*h, r*w), not clipped. It has the layers
    BinaryOp (sum, difference, product), Concat of channels, Convolution, Eltwise, Interp (nearest
    and bilinear), MemoryData of one value for each channel, PReLU, PixelShuffle, ReLU, Sigmoid,
    Split, Swish and TanH.

    Args:
        file: the ``.param`` file; the ``.bin`` file beside it holds the weights.
        scale: its upscaling factor r; default: whatever it has.

    Raises:
        InputError: the files cannot be read, do not belong together, have another layer, or are of
            another scale.
    """

    def __init__(self, file: str, scale: int | None = None) -> None:
        super().__init__()
        path = Path(file).expanduser()
        try:
            lines = read_param(path.read_text(encoding="utf-8"))
            weights = _Weights(path.with_suffix(".bin").read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({_reason(error)}); give ncnn's .param file") from error
        self.steps: list[tuple[Line, Callable[..., Any]]] = []
        for line in lines:
            try:
                self.steps.append((line, self._step(line, weights)))
            except ValueError as error:
                raise InputError(f"{path}: {line.kind} {line.name}: {error}") from error
        if weights.left:
            raise InputError(f"{path}: its .bin file holds another network's weights; fetch both again")
        read = {name for line in lines for name in line.inputs}
        given = [name for line in lines for name in line.outputs]
        inputs = [line.outputs[0] for line in lines if line.kind == "Input"]
        outputs = [name for name in given if name not in read]
        if len(inputs) != 1 or len(outputs) != 1:
            raise InputError(f"{path}: has {len(inputs)} inputs and {len(outputs)} outputs instead of one")
        self.input, self.output = inputs[0], outputs[0]
        found = self._scale(path)
        if scale is not None and found != scale:
            raise InputError(f"{path}: is a network of x{found:g}, not of x{scale}")

    @torch.inference_mode()
    def _scale(self, path: Path) -> float:
        try:
            return self.eval()(torch.zeros(1, 1 if reads_gray(self) else 3, 16, 16)).shape[-1] / 16
        except (IndexError, RuntimeError, TypeError) as error:
            raise InputError(
                f"{path}: cannot be run ({str(error).splitlines()[0]}); fetch it again"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        values = {self.input: x}
        for line, step in self.steps:
            if line.kind == "Input":
                continue
            inputs = [values[name] for name in line.inputs]
            module = self._modules.get(_module_name(line.name))
            result = step(*inputs) if module is None else step(module(*inputs))
            if line.kind == "Split":
                values.update(dict.fromkeys(line.outputs, result))
            else:
                values[line.outputs[0]] = result
        return values[self.output]

    def _step(self, line: Line, weights: _Weights) -> Callable[..., Any]:
        """What a layer computes, behind its module where it has one. Raises ValueError for a layer
        that this class does not have."""
        module: nn.Module | None = None
        step: Callable[..., Any] = _same
        if line.kind == "Convolution":
            module, step = _convolution(line, weights), _activation(line)
        elif line.kind == "PReLU":
            module = nn.PReLU(line.integer(0))
            module.weight = nn.Parameter(weights.floats(line.integer(0)))
        elif line.kind == "MemoryData":
            module = _Constant(line, weights)
        elif line.kind in _SIMPLE:
            step = _SIMPLE[line.kind](line)
        else:
            raise ValueError("is a layer that no program has")
        if module is not None:
            self.add_module(_module_name(line.name), module)
        return step


class _Constant(nn.Module):
    """A value for each channel, (1, C, 1, 1)."""

    values: Tensor

    def __init__(self, line: Line, weights: _Weights) -> None:
        super().__init__()
        sizes = [line.integer(key) for key in (0, 1, 2) if line.integer(key)]
        if sum(size > 1 for size in sizes) > 1:
            raise ValueError("holds a map instead of one value for each channel")
        self.register_buffer("values", weights.floats(int(np.prod(sizes))).view(1, -1, 1, 1))

    def forward(self) -> Tensor:
        return self.values


class _Weights:
    """The values of a ``.bin`` file, in the order of the layers."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        """Bytes that no layer has read."""
        return len(self._data) - self._at

    def tagged(self, count: int) -> Tensor:
        """Values behind a tag that says their type. Raises ValueError."""
        tag = int(self._take("<u4", 1)[0])
        if tag not in (_FLOAT16, _FLOAT32):
            raise ValueError("has weights of another type than float32 and float16; give the float network")
        return torch.from_numpy(self._take("<f2" if tag == _FLOAT16 else "<f4", count).astype(np.float32))

    def floats(self, count: int) -> Tensor:
        """Raises ValueError."""
        return torch.from_numpy(self._take("<f4", count).astype(np.float32))

    def _take(self, kind: str, count: int) -> NDArray[Any]:
        if not 0 < count <= _MOST_VALUES or np.dtype(kind).itemsize * count > self.left:
            raise ValueError(f"has {count} values, which the .bin file does not hold")
        values = np.frombuffer(self._data, kind, count, self._at)
        self._at += -(-values.nbytes // 4) * 4
        return values


def read_param(text: str) -> list[Line]:
    """The layers of a ``.param`` file. Raises ValueError."""
    first, _, *rest = text.splitlines() or [""]
    if first.strip() != _MAGIC:
        raise ValueError("it does not begin like ncnn's text files")
    lines, known = [], set[str]()
    for words in (line.split() for line in rest if line.strip()):
        if len(words) < 4:
            raise ValueError(f"its line {' '.join(words)!r} is incomplete")
        inputs, outputs = int(words[2]), int(words[3])
        ends = 4 + inputs, 4 + inputs + outputs
        options = dict(word.split("=", 1) for word in words[ends[1] :])
        line = Line(
            words[0],
            words[1],
            words[4 : ends[0]],
            words[ends[0] : ends[1]],
            {int(key): value for key, value in options.items()},
        )
        if missing := [name for name in line.inputs if name not in known]:
            raise ValueError(f"{line.name} reads {missing[0]}, which no layer before it gives")
        known.update(line.outputs)
        lines.append(line)
    return lines


def _same(x: Tensor) -> Tensor:
    return x


def _convolution(line: Line, weights: _Weights) -> nn.Conv2d:
    outputs, side, count = line.integer(0), line.integer(1), line.integer(6)
    inputs = count // max(outputs * side * side, 1)
    for key, wanted, what in ((2, 1, "dilation"), (3, 1, "stride"), (11, side, "height of the kernel")):
        if line.integer(key, wanted) != wanted:
            raise ValueError(f"has {what} {line.integer(key)}")
    if line.integer(4) != side // 2 or inputs * outputs * side * side != count or not count:
        raise ValueError(f"has padding {line.integer(4)} and {count} weights for its {side}x{side} kernel")
    conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=line.integer(5) == 1)
    conv.weight = nn.Parameter(weights.tagged(count).view(outputs, inputs, side, side))
    if conv.bias is not None:
        conv.bias = nn.Parameter(weights.floats(outputs))
    return conv


def _activation(line: Line) -> Callable[[Tensor], Tensor]:
    """That of a convolution."""
    kind = line.integer(9)
    if kind == 2:
        (slope,) = line.numbers(10)
        return functools.partial(F.leaky_relu, negative_slope=slope)
    if kind not in (0, 1):
        raise ValueError(f"has an activation of type {kind}")
    return F.relu if kind else _same


def _binary(line: Line) -> Callable[..., Tensor]:
    operations: dict[int, Callable[..., Tensor]] = {0: torch.add, 1: torch.sub, 2: torch.mul}
    operation = operations.get(line.integer(0))
    if operation is None:
        raise ValueError(f"is of type {line.integer(0)}, not a sum, difference or product")
    if line.integer(1):
        number = line.number(2)
        return lambda x: operation(x, number)
    return operation


def _eltwise(line: Line) -> Callable[..., Tensor]:
    if line.integer(0) == 0:
        return torch.mul
    factors = line.numbers(1)
    if line.integer(0) != 1 or len(factors) not in (0, 2):
        raise ValueError(f"is of type {line.integer(0)}, not a sum or product of two")
    if not factors:
        return torch.add
    return lambda a, b: a * factors[0] + b * factors[1]


def _interp(line: Line) -> Callable[[Tensor], Tensor]:
    mode = {1: "nearest", 2: "bilinear"}.get(line.integer(0))
    factor = line.number(1, 1)
    if mode is None or factor != line.number(2, 1) or factor != int(factor) or line.integer(6):
        raise ValueError("resizes other than by nearest or bilinear interpolation to a multiple")
    return lambda x: F.interpolate(x, scale_factor=int(factor), mode=mode)


def _concat(line: Line) -> Callable[..., Tensor]:
    if line.integer(0):
        raise ValueError(f"joins along axis {line.integer(0)}, not channels")
    return lambda *x: torch.cat(x, 1)


def _relu(line: Line) -> Callable[[Tensor], Tensor]:
    slope = line.number(0)
    return lambda x: F.leaky_relu(x, slope) if slope else x.relu()


_SIMPLE: dict[str, Callable[[Line], Callable[..., Any]]] = {
    "BinaryOp": _binary,
    "Concat": _concat,
    "Eltwise": _eltwise,
    "Input": lambda line: lambda: None,
    "Interp": _interp,
    "PixelShuffle": lambda line: lambda x: F.pixel_shuffle(x, line.integer(0)),
    "ReLU": _relu,
    "Sigmoid": lambda line: torch.sigmoid,
    "Split": lambda line: _same,
    "Swish": lambda line: F.silu,
    "TanH": lambda line: torch.tanh,
}


def _module_name(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z_]", "_", name)


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
