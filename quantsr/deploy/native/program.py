"""A folded QuantSR-C laid out for the kernels: transformed weights, and every constant in the order they read it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy import collapse
from quantsr.deploy.fold import FoldedBlock, FoldedConv, fold
from quantsr.deploy.model import PackedModel, QuantizedLayer, tail_stages
from quantsr.deploy.native import library
from quantsr.deploy.reciprocal import reciprocal

CHANNELS = 16
"""The kernels take multiples of this many channels and outputs."""
MAX_OUTPUTS = 192

_G2 = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.int64)
"""Twice the matrix G of F(2, 3): the transformed weights are integers."""
_WIDE = 4  # steps of a 16-bit input in one of the kernels' 14-bit ones

Values = NDArray[Any]
"""Integers or floats."""


class Unsupported(ValueError):
    """A network that the kernels cannot run; the message says why."""


class Program:
    """What `quantsr_run` needs for one network at one depth. `network` points into arrays that this object keeps."""

    def __init__(self, model: PackedModel, depth: int, isa: str) -> None:
        """`isa` is one of `library.ISAS`. Raises Unsupported."""
        kind = model.header.arch.get("type")
        if kind not in ("QuantSR_C", "QEDSR_Ours"):
            raise Unsupported(f"a {kind}")
        self._kept: list[Any] = []
        self._rings: dict[tuple[int, int], library.Ring] = {}
        self._isa = isa
        self._net = net = fold(model.with_wide_inputs_in_float(), depth)
        head, outer = net.head, (net.conv_after_body, *net.tail)
        if len(head.weight) % CHANNELS:
            raise Unsupported(f"its {len(head.weight)} channels are not a multiple of {CHANNELS}")
        if head.codes_in is not None:
            raise Unsupported("conv_first is quantized")
        if any(conv.codes_in is not None for conv in outer):
            raise Unsupported("inputs of the layers outside the blocks have 8 bits")
        body = (library.Block * len(net.blocks))(*(self._block(block) for block in net.blocks))
        self._kept.append(body)
        weight = head.weight.astype(np.float64) * head.scale.reshape(-1, 1, 1, 1)
        self.network = library.Network(
            channels=len(head.weight),
            blocks=len(net.blocks),
            gaps=len(net.gap),
            factor=net.factor,
            head=self._pointer(weight.transpose(2, 3, 1, 0), np.float64),
            head_bias=self._pointer(head.bias),
            mean=self._pointer(net.mean),
            range=float(net.img_range),
            gap=self._pointer(np.array(net.gap, np.float32)),
            body=body,
            **self._outer(model),
        )

    def for_size(self, height: int, width: int) -> library.Network:
        """The network for pictures of that size: a tail of several layers has other kernels at the border."""
        if self.network.tail.blocks == 2:
            size = (min(height, collapse.MIN_SIZE), min(width, collapse.MIN_SIZE))
            if size not in self._rings:
                self._rings[size] = self._ring(*size)
            self.network.ring = self._rings[size]
        return self.network

    def _pointer(self, values: Any, dtype: Any = np.float32) -> Any:
        array = np.ascontiguousarray(values, dtype)
        self._kept.append(array)
        return array.ctypes.data_as(ctypes.POINTER(np.ctypeslib.as_ctypes_type(array.dtype)))

    def _weight(self, parts: list[Values], dtype: type[np.generic]) -> int:
        """Address of transformed weights, `parts` being (I, O): [I / g][O][g] each, with g inputs in 4 bytes."""
        group = 4 // np.dtype(dtype).itemsize
        laid_out = [part.reshape(-1, group, part.shape[1]).transpose(0, 2, 1).ravel() for part in parts]
        array = np.ascontiguousarray(np.concatenate(laid_out), dtype)
        self._kept.append(array)
        return int(array.ctypes.data)

    # Blocks

    def _block(self, block: FoldedBlock) -> library.Block:
        conv1, conv2 = block.conv1, block.conv2
        if not conv1.integer or not conv2.integer or conv1.codes_out is None:
            raise Unsupported("its blocks are not integer")
        assert conv1.codes_in is not None
        assert conv1.step is not None
        factors = [float(factor[0]) for factor in reciprocal(conv1.step, conv1.codes_in)]
        low, high = conv1.codes_in
        least = np.full(len(conv1.bias), conv1.codes_out[0]) if conv1.low is None else conv1.low
        return library.Block(
            input=library.Quantizer(
                tau=self._pointer(conv1.tau),
                factor=(ctypes.c_float * 2)(*factors, *[1.0] * (2 - len(factors))),
                low=low,
                high=high,
            ),
            conv1=self._code_conv(conv1),
            conv2=self._code_conv(conv2),
            low=self._pointer(least),
            high=conv1.codes_out[1],
            shortcut=float(block.shortcut),
            gaps=len(block.gap),
            gap=self._pointer(np.array(block.gap, np.float32)),
        )

    def _code_conv(self, conv: FoldedConv) -> library.Conv:
        """Transformed codes are sums of four, or differences of two and two: with an offset that makes them positive they are 0..4 * (high - low)."""
        assert conv.codes_in is not None
        low, high = conv.codes_in
        weight = transformed(conv.weight)
        largest, peak = 4 * (high - low), int(np.abs(weight).max(initial=0))
        if largest > np.iinfo(np.uint8).max or peak > np.iinfo(np.int8).max:
            raise Unsupported(f"{conv.name} has too many bits for its transform to be bytes")
        if self._isa == "avx2" and 2 * largest * peak > np.iinfo(np.int16).max:
            raise Unsupported(f"sums of two products of {conv.name} do not fit in this processor's 16 bits")
        sums, mixed = -4 * low, 2 * (high - low)
        offset = np.array([sums if p == 5 else mixed for p in range(16)]).reshape(-1, 1)
        return library.Conv(
            weight=self._weight(list(weight), np.int8),
            start=self._pointer(-offset * weight.sum(1), np.int32),
            scale=self._pointer(conv.scale * np.float32(0.25)),
            bias=self._pointer(conv.bias),
            kind=library.BYTES,
            blocks=1,
            outputs=weight.shape[2],
            offset_sums=sums,
            offset_mixed=mixed,
        )

    # conv_after_body and tail

    def _outer(self, model: PackedModel) -> dict[str, Any]:
        """The layers behind the blocks, as fields of the network: on 16-bit integers where their inputs have them, else in float32."""
        net, (first, _) = self._net, tail_stages(model.header.arch, model.header.scale)[0]
        if len(net.tail) == 1:
            weight, bias = _kernel_of(net.tail[0])
            order = np.arange(len(bias)).reshape(3, net.factor, net.factor).transpose(1, 2, 0).ravel()
            weight, bias, blocks = weight[order], bias[order], 1
        else:
            position = {"inner": collapse.POSITIONS["inner"]}
            (inner,) = collapse.collapse(net.tail, position, position).values()
            weight, bias, blocks = inner.weight, inner.bias, 2
        if _padded(len(bias)) > MAX_OUTPUTS:
            raise Unsupported(f"upscaling by {net.factor} takes too many outputs a pixel")
        body_step, tail_step = (_wide_step(model.layers[name]) for name in ("conv_after_body", first))
        body_weight, body_bias = _kernel_of(net.conv_after_body)
        if body_step is None or tail_step is None:
            return {
                "after_body": self._float_conv(body_weight, body_bias, 1),
                "tail": self._float_conv(weight, bias, blocks),
            }
        return {
            "after_body": self._wide_conv(body_weight, body_bias, body_step, 1),
            "tail": self._wide_conv(weight, bias, tail_step, blocks),
            "after_body_factor": self._pointer(1 / body_step),
            "tail_factor": self._pointer(1 / tail_step),
        }

    def _float_conv(self, weight: Values, bias: Values, blocks: int) -> library.Conv:
        """A 3x3 (`blocks` = 1) or 5x5 convolution (2) of float32."""
        parts = nested(weight.astype(np.float64), blocks, _G2 / 2)
        return self._padded_conv(parts, np.ones(len(bias)), bias, library.FLOATS, blocks)

    def _wide_conv(self, weight: Values, bias: Values, step: Values, blocks: int) -> library.Conv:
        """The same of 16-bit multiples of `step` (C,). Weights take, for each output, the finest step with which no sum exceeds 32 bits.

        That is sums of the plain convolution: those at single positions may, and wrap around without harm.
        """
        weight = weight * step.reshape(1, -1, 1, 1)
        room = (2**31 - 1) / (4 * library.LARGEST_WORD) - 0.5 * weight[0].size
        peaks = np.max([np.abs(part).max(0) for part in nested(weight, blocks, _G2)], 0)
        sums = np.abs(weight).sum((1, 2, 3))
        scale = np.maximum(
            np.maximum(sums / room, peaks / (np.iinfo(np.int16).max - 18)), np.finfo(np.float32).tiny
        )
        integers = np.rint(weight / scale.reshape(-1, 1, 1, 1)).astype(np.int64)
        return self._padded_conv(nested(integers, blocks, _G2), scale / 4, bias, library.WORDS, blocks)

    def _padded_conv(
        self, parts: list[Values], scale: Values, bias: Values, kind: int, blocks: int
    ) -> library.Conv:
        outputs = _padded(len(bias))
        more = (0, outputs - len(bias))
        flat = [np.pad(part, [(0, 0), more]) for part in parts]
        return library.Conv(
            weight=self._weight(flat, np.int16 if kind == library.WORDS else np.float32),
            scale=self._pointer(np.pad(scale, more)),
            bias=self._pointer(np.pad(bias, more)),
            kind=kind,
            blocks=blocks,
            outputs=outputs,
        )

    def _ring(self, height: int, width: int) -> library.Ring:
        """The nine kernels at the border of pictures of that height and width, 3 standing for all larger ones."""
        kernels = collapse.collapse(self._net.tail, collapse.positions(height), collapse.positions(width))
        ring = library.Ring()
        for i, kernel in enumerate(kernels.values()):
            more = (0, _padded(len(kernel.bias)) - len(kernel.bias))
            ring.weight[i] = self._pointer(np.pad(kernel.weight.transpose(2, 3, 1, 0), [(0, 0)] * 3 + [more]))
            ring.bias[i] = self._pointer(np.pad(kernel.bias, more))
        return ring


def transformed(weight: Values, matrix: Values = _G2) -> Values:
    """(O, I, 3, 3) -> (16, I, O): G g G^T of F(2x2, 3x3) for `matrix` G, position by position; by default 4 times that, of integers."""
    u = np.einsum(
        "ya,oiab,xb->yxio", matrix, weight.astype(np.result_type(weight, matrix)), matrix, optimize=True
    )
    return u.reshape(16, *u.shape[2:])


def nested(weight: Values, blocks: int, matrix: Values) -> list[Values]:
    """(O, I, k, k) -> for each position its parts (I, O) in turn: a 5x5 kernel is 3x3 ones of its taps 0..2 and (0,) 3, 4 along either axis."""
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


def _wide_step(layer: QuantizedLayer) -> NDArray[np.float64] | None:
    """(C,) step of the kernels' 14-bit inputs of a layer that has 16-bit ones; None of any other."""
    if layer.bits_a != 16 or layer.act_step is None or layer.tau().any():
        return None
    equal = np.ones(layer.in_channels) if layer.act_equal is None else layer.act_equal.astype(np.float64)
    return _WIDE * layer.act_step.astype(np.float64) * equal


def _kernel_of(conv: FoldedConv) -> tuple[Values, Values]:
    """Weight (O, I, 3, 3) with the scale in it, and bias, of a float conv."""
    return conv.weight.astype(np.float64) * conv.scale.astype(np.float64).reshape(-1, 1, 1, 1), conv.bias


def _padded(outputs: int) -> int:
    return -(-outputs // CHANNELS) * CHANNELS
