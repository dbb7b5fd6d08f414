"""Arrays in the order that the kernels read them: convolutions in Winograd's form, the first
convolution, and what keeps them alive."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import FirstConv, FoldedConv
from quantsr.deploy.native import structures
from quantsr.deploy.native.match import Unsupported
from quantsr.deploy.packed.model import PackedLayer
from quantsr.deploy.passes import collapse
from quantsr.deploy.passes.collapse import Stage
from quantsr.deploy.passes.rounding import rounded_with_sums

CHANNELS = 16
"""The kernels take multiples of this many channels and outputs."""
MAX_OUTPUTS = 192
WIDE = 4
"""Steps of a 16-bit input in one of the kernels' 14-bit ones."""

_TILE_INPUTS = 64  # bytes in a row of one of AMX's tiles
_CACHE_LINE = 64

G2 = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.int64)
"""Twice the matrix G of F(2, 3): the transformed weights are integers."""

G4 = np.array([[4, 0, 0], [1, 1, 1], [1, -1, 1], [2, 0, -2], [0, -2, 0], [1, 1, -1], [0, 0, 4]], np.int64)
"""Four times G of an F(4, 3) of 7 products: Toom and Cook's at the points 0, 1, -1 and infinity,
and modulo x^2 + 1, which takes three products (Karatsuba) where two points would make the
transformed inputs too large for bytes (Barabasz and Gregg, 2019)."""


Values = NDArray[Any]
"""Integers or floats."""


class Program(Protocol):
    """What `quantsr_run` needs for one network at one depth."""

    network: structures.Network
    """Points into arrays that this object keeps."""
    multiple: int
    """Pictures come padded to a multiple of this height and width."""

    def for_size(self, height: int, width: int) -> structures.Network:
        """The network for pictures of that size."""
        ...

    def code_maps(self, height: int, width: int) -> Mapping[str, CopiedCodes]:
        """The codes that `quantsr_run` copies, by the name of the layer that reads them, in the
        order of `PictureBuffers.codes`."""
        ...


class CopiedCodes(Protocol):
    """Where the codes that one layer reads lie in bytes that were copied."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the bytes."""
        ...

    def codes(self, data: NDArray[np.uint8]) -> NDArray[np.int16]:
        """The codes of copied bytes."""
        ...


@dataclass(frozen=True)
class CodeMap:
    """Where the codes that one layer reads lie in bytes that were copied."""

    shape: tuple[int, ...]
    """Of the bytes."""
    order: tuple[int, ...]
    """Of its axes in the result."""
    result: tuple[int, ...]
    """Shape of the codes: (C, height, width), or (tokens, C) window by window."""
    limits: tuple[int, int]
    """Of the codes."""
    offset: int
    """A byte is `(code - offset) % 256`."""

    def codes(self, data: NDArray[np.uint8]) -> NDArray[np.int16]:
        """The codes of copied bytes."""
        low = self.limits[0]
        codes = (data.astype(np.int16) + (self.offset - low)) % 256 + low
        return codes.reshape(self.shape).transpose(self.order).reshape(self.result)


class Arrays:
    """What a network's structures point into; they live as long as this object."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def keep(self, value: Any) -> Any:
        """`value`, which now lives as long as this object."""
        self._kept.append(value)
        return value

    def pointer(self, values: Any, dtype: Any = np.float32) -> Any:
        """Address of the values, in that type."""
        array = self.keep(np.ascontiguousarray(values, dtype))
        return array.ctypes.data_as(ctypes.POINTER(np.ctypeslib.as_ctypes_type(array.dtype)))

    def weight(self, parts: list[Values], dtype: type[np.generic]) -> int:
        """Address of transformed weights, `parts` being (I, O): [I / g][O][g] each, with g inputs
        in 4 bytes."""
        group = 4 // np.dtype(dtype).itemsize
        laid_out = [part.reshape(-1, group, part.shape[1]).transpose(0, 2, 1).ravel() for part in parts]
        return int(self.keep(np.ascontiguousarray(np.concatenate(laid_out), dtype)).ctypes.data)

    def head(self, net: FirstConv) -> dict[str, Any]:
        """The first convolution, its outputs padded, as fields of the network. Raises Unsupported
        where it is quantized."""
        head = net.head
        if head.codes_in is not None:
            raise Unsupported("conv_first is quantized")
        weight, bias = kernel_of(head)
        more = (0, padded(len(bias)) - len(bias))
        return {
            "channels": padded(len(bias)),
            "head": self.pointer(np.pad(weight.transpose(2, 3, 1, 0), [(0, 0)] * 3 + [more]), np.float64),
            "head_bias": self.pointer(np.pad(bias, more)),
            "mean": self.pointer(net.mean),
            "range": float(net.img_range),
        }

    def float_conv(self, weight: Values, bias: Values, blocks: int) -> structures.Conv:
        """A 3x3 (`blocks` = 1) or 5x5 convolution (2) of float32."""
        parts = nested(weight.astype(np.float64), blocks, G2 / 2)
        return self.padded_conv(parts, np.ones(len(bias)), bias, structures.FLOATS, blocks)

    def wide_conv(self, weight: Values, bias: Values, step: Values, blocks: int) -> structures.Conv:
        """The same of 16-bit multiples of `step` (C,). Weights take, for each output, the finest
        step with which no sum exceeds 32 bits.

        That is sums of the plain convolution: those at single positions may, and wrap around
        without harm. Weights are rounded with their sums over a kernel, so that flat regions, where
        errors would add up, change least.
        """
        integers, multiplier = self._wide_integers(weight, step, blocks)
        return self.padded_conv(nested(integers, blocks, G2), multiplier / 4, bias, structures.WORDS, blocks)

    def _wide_integers(self, weight: Values, step: Values, blocks: int) -> tuple[Values, Values]:
        """Weights (O, I, k, k) of `wide_conv`, and the value (O,) of one unit of their sums."""
        weight = weight * step.reshape(1, -1, 1, 1)
        multiplier = finest_steps(weight, blocks)
        return rounded_with_sums(weight / multiplier.reshape(-1, 1, 1, 1)).astype(np.int64), multiplier

    def split_conv(self, weight: Values, bias: Values, step: Values, blocks: int) -> structures.Conv:
        """The convolution of `wide_conv` for AMX: the same integers, each in three signed bytes,
        and so the same sums.

        Raises Unsupported where a weight has more than 14 bits.
        """
        integers, multiplier = self._wide_integers(weight, step, blocks)
        if np.abs(integers).max(initial=0) > structures.LARGEST_WORD:
            raise Unsupported("weights outside the blocks have more than 14 bits")
        more = (0, padded(len(bias)) - len(bias))
        high = (integers + 64) >> 7
        low = integers - (high << 7)
        return structures.Conv(
            weight=self.tiles([high, low, high + low]),
            scale=self.pointer(np.pad(multiplier, more)),
            bias=self.pointer(np.pad(bias, more)),
            kind=structures.SPLIT,
            blocks=blocks,
            outputs=padded(len(bias)),
            is_signed=1,
        )

    def tiles(self, planes: list[Values]) -> int:
        """Address of weights (O, I, k, k) of signed bytes in the order of AMX's tiles: for each
        plane, 16 outputs and row of the kernel [K / 4][16][4], K being (column, input) padded to a
        multiple of 64."""
        laid_out = []
        for plane in planes:
            outputs, inputs, size, _ = plane.shape
            rows = plane.transpose(0, 2, 3, 1).reshape(outputs, size, size * inputs)  # (O, k, K)
            rows = np.pad(rows, [(0, padded(outputs) - outputs), (0, 0), (0, -rows.shape[2] % _TILE_INPUTS)])
            # (O / 16, 16, k, K / 4, 4)
            parts = rows.reshape(-1, CHANNELS, size, rows.shape[2] // 4, 4)
            laid_out.append(parts.transpose(0, 2, 3, 1, 4).ravel())
        return self.aligned(np.concatenate(laid_out).astype(np.int8, casting="unsafe"))

    def aligned(self, values: NDArray[np.int8]) -> int:
        """Address of a copy of the values from the start of a cache line on: rows of tiles and
        vectors that are parts of one are loaded fastest."""
        memory = self.keep(np.empty(len(values) + _CACHE_LINE, np.uint8))
        start = -memory.ctypes.data % _CACHE_LINE
        memory[start : start + len(values)] = values.view(np.uint8)
        return int(memory.ctypes.data) + start

    def ring(
        self,
        tail: Sequence[Stage],
        height: int,
        width: int,
        inputs: NDArray[np.int64] | None = None,
        channels: int = 0,
    ) -> structures.Ring:
        """The nine kernels of a tail at the border of pictures of that height and width, 3 standing
        for all larger ones. Inputs lie at `inputs` of `channels`; default: one behind the other."""
        kernels = collapse.collapse(tail, collapse.positions(height), collapse.positions(width))
        ring = structures.Ring()
        for i, kernel in enumerate(kernels.values()):
            more = (0, padded(len(kernel.bias)) - len(kernel.bias))
            weight = np.pad(kernel.weight.transpose(2, 3, 1, 0), [(0, 0)] * 3 + [more])  # (kh, kw, C, P)
            if inputs is not None:
                spread = np.zeros((*weight.shape[:2], channels, weight.shape[3]), weight.dtype)
                spread[:, :, inputs] = weight
                weight = spread
            ring.weight[i] = self.pointer(weight)
            ring.bias[i] = self.pointer(np.pad(kernel.bias, more))
        return ring

    def code_words(self, conv: FoldedConv) -> structures.Conv:
        """A 3x3 convolution of codes of up to 8 bits, held in 16: exact.

        Raises Unsupported where sums could exceed 32 bits, which takes 1,800 channels or more.
        """
        parts = nested(conv.weight.astype(np.int64), 1, G2)
        assert conv.codes_in is not None
        largest = 4 * max(map(abs, conv.codes_in))  # of a transformed input, four codes
        if largest * max(int(np.abs(part).sum(0).max()) for part in parts) > np.iinfo(np.int32).max:
            raise Unsupported(f"{conv.name} has too many channels for sums of 32 bits")
        return self.padded_conv(parts, conv.multiplier.astype(np.float64) / 4, conv.bias, structures.WORDS, 1)

    def padded_conv(
        self, parts: list[Values], multiplier: Values, bias: Values, kind: int, blocks: int
    ) -> structures.Conv:
        """A convolution of transformed `parts`, (I, O) each, its inputs and outputs padded."""
        outputs = padded(len(bias))
        more = (0, outputs - len(bias))
        flat = [np.pad(part, [(0, padded(len(part)) - len(part)), more]) for part in parts]
        return structures.Conv(
            weight=self.weight(flat, np.int16 if kind == structures.WORDS else np.float32),
            scale=self.pointer(np.pad(multiplier, more)),
            bias=self.pointer(np.pad(bias, more)),
            kind=kind,
            blocks=blocks,
            outputs=outputs,
        )


def finest_steps(weight: Values, blocks: int) -> NDArray[np.float64]:
    """(O,) the least step of each output's weights (O, I, k, k) with which no sum of 14-bit inputs
    exceeds 32 bits, nor a transformed weight 16."""
    room = (2**31 - 1) / (4 * structures.LARGEST_WORD) - weight[0].size
    peaks = np.max([np.abs(part).max(0) for part in nested(weight, blocks, G2)], 0)
    sums = np.abs(weight).sum((1, 2, 3))
    least = np.finfo(np.float32).tiny
    steps: NDArray[np.float64] = np.maximum(
        np.maximum(sums / room, peaks / (np.iinfo(np.int16).max - 18)), least
    )
    return steps


def rounding_error(weight: Values, step: Values, blocks: int) -> float:
    """Root mean square of what rounding the weights adds to the outputs of `Arrays.wide_conv`, for
    inputs as large as 14 bits hold."""
    steps = finest_steps(weight * step.reshape(1, -1, 1, 1), blocks)
    return float(np.sqrt((steps**2).mean() * weight[0].size / 12) * structures.LARGEST_WORD)


def transformed(weight: Values, matrix: Values = G2) -> Values:
    """(O, I, 3, 3) -> (positions, I, O): G g G^T for `matrix` G, position by position; by default 4
    times that of F(2x2, 3x3), of integers."""
    u = np.einsum(
        "ya,oiab,xb->yxio", matrix, weight.astype(np.result_type(weight, matrix)), matrix, optimize=True
    )
    return u.reshape(-1, *u.shape[2:])  # (positions, I, O)


def nested(weight: Values, blocks: int, matrix: Values) -> list[Values]:
    """(O, I, k, k) -> for each position its parts (I, O) in turn: a 5x5 kernel is 3x3 ones of its
    taps 0..2 and (0,) 3, 4 along either axis."""
    taps = [weight]
    if blocks == 2:
        cuts = [(0, 3), (3, 5)]
        taps = [
            np.pad(weight[:, :, a:b, c:d], [(0, 0), (0, 0), (3 - (b - a), 0), (3 - (d - c), 0)])
            for a, b in cuts
            for c, d in cuts
        ]
    kernels = [transformed(part, matrix) for part in taps]
    return [
        kernels[a * blocks + b][p]
        for p in range(16)
        for a in range(blocks if p // 4 else 1)
        for b in range(blocks if p % 4 else 1)
    ]


def wide_step(layer: PackedLayer) -> NDArray[np.float64] | None:
    """(C,) step of the kernels' 14-bit inputs of a layer that has 16-bit ones; None of any
    other."""
    if layer.bits_a != 16 or layer.act_step is None or layer.tau().any():
        return None
    equal = np.ones(layer.in_channels) if layer.act_equal is None else layer.act_equal.astype(np.float64)
    return WIDE * layer.act_step.astype(np.float64) * equal


def kernel_of(conv: FoldedConv) -> tuple[Values, Values]:
    """Weight (O, I, 3, 3) with the multiplier in it, and bias, of a float conv."""
    return conv.weight.astype(np.float64) * conv.multiplier.astype(np.float64).reshape(-1, 1, 1, 1), conv.bias


def before_shuffle(weight: Values, bias: Values, factor: int) -> tuple[Values, Values]:
    """Outputs of a convolution before a pixel shuffle to three colours, in the order (row phase,
    column phase, colour) that the kernels write."""
    order = (
        np.arange(len(bias)).reshape(3, factor, factor).transpose(1, 2, 0).ravel()
    )  # (3, r, r) -> (r, r, 3) -> (O,)
    return weight[order], bias[order]


def padded(outputs: int) -> int:
    """So many, and as many more as make a multiple of `CHANNELS`."""
    return -(-outputs // CHANNELS) * CHANNELS
