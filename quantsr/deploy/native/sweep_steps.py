"""The steps of a folded program as sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
from quantsr.deploy.native import structures
from quantsr.deploy.native.arrays import MAX_OUTPUTS, Arrays, padded, rounding_error, wide_step
from quantsr.deploy.native.match import GroupEnd, SwinMap
from quantsr.deploy.native.match_steps import Unsupported, described
from quantsr.deploy.native.sweep_builder import Codes, Scaled, codes_of
from quantsr.deploy.native.sweep_convs import spread
from quantsr.deploy.native.sweep_end import CollapsedTail, Select
from quantsr.deploy.native.sweep_layers import Layers
from quantsr.deploy.native.sweeps import (
    Do,
    Map,
    Sweep,
    Value,
    concatenated,
    shown_outputs,
)
from quantsr.deploy.packed.model import PackedLayer

_MOST_ERROR = 1.5
"""Of a tail whose weights are rounded a second time, as `rounding_error` has it: the largest with
which no value is off by more than 1 of 255 (docs/explanation/numerics.md)."""

_ACTIVATIONS = {
    "sigmoid": structures.DO_SIGMOID,
    "silu": structures.DO_SILU,
    "tanh": structures.DO_TANH,
    "gelu": structures.DO_GELU,
}


class StepsToSweeps(Layers):
    """All steps of a program. Raises Unsupported, naming a step that there is no kernel for."""

    def __init__(
        self, program: FoldedProgram, layers: Mapping[str, PackedLayer], isa: str, arrays: Arrays
    ) -> None:
        super().__init__(program, layers, isa, arrays)
        self.group_ends: list[tuple[Map, list[Sweep]]] = []
        """Of each group of Swin layers that sweeps close: their result, and all sweeps so far."""
        for step in self._program.steps:
            method = _METHODS.get(type(step.op))
            if method is None:
                raise Unsupported(f"it has no kernel for {described(step.op)}")
            run: Callable[..., Value | Codes | Scaled | None] = getattr(self, method)
            result = run(step.op, step)
            if result is not None:
                self._values[step.output] = result

    def _quantize(self, op: Quantize | Requantize, step: Step) -> Codes:
        return codes_of(op, self._distinct(step))

    def _swin_map(self, op: SwinMap, step: Step) -> Value | Codes:
        found = self.map(1, padded(op.channels), structures.FLOATS, slot=op.slot)
        sweep = self.sweep(structures.FROM_INDEX, 1, found.channels, input=found, fields={"enlarge": 1})
        root = sweep.root()
        root.stored = found
        found.written.append(sweep)
        value = Value.of(root, np.arange(op.channels))
        if op.limits is None:
            return value
        return Codes(value, value, structures.AS_IS, (), np.array(op.limits[:1]), op.limits)

    def _group_end(self, op: GroupEnd, step: Step) -> None:
        value = self._value(step)
        if value.factor != 1 or len(value.root) != op.channels:
            raise Unsupported("its groups of layers end in maps of another size")
        source, places = self.in_one_map(value)
        if not np.array_equal(places, np.arange(op.channels)):
            (root,) = self.gathered(value).roots
            source = self.stored(root)
        if source.slot is not None:
            raise Unsupported("its groups of layers end in no operation")
        source.read.append(self.sweeps[-1])  # read behind it
        self.group_ends.append((source, list(self.sweeps)))

    # Element by element

    def _activation(self, op: Activation, step: Step) -> Value:
        if op.kind == "relu" or op.slope is not None:
            slope = np.zeros(1) if op.slope is None else np.atleast_1d(op.slope)
            return self.unary(structures.DO_SLOPE, self._value(step), slope)
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
        return self.unary(structures.DO_SCALE, value, op.factor)

    def _offset(self, op: Offset, step: Step) -> Value:
        return self.unary(structures.DO_OFFSET, self._value(step), op.values)

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
            structures.FROM_BILINEAR,
            value.factor * op.factor,
            source.channels,
            input=source,
            fields={"enlarge": op.factor},
        )
        return Value.of(sweep.root(), places)

    def _mean(self, op: Mean, step: Step) -> Value:
        source, places = self.in_one_map(self._value(step))
        sweep = self.sweep(structures.FROM_MEAN, 0, source.channels, input=source)
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
            sweep = self.sweep(structures.FROM_MAPS, value.factor, root.channels)
            root = self._loaded(sweep, root)
        root.sweep.operations.append(Do(structures.DO_SHOW, left=root, last=root.channels))

    def _tail(self, op: CollapsedTail, step: Step) -> None:
        """One convolution of 5x5, and then the pixels at the border anew: on 14-bit inputs where
        that rounds its weights too little to be seen, else in float32."""
        value = self._distinct(step)
        source, places = self.in_one_map(value)
        self.tail, self.tail_inputs = op, (places, source.channels)
        weight, bias = op.inner()
        layer = self._layers.get(op.stages[0].conv.name)
        steps = None if layer is None else wide_step(layer)
        wide = steps is not None and rounding_error(weight, steps, 2) < _MOST_ERROR
        read, at = self.in_words(value, steps) if steps is not None and wide else (source, places)
        whole = np.zeros((len(weight), read.channels, *weight.shape[2:]))
        whole[:, at] = weight
        if steps is not None and wide:
            conv = self._arrays.wide_conv(whole, bias, spread(steps, at, read.channels), 2)
        else:
            conv = self._arrays.float_conv(whole, bias, 2)
        fields = {"form": structures.IN_TILES, "conv": conv, "size": weight.shape[2]}
        ring = structures.FROM_RING
        for kind, input_, more in ((structures.FROM_CONV, read, fields), (ring, source, {})):
            sweep = self.sweep(kind, 1, padded(len(bias)), input=input_, fields=more)
            sweep.operations.append(Do(structures.DO_SHOW, left=sweep.root(), last=sweep.channels))


def _latest(value: Value) -> int:
    return max(root.sweep.number for root in value.roots)


_METHODS: dict[type[Op] | type[SwinMap] | type[GroupEnd] | type[Select] | type[CollapsedTail], str] = {
    SwinMap: "_swin_map",
    GroupEnd: "_group_end",
    CollapsedTail: "_tail",
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
