"""The steps of a folded program as sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from quantsr.deploy.folded import (
    Activation,
    Binary,
    Concat,
    FirstConv,
    FoldedConv,
    FoldedLinear,
    FoldedProgram,
    Mean,
    Normalize,
    Offset,
    Op,
    Pixels,
    PixelShuffle,
    Quantize,
    Requantize,
    Scale,
    Slice,
    Step,
    UpsampleBilinear,
    UpsampleNearest,
)
from quantsr.deploy.native import library
from quantsr.deploy.native.arrays import CHANNELS, MAX_OUTPUTS, Arrays, padded
from quantsr.deploy.native.match import Unsupported, described
from quantsr.deploy.native.sweep_builder import Builder, Codes, Scaled, codes_of
from quantsr.deploy.native.sweep_convs import (
    Form,
    float_conv,
    form_of,
    has_wide_form,
    integer_conv,
    kernel,
    spread_weight,
    wide_form,
)
from quantsr.deploy.native.sweep_end import Select, with_shuffle_last
from quantsr.deploy.native.sweeps import Channels, Map, Value, concatenated, shown_outputs, shuffled_outputs
from quantsr.deploy.packed.model import PackedLayer

_LEAST_SHUFFLED = 8
"""Channels behind a pixel shuffle from which the convolution before it pads them to 16."""

_ACTIVATIONS = {
    "sigmoid": library.DO_SIGMOID,
    "silu": library.DO_SILU,
    "tanh": library.DO_TANH,
    "gelu": library.DO_GELU,
}


class StepsToSweeps(Builder):
    """Each method `_KIND` adds one step; raises Unsupported, naming a step that it cannot."""

    def __init__(
        self, program: FoldedProgram, layers: Mapping[str, PackedLayer], isa: str, arrays: Arrays
    ) -> None:
        """`layers` are those of the packed network."""
        super().__init__()
        self._layers, self._isa, self._arrays = layers, isa, arrays
        self._program = with_shuffle_last(program)
        self._readers = self._program.readers()
        self._coded = self._in_front_of_codes()
        self._values: dict[int, Value | Codes | Scaled] = {}
        self._pictures: dict[bytes, Value] = {}
        self.codes_read: dict[str, tuple[Map, Channels, FoldedConv]] = {}
        """By the names of the layers that read them."""
        for step in self._program.steps:
            method = _METHODS.get(type(step.op))
            if method is None:
                raise Unsupported(f"it has no kernel for {described(step.op)}")
            run: Callable[..., Value | Codes | Scaled | None] = getattr(self, method)
            result = run(step.op, step)
            if result is not None:
                self._values[step.output] = result

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
            return self.unary(library.DO_SCALE, found.value, found.factor)
        if isinstance(found, Codes):
            raise Unsupported(f"{described(step.op)} reads codes")
        return found

    # The picture and convolutions

    def _picture(self, mean: Any, factor: Any) -> Value:
        key = b"" if mean is None else np.array([*mean, factor], np.float32).tobytes()
        if key not in self._pictures:
            fields = {} if mean is None else {"mean": mean, "range": float(factor)}
            sweep = self.sweep(library.FROM_PICTURE, 1, CHANNELS, fields=fields)
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
            sweep = self.sweep(library.FROM_INDEX, 1, source.channels, input=source, fields={"enlarge": 1})
            value = Value.of(sweep.root(), places)
        if conv.zero_point is not None:
            value = self.unary(library.DO_OFFSET, value, -conv.zero_point)
        return self._conv_of_floats(conv, step, *self.in_one_map(value), 1, exact=True)

    def _conv(self, op: FoldedConv, step: Step) -> Value | Codes:
        read = self._values[step.inputs[0]]
        if isinstance(read, Codes) and op.integer:
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
            value, layer = self._value(step), self._layers.get(op.name)
            if layer is not None and step.output not in self._coded and has_wide_form(layer):
                return self._wide_conv(layer, op, step, value)
            factor, (source, places) = value.factor, self.in_one_map(value)
        return self._conv_of_floats(op, step, source, places, factor, exact=step.output in self._coded)

    def _wide_conv(self, layer: PackedLayer, op: FoldedConv, step: Step, value: Value) -> Value | Codes:
        """Of a layer with 16-bit inputs, behind the last codes: its own weights, and inputs of 14
        bits."""
        conv, input_step = wide_form(layer, op)
        codes = Codes(
            value,
            value,
            library.AFFINE,
            (np.zeros(1), 1 / input_step),
            np.array([-library.LARGEST_WORD]),
            (-library.LARGEST_WORD, library.LARGEST_WORD),
        )
        form = Form(library.IN_TILES, library.WORDS)
        source, places = self.codes_in_map(codes, form)
        outputs, total, shuffle = self._outputs(op, step)
        weight = spread_weight(conv, places, source.channels, outputs, total)
        fields = {"form": form.form, "conv": integer_conv(self._arrays, conv, weight, outputs, form)}
        return self._conv_sweep(op, source, value.factor, outputs, total, shuffle, fields)

    def _conv_of_floats(
        self, op: FoldedConv, step: Step, source: Map, places: Channels, factor: int, *, exact: bool
    ) -> Value | Codes:
        outputs, total, shuffle = self._outputs(op, step)
        weight = spread_weight(op, places, source.channels, outputs, total)
        in_tiles = library.IN_TILES if weight.shape[2] == 3 else library.IN_TAPS
        form = library.IN_DOUBLES if exact or op.codes_out is not None else in_tiles
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
        sweep = self.sweep(library.FROM_CONV, factor, total, shuffle, input=source, fields=fields)
        value = Value.of(sweep.root(), outputs, factor, unshuffled=shuffle > 1)
        if op.codes_out is None:
            return value
        low = np.array(op.codes_out[:1]) if op.low is None else op.low
        return Codes(value, value, library.AS_IS, (), low, op.codes_out)

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

    def _quantize(self, op: Quantize | Requantize, step: Step) -> Codes:
        return codes_of(op, self._value(step))

    # Element by element

    def _activation(self, op: Activation, step: Step) -> Value:
        if op.kind == "relu" or op.slope is not None:
            slope = np.zeros(1) if op.slope is None else np.atleast_1d(op.slope)
            return self.unary(library.DO_SLOPE, self._value(step), slope)
        if op.kind not in _ACTIVATIONS:
            raise Unsupported(f"it has no kernel for {described(op)}")
        return self.unary(_ACTIVATIONS[op.kind], self._value(step))

    def _scale(self, op: Scale, step: Step) -> Value | Scaled:
        """Left to the sum that reads it, where that comes later."""
        value, readers = self._value(step), self._readers[step.output]
        if len(readers) == 1 and isinstance(readers[0].op, Binary) and not value.unshuffled:
            (other,) = [v for v in readers[0].inputs if v != step.output] or [step.output]
            found = self._values.get(other)
            if other != step.output and not (isinstance(found, Value) and _latest(found) <= _latest(value)):
                return Scaled(value, op.factor)
        return self.unary(library.DO_SCALE, value, op.factor)

    def _offset(self, op: Offset, step: Step) -> Value:
        return self.unary(library.DO_OFFSET, self._value(step), op.values)

    def _binary_step(self, op: Binary, step: Step) -> Value:
        operands = []
        for index, number in enumerate(step.inputs):
            found = self._values[number]
            operands.append(found if isinstance(found, Scaled) else self._value(step, index))
        return self.binary(op.kind, *operands)

    # Channels and sizes

    def _concat(self, op: Concat, step: Step) -> Value:
        return concatenated([self._value(step, index) for index in range(len(step.inputs))])

    def _slice(self, op: Slice, step: Step) -> Value:
        return self._value(step).select(np.arange(op.start, op.stop))

    def _select(self, op: Select, step: Step) -> Value:
        return self._value(step).select(np.asarray(op.channels))

    def _pixel_shuffle(self, op: PixelShuffle, step: Step) -> Value | Codes | None:
        if step.inputs[0] not in self._values:  # pixels, which are shown shuffled
            return None
        found = self._values[step.inputs[0]]
        value = found.target if isinstance(found, Codes) else self._value(step)
        count = len(value.root) // op.factor**2
        if value.unshuffled:
            assert value.only is not None
            after = Value.of(value.only, np.arange(count))
            if isinstance(found, Codes):
                return Codes(found.value, after, found.mode, found.constants, found.low, found.limits)
            return after
        if isinstance(found, Codes):
            raise Unsupported("a pixel shuffle of codes follows no convolution")
        channel = np.arange(count)
        index = np.full((op.factor**2, padded(count)), -1)
        index[:, :count] = channel * op.factor**2 + np.arange(op.factor**2)[:, None]
        return Value.of(self.indexed(value, op.factor, index), channel)

    def _upsample_nearest(self, op: UpsampleNearest, step: Step) -> Value:
        value = self._value(step)
        count = len(value.root)
        index = np.full((op.factor**2, padded(count)), -1)
        index[:, :count] = np.arange(count)
        return Value.of(self.indexed(value, op.factor, index), np.arange(count))

    def _upsample_bilinear(self, op: UpsampleBilinear, step: Step) -> Value:
        value = self._value(step)
        source, places = self.in_one_map(value)
        sweep = self.sweep(
            library.FROM_BILINEAR,
            value.factor * op.factor,
            source.channels,
            input=source,
            fields={"enlarge": op.factor},
        )
        return Value.of(sweep.root(), places)

    def _mean(self, op: Mean, step: Step) -> Value:
        source, places = self.in_one_map(self._value(step))
        sweep = self.sweep(library.FROM_MEAN, 0, source.channels, input=source)
        return Value.of(sweep.root(), places)

    def _pixels(self, op: Pixels, step: Step) -> None:
        """The result, and a pixel shuffle behind it."""
        value, factor = self._value(step), self._shown_factor(step)
        if 3 * factor**2 > MAX_OUTPUTS:
            raise Unsupported(f"its last pixel shuffle is by {factor}")
        order = shown_outputs(factor)
        if value.only is None or not np.array_equal(value.channel, order) or value.only.sweep.shuffle > 1:
            value = self.gathered(value, order)
        assert value.only is not None
        root = value.only
        if root.sweep is not self.sweeps[-1] or root.sweep.channels != root.channels:
            sweep = self.sweep(library.FROM_MAPS, value.factor, root.channels)
            root = self._loaded(sweep, root)
        sweep = root.sweep
        sweep.add(library.DO_SHOW, left=root)
        assert sweep.operations[-1].result is not None
        sweep.operations[-1].result = None


def _latest(value: Value) -> int:
    return max(root.sweep.number for root in value.roots)


_METHODS: dict[type[Op] | type[Select], str] = {
    FirstConv: "_first",
    Normalize: "_normalize",
    Quantize: "_quantize",
    Requantize: "_quantize",
    FoldedConv: "_conv",
    FoldedLinear: "_conv",
    Activation: "_activation",
    Scale: "_scale",
    Offset: "_offset",
    Binary: "_binary_step",
    Concat: "_concat",
    Slice: "_slice",
    Select: "_select",
    PixelShuffle: "_pixel_shuffle",
    UpsampleNearest: "_upsample_nearest",
    UpsampleBilinear: "_upsample_bilinear",
    Mean: "_mean",
    Pixels: "_pixels",
}
