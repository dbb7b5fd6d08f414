"""The convolutions of a folded program as sweeps, and the picture that the first of them reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.folded import (
    Activation,
    Binary,
    FirstConv,
    FoldedConv,
    FoldedProgram,
    Normalize,
    Offset,
    Pixels,
    PixelShuffle,
    Quantize,
    Requantize,
    Scale,
    Step,
)
from quantsr.deploy.native import structures
from quantsr.deploy.native.arrays import CHANNELS, Arrays, padded
from quantsr.deploy.native.match_steps import Unsupported, described
from quantsr.deploy.native.sweep_builder import Builder, Codes, Scaled, codes_of
from quantsr.deploy.native.sweep_convs import (
    Form,
    float_conv,
    form_of,
    integer_conv,
    kernel,
    spread_weight,
    wide_conv,
    wide_form,
)
from quantsr.deploy.native.sweep_end import CollapsedTail, with_collapsed_tail, with_shuffle_last
from quantsr.deploy.native.sweeps import Channels, Map, Value, shown_outputs, shuffled_outputs
from quantsr.deploy.packed.model import PackedLayer

_WORDS = Form(structures.IN_TILES, structures.WORDS)
_MOST_CODES = 255
"""Of integer convolutions, beside 0; 16-bit codes in front of others go through float64."""
_LEAST_SHUFFLED = 8
"""Channels behind a pixel shuffle from which the convolution before it pads them to 16."""


class Layers(Builder):
    """What a program's steps have become, and its convolutions. Each method `_KIND` adds the sweeps
    of one step."""

    def __init__(
        self, program: FoldedProgram, layers: Mapping[str, PackedLayer], isa: str, arrays: Arrays
    ) -> None:
        """`layers` are those of the packed network, `arrays` keeps the weights."""
        super().__init__()
        self._layers, self._isa, self._arrays = layers, isa, arrays
        self._program = with_shuffle_last(with_collapsed_tail(program))
        self.tail: CollapsedTail | None = None
        """That its network ends in, and (below) where its inputs lie."""
        self.tail_inputs: tuple[Channels, int] | None = None
        self._readers = self._program.readers()
        self._coded = self._in_front_of_codes()
        self._values: dict[int, Value | Codes | Scaled] = {}
        self._pictures: dict[bytes, Value] = {}
        self.codes_read: dict[str, tuple[Map, Channels, FoldedConv]] = {}
        """By the names of the layers that read them."""

    def _in_front_of_codes(self) -> set[int]:
        """Values that codes depend on."""
        found: set[int] = set()
        for step in reversed(self._program.steps):
            op = step.op
            gives = isinstance(op, Quantize | Requantize) or (
                isinstance(op, FoldedConv) and op.codes_out is not None
            )
            if gives or step.output in found:
                found.update(step.inputs)
        return found

    def _value(self, step: Step, index: int = 0) -> Value:
        """An input of a step, as floats."""
        found = self._values[step.inputs[index]]
        if isinstance(found, Scaled):
            return self.unary(structures.DO_SCALE, found.value, found.factor)
        if isinstance(found, Codes):
            raise Unsupported(f"{described(step.op)} reads codes")
        return found

    def _distinct(self, step: Step) -> Value:
        """An input of a step, no channel of which is the same as another."""
        value = self._value(step)
        return self.gathered(value) if value.repeats else value

    # The picture and convolutions

    def _picture(self, mean: Any, factor: Any) -> Value:
        key = b"" if mean is None else np.array([*mean, factor], np.float32).tobytes()
        if key not in self._pictures:
            fields = {} if mean is None else {"mean": mean, "range": float(factor)}
            sweep = self.sweep(structures.FROM_PICTURE, 1, CHANNELS, fields=fields)
            self._pictures[key] = Value.of(sweep.root(), np.arange(3))
        return self._pictures[key]

    def _normalize(self, op: Normalize, step: Step) -> Value:
        return self._picture(op.mean, op.img_range)

    def _first(self, op: FirstConv, step: Step) -> Value | Codes:
        """In float64, which adds codes exactly as well."""
        conv = op.head
        value = self._picture(None if op.pixels_are_codes else op.mean, op.img_range)
        if op.quantize is not None:
            source, places = self.codes_in_map(codes_of(op.quantize, value), None)
            sweep = self.sweep(structures.FROM_INDEX, 1, source.channels, input=source, fields={"enlarge": 1})
            value = Value.of(sweep.root(), places)
        if conv.zero_point is not None:
            value = self.unary(structures.DO_OFFSET, value, -conv.zero_point)
        return self._conv_of_floats(conv, step, *self.in_one_map(value), 1, exact=True)

    def _conv(self, op: FoldedConv, step: Step) -> Value | Codes:
        read = self._values[step.inputs[0]]
        if isinstance(read, Codes) and op.integer and read.limits[1] - read.limits[0] <= _MOST_CODES:
            form = form_of(op, self._isa)
            source, places = self.codes_in_map(read, form)
            self.codes_read[op.name] = source, places, op
            factor, (outputs, total, shuffle) = read.target.factor, self._outputs(op, step)
            weight = spread_weight(op, places, source.channels, outputs, total)
            fields = {"form": form.form, "conv": integer_conv(self._arrays, op, weight, outputs, form)}
            return self._conv_sweep(op, source, factor, outputs, total, shuffle, fields)
        if isinstance(read, Codes):
            factor, (source, places) = read.target.factor, self.codes_in_map(read, None)
            self.codes_read[op.name] = source, places, op
        else:
            value, layer = self._distinct(step), self._layers.get(op.name)
            wide = None if layer is None or step.output in self._coded else wide_form(layer)
            if layer is not None and wide is not None:
                return self._wide_conv(layer, op, step, value, wide)
            factor, (source, places) = value.factor, self.in_one_map(value)
        return self._conv_of_floats(op, step, source, places, factor, exact=step.output in self._coded)

    def _wide_conv(
        self, layer: PackedLayer, op: FoldedConv, step: Step, value: Value, form: Form
    ) -> Value | Codes:
        """Of a layer with 16-bit inputs, behind the last codes: its own weights, and inputs of 14
        bits."""
        conv, input_step = wide_conv(layer, op)
        source, places = self.in_words(value, input_step)
        outputs, total, shuffle = self._outputs(op, step)
        weight = spread_weight(conv, places, source.channels, outputs, total)
        fields = {"form": form.form, "conv": integer_conv(self._arrays, conv, weight, outputs, form)}
        return self._conv_sweep(op, source, value.factor, outputs, total, shuffle, fields)

    def in_words(self, value: Value, step: NDArray[np.float64]) -> tuple[Map, Channels]:
        """A map of a value as 14-bit multiples of `step` (C,), and where its channels are."""
        most = structures.LARGEST_WORD
        codes = Codes(
            value, value, structures.AFFINE, (np.zeros(1), 1 / step), np.array([-most]), (-most, most)
        )
        return self.codes_in_map(codes, _WORDS)

    def _conv_of_floats(
        self, op: FoldedConv, step: Step, source: Map, places: Channels, factor: int, *, exact: bool
    ) -> Value | Codes:
        outputs, total, shuffle = self._outputs(op, step)
        weight = spread_weight(op, places, source.channels, outputs, total)
        in_tiles = structures.IN_TILES if weight.shape[2] == 3 else structures.IN_TAPS
        form = structures.IN_DOUBLES if exact or op.codes_out is not None else in_tiles
        inputs = int(places.max()) + 1
        conv = float_conv(self._arrays, op, weight, outputs, form, inputs)
        fields = {"form": form, "conv": conv, "inputs": inputs}
        return self._conv_sweep(op, source, factor, outputs, total, shuffle, fields)

    def _conv_sweep(
        self,
        op: FoldedConv,
        source: Map,
        factor: int,
        outputs: Channels,
        total: int,
        shuffle: int,
        fields: dict[str, Any],
    ) -> Value | Codes:
        fields["size"] = kernel(op).shape[2]
        sweep = self.sweep(structures.FROM_CONV, factor, total, shuffle, input=source, fields=fields)
        value = Value.of(sweep.root(), outputs, factor, unshuffled=shuffle > 1)
        if op.codes_out is None:
            return value
        low = np.array(op.codes_out[:1]) if op.low is None else op.low
        return Codes(value, value, structures.AS_IS, (), low, op.codes_out)

    def _outputs(self, op: FoldedConv, step: Step) -> tuple[Channels, int, int]:
        """Where a convolution's outputs are to lie, how many there are with those between, and the
        factor of a pixel shuffle that its sweep does."""
        count, follows, alone = len(op.weight), step, True
        while len(self._readers[follows.output]) == 1:
            follows = self._readers[follows.output][0]
            if isinstance(follows.op, PixelShuffle):
                wide = op.codes_out is not None or count // follows.op.factor**2 >= _LEAST_SHUFFLED
                if alone and wide:
                    return *shuffled_outputs(count, follows.op.factor), follows.op.factor
                break
            if isinstance(follows.op, Pixels):
                factor = self._shown_factor(follows)
                if 3 * factor**2 == count:
                    return shown_outputs(factor), padded(count), 1
                break
            if not isinstance(follows.op, Activation | Scale | Offset | Binary):
                break
            alone = alone and not isinstance(follows.op, Binary)
        return np.arange(count), padded(count), 1

    def _shown_factor(self, pixels: Step) -> int:
        """Of the pixel shuffle behind the step `Pixels`, 1 where there is none."""
        last = self._program.steps[-1]
        return last.op.factor if last is not pixels and isinstance(last.op, PixelShuffle) else 1
