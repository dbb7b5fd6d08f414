"""A network of Swin layers laid out for the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from quantsr.deploy import windows
from quantsr.deploy.folded import NORM_EPS, Attention, FoldedLinear, FoldedProgram, Norm, Requantize
from quantsr.deploy.native import structures, sums16
from quantsr.deploy.native.arrays import (
    MAX_OUTPUTS,
    Arrays,
    CodeMap,
    CopiedCodes,
    before_shuffle,
    kernel_of,
    padded,
    wide_step,
)
from quantsr.deploy.native.match import (
    MOST,
    ConvStage,
    Rstb,
    SwinLayer,
    SwinNet,
    Unsupported,
    swin_net,
)
from quantsr.deploy.native.sweep_program import SweepProgram
from quantsr.deploy.packed.model import PackedModel

_INPUTS_OF_LAYER = 4
"""Of a Swin layer whose codes can be copied: those of qkv, proj, fc1 and fc2."""
_ROUND_CHANNELS = 4
"""Linear layers have multiples of this many inputs and outputs."""


class SwinProgram(Arrays):
    """See `arrays.Program`."""

    def __init__(self, program: FoldedProgram, model: PackedModel, isa: str) -> None:
        """`isa` is one of `library.ISAS`. Raises Unsupported."""
        super().__init__()
        self._isa = isa
        self.multiple = window = program.multiple
        self._net = net = swin_net(program)
        dim = len(net.norm_first.weight)
        if window % 4:
            raise Unsupported(f"windows of {window}x{window} are not of a multiple of 4")
        if dim % _ROUND_CHANNELS:
            raise Unsupported(f"its {dim} channels are not a multiple of {_ROUND_CHANNELS}")
        stages = [*net.stages, *([] if net.tail is None else [net.tail])]
        self._steps = {stage.conv.name: wide_step(model.layers[stage.conv.name]) for stage in stages}
        wide = (stage.conv.integer or self._steps[stage.conv.name] is not None for stage in stages)
        self._words = bool(net.stages) and all(wide)
        layers = [layer for group in net.groups for layer in group.layers]
        self._check_shapes(dim, layers)
        copies = _INPUTS_OF_LAYER * len(layers)
        self._rest = None if net.tail else SweepProgram(net.rest, model, isa, copies_before=copies)
        closings = [self._closing(stage) for stage in net.stages[:-1]] or self._closings_in_sweeps(dim)
        groups = [self._rstb(group, closing) for group, closing in zip(net.groups, closings, strict=True)]
        swin = structures.Swin(
            dim=dim,
            heads=layers[0].attention.heads if layers else 1,
            hidden=len(layers[0].fc1.bias) if layers else _ROUND_CHANNELS,
            window=window,
            groups=len(groups),
            group=self.keep((structures.Rstb * len(groups))(*groups)),
            first=self._norm(net.norm_first),
            last=self._norm(net.norm),
            mask=self.pointer(_masks(window)),
        )
        self.network = structures.Network(
            blocks=0,
            gaps=0,
            factor=program.scale,
            **self._outer(net, dim, program.scale),
            swin=ctypes.pointer(self.keep(swin)),
            **self.head(net.first),
        )

    def _check_shapes(self, dim: int, layers: list[SwinLayer]) -> None:
        """Raises Unsupported unless the first and last convolution are 3x3, all layers have the
        shape of the first, and their windows are those that pictures are multiples of."""
        net = self._net
        if net.first.head.weight.shape[1:] != (3, 3, 3):
            raise Unsupported("its first convolution is not 3x3")
        if net.tail is not None and net.tail.conv.weight.shape[1:] != (dim, 3, 3):
            raise Unsupported("its last convolution is not 3x3")
        hidden = len(layers[0].fc1.bias) if layers else _ROUND_CHANNELS
        if max(dim, hidden, len(net.groups)) > MOST:
            raise Unsupported(f"it has more than {MOST} channels or groups of layers")
        shapes = {(x.attention.heads, len(x.fc1.bias)) for x in layers}
        if len(shapes) > 1 or any(x.attention.shift not in (0, self.multiple // 2) for x in layers):
            raise Unsupported("its Swin layers differ in shape")
        for layer in layers:
            attention = layer.attention
            if attention.overlap:
                raise Unsupported(f"{attention.name} has windows that overlap")
            if attention.window != self.multiple:
                raise Unsupported(
                    f"{attention.name} has windows of {attention.window} on multiples of {self.multiple} pixels"
                )
            square = [(linear, (dim, dim)) for linear in (layer.q, layer.k, layer.v, layer.proj)]
            for linear, shape in (*square, (layer.fc1, (hidden, dim)), (layer.fc2, (dim, hidden))):
                if linear.weight.shape != shape:
                    raise Unsupported(
                        f"{linear.name} has a weight of shape {linear.weight.shape}, not {shape}"
                    )

    def for_size(self, height: int, width: int) -> structures.Network:
        """The network for pictures of that size."""
        if self._rest is not None:
            self.network.ring = self._rest.for_size(height, width).ring
        return self.network

    def code_maps(self, height: int, width: int) -> Mapping[str, CopiedCodes]:
        """See `arrays.Program.code_maps`; of Swin layers (height * width, inputs) each, window by
        window, inside row by row."""
        maps: dict[str, CopiedCodes] = {}
        for layer in (layer for group in self._net.groups for layer in group.layers):
            for name, linear in (
                (layer.q.name.removesuffix(".q"), layer.q),
                (layer.proj.name, layer.proj),
                (layer.fc1.name, layer.fc1),
                (layer.fc2.name, layer.fc2),
            ):
                assert linear.codes_in is not None
                tokens, inputs = self.multiple**2, linear.weight.shape[1]
                shape = (height * width // tokens, inputs // 4, tokens, 4)
                result = (height * width, inputs)
                maps[name] = CodeMap(shape, (0, 2, 1, 3), result, linear.codes_in, linear.codes_in[0])
        return maps if self._rest is None else {**maps, **self._rest.code_maps(height, width)}

    def _rstb(self, block: Rstb, closing: Mapping[str, Any]) -> structures.Rstb:
        layers = [self._layer(layer) for layer in block.layers]
        return structures.Rstb(
            start_scale=float(block.start_multiplier),
            stream_scale=float(block.stream_multiplier),
            layers=len(layers),
            layer=self.keep((structures.SwinLayer * len(layers))(*layers)),
            **closing,
        )

    def _closing(self, stage: ConvStage) -> dict[str, Any]:
        """A convolution that closes a group, as fields of it."""
        codes = structures.Requantizer() if stage.quantize is None else self._codes(stage.quantize)
        return {"codes": codes, "closing": self._conv(stage), "factor": self._factor(stage)}

    def _closings_in_sweeps(self, dim: int) -> list[dict[str, Any]]:
        """Of each group the same where sweeps close it."""
        if self._rest is None:
            return []
        factor = self.pointer(np.ones(padded(dim)))
        return [
            {"sweeps": closing.sweeps, "result": closing.result, "factor": factor}
            for closing in self._rest.closings
        ]

    def _layer(self, layer: SwinLayer) -> structures.SwinLayer:
        if not isinstance(layer.attention.mix, Requantize):
            raise Unsupported("its linear layers are not integer")
        return structures.SwinLayer(
            norm1=self._norm(layer.norm1),
            norm2=self._norm(layer.norm2),
            **{name: self._linear(getattr(layer, name)) for name in ("q", "k", "v", "proj")},
            fc1=self._linear(layer.fc1),
            fc2=self._linear(layer.fc2),
            **self._attention(layer.attention),
            gelu=self._codes(layer.gelu),
            shift=layer.attention.shift,
            middle_scale=float(layer.middle_multiplier),
            input_scale=float(layer.input_multiplier),
        )

    def _attention(self, attention: Attention) -> dict[str, Any]:
        codes = attention.probabilities
        return {
            "bias": self.pointer(attention.bias.transpose(0, 2, 1)),
            "score_scale": float(attention.score_multiplier),
            "probabilities": structures.Requantizer() if codes is None else self._codes(codes),
            "mix": self._codes(attention.mix),
        }

    def _norm(self, norm: Norm) -> structures.Norm:
        if norm.eps != NORM_EPS:
            raise Unsupported(f"it has no kernel for a LayerNorm of eps {norm.eps:g}")
        low, high = norm.limits or (0, 0)
        return structures.Norm(self.pointer(norm.weight), self.pointer(norm.bias), low, high)

    def _codes(self, quantize: Any) -> structures.Requantizer:
        multiplier = np.broadcast_to(quantize.multiplier, quantize.shift.shape)
        return structures.Requantizer(
            self.pointer(multiplier), self.pointer(quantize.shift), *quantize.limits
        )

    def _linear(self, linear: FoldedLinear) -> structures.Linear:
        """Inputs are bytes from 0 on: their lowest code is taken off, and put back by what sums
        start from."""
        if not linear.integer:
            raise Unsupported(f"{linear.name} is not integer")
        assert linear.codes_in is not None
        weight = linear.weight.astype(np.int64)
        outputs, inputs = weight.shape
        if outputs % _ROUND_CHANNELS or inputs % _ROUND_CHANNELS:
            raise Unsupported(
                f"{linear.name} has {inputs} inputs and {outputs} outputs, not multiples of {_ROUND_CHANNELS}"
            )
        low, high = linear.codes_in
        together = 0
        if self._isa == "avx2":
            part = sums16.Part(weight.T, (0, high - low), 0)
            if not sums16.fit([part]):
                raise Unsupported(
                    f"sums of two products of {linear.name} do not fit in this processor's 16 bits"
                )
            together = sums16.steps_together(part)
        grouped = weight.reshape(outputs // 4, 4, inputs // 4, 4).transpose(
            0, 2, 1, 3
        )  # (O / 4, I / 4, 4, 4)
        limits = linear.codes_out or (0, 0)
        return structures.Linear(
            weight=self.pointer(grouped, np.int8),
            start=self.pointer(low * weight.sum(1), np.int32),
            scale=self.pointer(linear.multiplier),
            bias=self.pointer(linear.bias),
            inputs=inputs,
            outputs=outputs,
            rounds=linear.codes_out is not None,
            low=limits[0],
            high=limits[1],
            together=together,
        )

    def _outer(self, net: SwinNet, dim: int, scale: int) -> dict[str, Any]:
        """The layers behind the blocks, as fields of the network."""
        if not net.stages:
            assert self._rest is not None
            return {
                "after_body": structures.Conv(kind=structures.FLOATS),
                "after_body_factor": self.pointer(np.ones(padded(dim))),
                "program": self._rest.network.program,
            }
        after_body, tail = net.stages[-1], net.tail
        fields = {"after_body": self._conv(after_body), "after_body_factor": self._factor(after_body)}
        if tail is None:
            assert self._rest is not None
            return {**fields, "program": self._rest.network.program}
        if tail.conv.codes_in is not None:
            raise Unsupported("inputs of its last layers have few bits")
        if padded(len(tail.conv.bias)) > MAX_OUTPUTS:
            raise Unsupported(f"upscaling by {scale} takes too many outputs a pixel")
        return {**fields, "tail": self._conv(tail, scale), "tail_factor": self._factor(tail)}

    def _conv(self, stage: ConvStage, shuffle: int = 1) -> structures.Conv:
        """On 16-bit integers where all 3x3 convolutions have codes or inputs of 16 bits, else of
        float32."""
        conv = stage.conv
        if self._words and conv.integer:
            return self.code_words(conv)
        weight, bias = kernel_of(conv)
        if shuffle > 1:
            weight, bias = before_shuffle(weight, bias, shuffle)
        step = self._steps[conv.name]
        if not self._words:
            return self.float_conv(weight, bias, 1)
        assert step is not None
        return self.wide_conv(weight, bias, step, 1)

    def _factor(self, stage: ConvStage) -> Any:
        """From a value to its 16-bit integer; codes are theirs."""
        step = self._steps[stage.conv.name]
        factor = np.ones(stage.conv.weight.shape[1]) if step is None else 1 / step
        return self.pointer(np.pad(factor, (0, padded(len(factor)) - len(factor))))


def _masks(window: int) -> Any:
    """(3, N keys, N queries) for shifted windows in the last column, in the last row, in both."""
    grid, shift = (2 * window, 2 * window), window // 2
    last_row_first, both = 2, 3
    masks = windows.mask(grid, window, shift)[:, 0]
    return np.stack([masks[1], masks[last_row_first], masks[both]]).transpose(0, 2, 1)
