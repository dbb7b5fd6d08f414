"""A network of residual blocks laid out for the kernels: transformed weights, and every constant in
the order they read it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from quantsr.deploy.folded import FoldedConv, FoldedProgram
from quantsr.deploy.native import structures, sums16
from quantsr.deploy.native.arrays import (
    CHANNELS,
    G2,
    G4,
    MAX_OUTPUTS,
    Arrays,
    CodeMap,
    before_shuffle,
    kernel_of,
    padded,
    transformed,
    wide_step,
)
from quantsr.deploy.native.match import Block, Unsupported, conv_net
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes import collapse
from quantsr.deploy.passes.reciprocal import reciprocal

_MOST_BITS = 6  # of activations on AMX


class ConvProgram(Arrays):
    """See `arrays.Program`."""

    multiple = 1

    def __init__(self, program: FoldedProgram, model: PackedModel, isa: str) -> None:
        """`isa` is one of `library.ISAS`. Raises Unsupported."""
        super().__init__()
        self._rings: dict[tuple[int, int], structures.Ring] = {}
        self._isa = isa
        self._net = net = conv_net(program)
        head, outer = net.first.head, (net.after_body, *(stage.conv for stage in net.tail))
        if len(head.weight) % CHANNELS:
            raise Unsupported(f"its {len(head.weight)} channels are not a multiple of {CHANNELS}")
        if any(conv.codes_in is not None for conv in outer):
            raise Unsupported("inputs of the layers outside the blocks have 8 bits")
        self._check_shapes(len(head.weight))
        body = self.keep((structures.Block * len(net.blocks))(*(self._block(block) for block in net.blocks)))
        self.network = structures.Network(
            blocks=len(net.blocks),
            gaps=len(net.gap),
            factor=program.scale,
            gap=self.pointer(np.array(net.gap, np.float32)),
            body=body,
            **self.head(net.first),
            **self._outer(model, program.scale),
        )

    def _check_shapes(self, channels: int) -> None:
        """Raises Unsupported unless all convolutions are 3x3, those of the body of so many
        channels."""
        net = self._net
        square = (channels, channels, 3, 3)
        body = [net.after_body, *(conv for block in net.blocks for conv in (block.conv1, block.conv2))]
        for conv in body:
            if conv.weight.shape != square:
                raise Unsupported(f"{conv.name} has a weight of shape {conv.weight.shape}, not {square}")
        if net.first.head.weight.shape[1:] != (3, 3, 3) or len(net.tail[-1].conv.weight) % 3:
            raise Unsupported("its first or last convolution is not 3x3, from or to three colours")

    def for_size(self, height: int, width: int) -> structures.Network:
        """The network for pictures of that size: a tail of several layers has other kernels at the
        border."""
        if self.network.tail.blocks == 2:
            size = (min(height, collapse.MIN_SIZE), min(width, collapse.MIN_SIZE))
            if size not in self._rings:
                self._rings[size] = self._ring(*size)
            self.network.ring = self._rings[size]
        return self.network

    def code_maps(self, height: int, width: int) -> dict[str, CodeMap]:
        """See `arrays.Program.code_maps`; (C, height, width) each."""
        channels, maps = self.network.channels, {}
        for conv in (conv for block in self._net.blocks for conv in (block.conv1, block.conv2)):
            assert conv.codes_in is not None
            shape, result = (height, width, channels), (channels, height, width)
            maps[conv.name] = CodeMap(shape, (2, 0, 1), result, conv.codes_in, offset=0)
        return maps

    # Blocks

    def _block(self, block: Block) -> structures.Block:
        conv1, conv2 = block.conv1, block.conv2
        low, high = block.quantize.limits
        if block.quantize.step.size != 1:
            raise Unsupported(f"{conv1.name} has a step for each input channel")
        factors = [float(factor[0]) for factor in reciprocal(block.quantize.step, (low, high))]
        assert conv1.codes_out is not None
        least = np.full(len(conv1.bias), conv1.codes_out[0]) if conv1.low is None else conv1.low
        return structures.Block(
            input=structures.Quantizer(
                tau=self.pointer(block.quantize.tau),
                factor=(ctypes.c_float * 2)(*factors, *[1.0] * (2 - len(factors))),
                low=low,
                high=high,
            ),
            conv1=self._code_conv(conv1),
            conv2=self._code_conv(conv2),
            low=self.pointer(least),
            high=conv1.codes_out[1],
            shortcut=float(block.shortcut),
            gaps=len(block.gap),
            gap=self.pointer(np.array(block.gap, np.float32)),
        )

    def _code_conv(self, conv: FoldedConv) -> structures.Conv:
        """On AMX in its plain form; else with large tiles where their transforms fit, else with
        small ones. Raises Unsupported where those do not either."""
        if self._isa == "amx":
            return self._plain(conv)
        try:
            return self._tiled(conv, structures.LARGE_TILE)
        except Unsupported:
            return self._tiled(conv, structures.TILE)

    def _plain(self, conv: FoldedConv) -> structures.Conv:
        """For AMX, whose products of bytes take codes as they are. Raises Unsupported beyond 6
        bits, where the float operations between convolutions are no longer known to give the
        reference's codes."""
        assert conv.codes_in is not None
        if conv.codes_in[1] - conv.codes_in[0] > 2**_MOST_BITS - 1:
            raise Unsupported(f"{conv.name} has too many bits for its codes to be exact")
        return structures.Conv(
            weight=self.tiles([conv.weight.astype(np.int64)]),
            scale=self.pointer(conv.multiplier),
            bias=self.pointer(conv.bias),
            kind=structures.CODES,
            blocks=1,
            outputs=len(conv.bias),
            tile=structures.LARGE_TILE,
            is_signed=conv.codes_in[0] < 0,
        )

    def _tiled(self, conv: FoldedConv, tile: int) -> structures.Conv:
        """Transformed codes are sums of 4 (16 in large tiles), or differences of at most half as
        many and as many: with an offset that makes them positive they are 0..4 (16) * (high -
        low)."""
        assert conv.codes_in is not None
        low, high = conv.codes_in
        terms, matrix = (16, G4) if tile == structures.LARGE_TILE else (4, G2)
        weight = transformed(conv.weight, matrix)
        fits = (
            np.iinfo(np.int8).min <= weight.min(initial=0) and weight.max(initial=0) <= np.iinfo(np.int8).max
        )
        if terms * (high - low) > np.iinfo(np.uint8).max or not fits:
            raise Unsupported(f"{conv.name} has too many bits for its transform to be bytes")
        sums, mixed = sums16.tile_offsets(conv.codes_in, tile)
        if self._isa == "avx2":
            parts = sums16.tile_parts(conv.weight, conv.codes_in, tile)
            if not sums16.fit(parts):
                raise Unsupported(
                    f"sums of two products of {conv.name} do not fit in this processor's 16 bits"
                )
            fields = sums16.fields(self, parts)
        else:
            offset = np.full(len(weight), mixed)
            offset[len(matrix) + 1] = sums
            start = self.pointer(-offset.reshape(-1, 1) * weight.sum(1), np.int32)
            fields = {"weight": self.weight(list(weight), np.int8), "start": start}
        return structures.Conv(
            scale=self.pointer(conv.multiplier * np.float32(1 / terms)),
            bias=self.pointer(conv.bias),
            kind=structures.BYTES,
            blocks=1,
            outputs=weight.shape[2],
            tile=tile,
            offset_sums=sums,
            offset_mixed=mixed,
            **fields,
        )

    # conv_after_body and tail

    def _outer(self, model: PackedModel, scale: int) -> dict[str, Any]:
        """The layers behind the blocks, as fields of the network: on 16-bit integers where their
        inputs have them, else in float32."""
        net, first = self._net, self._net.tail[0].conv.name
        if len(net.tail) == 1:
            weight, bias = before_shuffle(*kernel_of(net.tail[0].conv), scale)
            blocks = 1
        else:
            position = {"inner": collapse.POSITIONS["inner"]}
            (inner,) = collapse.collapse(net.tail, position, position).values()
            weight, bias, blocks = inner.weight, inner.bias, 2
        if padded(len(bias)) > MAX_OUTPUTS:
            raise Unsupported(f"upscaling by {scale} takes too many outputs a pixel")
        body_step, tail_step = (wide_step(model.layers[name]) for name in (net.after_body.name, first))
        body_weight, body_bias = kernel_of(net.after_body)
        if body_step is None or tail_step is None:
            return {
                "after_body": self.float_conv(body_weight, body_bias, 1),
                "tail": self.float_conv(weight, bias, blocks),
            }
        body, tail = (body_weight, body_bias, body_step, 1), (weight, bias, tail_step, blocks)
        try:
            make = self.split_conv if self._isa == "amx" else self.wide_conv
            after_body_and_tail = make(*body), make(*tail)
        except Unsupported:
            after_body_and_tail = self.wide_conv(*body), self.wide_conv(*tail)
        return {
            "after_body": after_body_and_tail[0],
            "tail": after_body_and_tail[1],
            "after_body_factor": self.pointer(1 / body_step),
            "tail_factor": self.pointer(1 / tail_step),
        }

    def _ring(self, height: int, width: int) -> structures.Ring:
        return self.ring(self._net.tail, height, width)
