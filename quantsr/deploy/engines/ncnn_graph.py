"""ncnn graphs in the making: the text of a .param file and the weights of its .bin file.

A line of the text is `type name inputs outputs names... key=value...`, where an array's key is
-23300 less the key. Weights lie in the order of the layers, those of convolutions behind four bytes
that tell their type. A blob that several layers read goes through a Split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import Limits

INPUT, OUTPUT = "data", "output"
"""Names of blobs: the picture (3, H, W), RGB in 0..1, and the upscaled one."""

ADD, SUBTRACT, MULTIPLY, MAXIMUM = 0, 1, 2, 4
"""Kinds of BinaryOp."""

WINOGRAD_EXACT = 1_800_000
"""ncnn's Winograd convolution of bytes divides by 576 in float32, which is exact for sums up to
this."""

Value = int | float | Sequence[int] | Sequence[float]
Values = Mapping[int, Value]
"""Parameters of a layer by key."""

_MAGIC = 7767517
_ARRAY = -23300
_TAGS = {np.dtype(np.int8): 0x000D4B38, np.dtype(np.float16): 0x01306B47, np.dtype(np.float32): 0}
_BIAS, _GROUPS, _INT8, _ACTIVATION, _FEATURES = 5, 7, 8, 9, 31  # keys of a convolution
_TO_FLOATS, _TO_BYTES = 2, 102  # int8_scale_term, as ncnn's own tools write it
_RELU, _LEAKY_RELU, _CLIP = 1, 2, 3  # activations of a convolution
_NO_WINOGRAD = 64
_SUM = 1  # of Eltwise
_ROUND = 18  # of UnaryOp, half to even


@dataclass(frozen=True)
class _Layer:
    kind: str
    name: str
    inputs: tuple[str, ...]
    values: Values
    weights: bytes


class Graph:
    """Layers in the making. Methods take and return names of blobs: maps (C, H, W) of floats or,
    where it is said, of int8 codes."""

    def __init__(self, *, half: bool = False) -> None:
        """With `half`, float convolutions on which no code depends are stored as float16."""
        self._half = half
        self._layers = [_Layer("Input", INPUT, (), {}, b"")]
        self._constants: dict[bytes, str] = {}

    def layer(
        self,
        kind: str,
        inputs: Sequence[str],
        values: Values | None = None,
        weights: bytes = b"",
        name: str = "",
    ) -> str:
        """Append a layer; returns its output."""
        name = f"{name or kind.lower()}_{len(self._layers)}"
        self._layers.append(_Layer(kind, name, tuple(inputs), values or {}, weights))
        return name

    def finish(self, result: str) -> tuple[str, bytes]:
        """The .param file's text and the .bin file; the blob `result`, which no layer reads,
        is named OUTPUT."""
        readers = Counter(blob for layer in self._layers for blob in layer.inputs)
        copies: dict[str, list[str]] = {}  # names of each shared blob, one for each reader to come
        lines, blobs = [], 0
        for layer in self._layers:
            inputs = [copies[blob].pop(0) if blob in copies else blob for blob in layer.inputs]
            blob = layer.name
            output = OUTPUT if blob == result else blob
            lines.append(_line(layer.kind, layer.name, inputs, [output], layer.values))
            blobs += 1
            if (count := readers[blob]) > 1:
                copies[blob] = [f"{blob}_copy{i}" for i in range(count)]
                lines.append(_line("Split", f"{blob}_split", [blob], copies[blob], {}))
                blobs += count
        text = "\n".join([str(_MAGIC), f"{len(lines)} {blobs}", *lines, ""])
        return text, b"".join(layer.weights for layer in self._layers)

    # --- convolutions -----------------------------------------------------------------------------

    def conv(
        self,
        x: str,
        name: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        *,
        activation: Values | None = None,
        pads: tuple[int, int] | None = None,
        exact: bool = False,
        groups: int = 1,
    ) -> str:
        """A float convolution with weight (O, I / groups, kh, kw), padded by k // 2 or by `pads`
        rows and columns; an `exact` one keeps float32 weights and adds products as they are."""
        values = {**_shape(weight.shape, pads), _BIAS: int(bias is not None), **(activation or {})}
        if exact:
            values[_FEATURES] = _NO_WINOGRAD
        stored = weight.astype(np.float16 if self._half and not exact else np.float32)
        weights = _tagged(stored) + (b"" if bias is None else floats(bias))
        if groups > 1:
            return self.layer("ConvolutionDepthWise", [x], {**values, _GROUPS: groups}, weights, name)
        return self.layer("Convolution", [x], values, weights, name)

    def conv_of_codes(
        self,
        x: str,
        name: str,
        weight: NDArray[np.int8],
        multiplier: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        *,
        bound: int,
        activation: Values | None = None,
        to_bytes: bool = False,
    ) -> str:
        """`multiplier[o]` times the convolution of codes, plus bias.

        Args:
            x: codes, as bytes or as floats that are integers.
            multiplier: one that `reachable` changes is rounded.
            bound: of the sums' magnitude.
            to_bytes: whether the result, behind the activation, is rounded to codes as bytes.
        """
        values = {**_shape(weight.shape, None), _BIAS: int(bias is not None), **(activation or {})}
        values[_INT8] = _TO_BYTES if to_bytes else _TO_FLOATS
        if bound > WINOGRAD_EXACT:
            values[_FEATURES] = _NO_WINOGRAD
        one = floats(np.float32(1))
        weights = (
            _tagged(weight) + (b"" if bias is None else floats(bias)) + floats(_inverse(multiplier)) + one
        )
        return self.layer("Convolution", [x], values, weights + one if to_bytes else weights, name)

    # --- element by element -----------------------------------------------------------------------

    def channels(self, values: NDArray[np.float32]) -> str:
        """A constant (C, 1, 1)."""
        data = floats(values)
        if data not in self._constants:
            self._constants[data] = self.layer(
                "MemoryData", [], {0: 1, 1: 1, 2: values.size}, data, "constant"
            )
        return self._constants[data]

    def binary(self, kind: int, a: str, b: str) -> str:
        """BinaryOp of two values."""
        return self.layer("BinaryOp", [a, b], {0: kind})

    def with_constant(self, kind: int, x: str, values: NDArray[np.float32] | np.float32) -> str:
        """BinaryOp of a map and a constant, one number or one for each channel (C,)."""
        values = np.asarray(values)
        if values.size > 1:
            return self.binary(kind, x, self.channels(values))
        return self.layer("BinaryOp", [x], {0: kind, 1: 1, 2: float(values.reshape(()))})

    def clip(self, x: str, low: float, high: float) -> str:
        """Limited to low..high."""
        return self.layer("Clip", [x], {0: float(low), 1: float(high)})

    def round(self, x: str) -> str:
        """To integers, half to even."""
        return self.layer("UnaryOp", [x], {0: _ROUND})

    def weighted_sum(self, inputs: Sequence[str], factors: Sequence[float]) -> str:
        """The sum of maps of one shape, each times its factor."""
        return self.layer("Eltwise", inputs, {0: _SUM, 1: [float(factor) for factor in factors]})


def reachable(multiplier: NDArray[np.float32]) -> bool:
    """Whether ncnn, which keeps reciprocals, computes with exactly these multipliers."""
    with np.errstate(divide="ignore"):
        return bool((_used(_inverse(multiplier)) == multiplier).all())


def clipped(limits: Limits) -> Values:
    """The activation of a convolution that limits its result."""
    return {_ACTIVATION: _CLIP, _ACTIVATION + 1: [float(limit) for limit in limits]}


def rectified(slope: float = 0.0) -> Values:
    """The activation `max(x, slope * x)`."""
    if slope == 0:
        return {_ACTIVATION: _RELU}
    return {_ACTIVATION: _LEAKY_RELU, _ACTIVATION + 1: [float(slope)]}


def floats(values: NDArray[np.float32] | np.float32) -> bytes:
    """Weights without a type in front."""
    return np.asarray(values, "<f4").tobytes()


def _shape(shape: tuple[int, ...], pads: tuple[int, int] | None) -> dict[int, Value]:
    """Parameters of a convolution with a weight of this shape."""
    rows, columns = pads if pads is not None else (shape[2] // 2, shape[3] // 2)
    return {0: shape[0], 1: shape[3], 11: shape[2], 4: columns, 14: rows, 6: int(np.prod(shape))}


def _inverse(multiplier: NDArray[np.float32]) -> NDArray[np.float32]:
    """(O,) scales whose reciprocal comes nearest to the multiplier; for ncnn 0 is that of 0."""
    with np.errstate(divide="ignore"):
        best = (1 / multiplier.astype(np.float64)).astype(np.float32)
        best[multiplier == 0] = 0
        for towards in (np.float32(-np.inf), np.float32(np.inf)):
            near = np.nextafter(best, towards)
            nearer = np.abs(_used(near) - multiplier) < np.abs(_used(best) - multiplier)
            best = np.where(nearer & (multiplier != 0), near, best)
    return best


def _used(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """(O,) multipliers that ncnn computes from its scales."""
    return np.where(scales == 0, np.float32(0), np.float32(1) / scales)


def _tagged(weight: NDArray[np.generic]) -> bytes:
    """Weights behind their type."""
    data = np.ascontiguousarray(weight).tobytes()
    return _TAGS[weight.dtype].to_bytes(4, "little") + data + bytes(-len(data) % 4)


def _line(kind: str, name: str, inputs: Sequence[str], outputs: Sequence[str], values: Values) -> str:
    words = [kind, name, str(len(inputs)), str(len(outputs)), *inputs, *outputs]
    for key, value in values.items():
        if isinstance(value, int | float):
            words.append(f"{key}={_number(value)}")
        else:
            words.append(f"{_ARRAY - key}={','.join([str(len(value)), *map(_number, value)])}")
    return " ".join(words)


def _number(value: float) -> str:
    """As ncnn reads it: floats have a point, and at most 15 characters."""
    return str(value) if isinstance(value, int) else f"{np.float32(value):.8e}"
