"""Folding: a packed network at one depth as the folded program that engines run. Imports no torch.

What of a network can be one multiplication and one addition per layer becomes that, and what would
change codes stays as training computes it: see `constants.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy import operations, rectangles
from quantsr.deploy.folded import (
    NORM_EPS,
    Activation,
    Affine,
    Attention,
    Binary,
    ChannelAttention,
    Concat,
    FoldedProgram,
    GlobalAttention,
    GroupNorm,
    MaxPool,
    Mean,
    Normalize,
    Offset,
    Op,
    Pixels,
    PixelShuffle,
    PixelUnshuffle,
    RectangleAttention,
    ResizeNearest,
    Scale,
    Slice,
    Step,
    UpsampleBilinear,
    UpsampleNearest,
)
from quantsr.deploy.packed.model import Operand, PackedLayer, PackedModel
from quantsr.deploy.passes import constants, scales, units
from quantsr.deploy.passes.exact import exact_values
from quantsr.deploy.passes.first import first_conv
from quantsr.deploy.program import PICTURE, Operation, Program
from quantsr.deploy.shapes import OPERANDS


def fold(model: PackedModel, depth: int | None = None, *, wide_inputs: bool = True) -> FoldedProgram:
    """Fold `model` at `depth` (default: its deepest); without `wide_inputs`, layers with 16-bit
    inputs read floats. Raises InputError for an unknown depth."""
    if not wide_inputs:
        model = model.with_wide_inputs_in_float()
    kept = model.header.blocks_kept(model.depth_or_default(depth))
    program = units.keep(model.program, set(kept), model.header.shortcuts)
    exact = exact_values(program)
    program = scales.merge(program, exact)
    return _Fold(model, program, exact_values(program)).run()


class _Target(NamedTuple):
    """The layer that reads what a layer gives, and what lies between."""

    reader: PackedLayer
    """Its input has codes of at most 16 bits."""
    value: int
    """The value, by the program's number, that it reads."""
    relu: bool
    """Whether a ReLU lies between."""
    shuffle: int
    """Factor of the pixel shuffle between; 1 where there is none."""
    absorbed: tuple[int, ...]
    """Results, by the program's numbers, of the operations between."""


class _Fold:
    """Steps in the making. Each method `_KIND` appends those of one operation."""

    def __init__(self, model: PackedModel, program: Program, exact: set[int]) -> None:
        self.model, self.program, self.exact = model, program, exact
        self.readers = program.readers()
        self.producer = {op.output: op for op in program.operations}
        self.steps: list[Step] = []
        self.floats: dict[int, int] = {PICTURE: PICTURE}  # results of steps, by the program's values
        self.codes: dict[tuple[int, str], int] = {}  # the same as codes of a layer
        self.done: set[int] = set()  # values that other steps give

    def run(self) -> FoldedProgram:
        scale = self.model.header.scale
        for op in self.program.operations:
            if op.output not in self.done:
                method: Callable[[Operation], None] = getattr(self, f"_{op.kind}")
                method(op)
        return FoldedProgram(tuple(self.steps), scale, self.program.multiple)

    def step(self, op: Op, *inputs: int) -> int:
        output = len(self.steps) + 1
        self.steps.append(Step(op, inputs, output))
        return output

    def layer(self, op: Operation) -> PackedLayer:
        return self.model.layers[op.name]

    def only_reader(self, value: int) -> Operation | None:
        readers = self.readers[value]
        return readers[0] if len(readers) == 1 else None

    def reading_layer(self, value: int) -> PackedLayer | None:
        """The layer with quantized inputs that alone reads `value`."""
        op = self.only_reader(value)
        if op is None or op.kind not in ("conv", "linear"):
            return None
        packed = self.layer(op)
        return packed if packed.bits_a <= constants.CODE_BITS else None

    def input(self, value: int, packed: PackedLayer) -> int:
        """`value` as what the layer reads: its codes, or floats."""
        if packed.bits_a > constants.CODE_BITS:
            return self.floats[value]
        key = (value, packed.name)
        if key not in self.codes:
            quantize = constants.quantize(packed, exact=value in self.exact)
            self.codes[key] = self.step(quantize, self.floats[value])
        return self.codes[key]

    # Layers

    def _conv(self, op: Operation) -> None:
        packed, factor = self.layer(op), op.attributes.get("factor", 1.0)
        source = self.producer.get(op.inputs[0])
        if source is not None and source.kind == "normalize":
            first = first_conv(packed, source.attributes["mean"], source.attributes["range"])
            self.floats[op.output] = self.step(first, PICTURE)
        elif target := self.target(op):
            self.requantized(op, target)
        elif not self.last_conv(op):
            folded = constants.layer(packed, factor, exact=op.output in self.exact)
            self.floats[op.output] = self.step(folded, self.input(op.inputs[0], packed))

    def _linear(self, op: Operation) -> None:
        reader = self.only_reader(op.output)
        if reader is not None and reader.kind == "window_attention":
            return  # it takes q, k and v apart
        if target := self.target(op):
            self.requantized(op, target)
            return
        packed = self.layer(op)
        folded = constants.layer(packed, op.attributes.get("factor", 1.0), exact=op.output in self.exact)
        self.floats[op.output] = self.step(folded, self.input(op.inputs[0], packed))

    def target(self, op: Operation) -> _Target | None:
        """What alone reads the result of an integer layer and takes codes, with nothing but a ReLU
        or a pixel shuffle between, of values that are exact; None where there is none."""
        if not self.layer(op).integer or op.output not in self.exact or "factor" in op.attributes:
            return None
        value, between = op.output, []
        following = self.only_reader(value)
        if following is not None and following.kind in ("relu", "pixel_shuffle"):
            between, value = [following], following.output
        reader = self.reading_layer(value)
        if reader is None or (value, reader.name) in self.codes:
            return None
        relu = bool(between) and between[0].kind == "relu"
        shuffle = between[0].attributes["factor"] if between and not relu else 1
        return _Target(reader, value, relu, shuffle, tuple(x.output for x in between))

    def requantized(self, op: Operation, target: _Target) -> None:
        packed = self.layer(op)
        folded = constants.requantized(packed, target.reader, relu=target.relu, shuffle=target.shuffle)
        codes = self.step(folded, self.input(op.inputs[0], packed))
        if target.shuffle > 1:
            codes = self.step(PixelShuffle(target.shuffle), codes)
        self.codes[target.value, target.reader.name] = codes
        self.done.update(target.absorbed)

    def last_conv(self, op: Operation) -> bool:
        """The convolution whose result is the picture, at most a pixel shuffle away; False for any
        other. Its constants bring it to pixel values; shuffled are bytes."""
        last, shuffle = self.only_reader(op.output), 1
        if last is not None and last.kind == "pixel_shuffle":
            shuffle, last = last.attributes["factor"], self.only_reader(last.output)
        if last is None or last.kind != "picture":
            return False
        mean = np.repeat(255.0 * np.asarray(last.attributes["mean"], np.float64), shuffle**2)
        factor = op.attributes.get("factor", 1.0) * (255.0 / last.attributes["range"])
        folded = constants.layer(self.layer(op), factor, mean, exact=op.output in self.exact)
        pixels = self.step(folded, self.input(op.inputs[0], self.layer(op)))
        pixels = self.step(Pixels(), pixels)
        if shuffle > 1:
            self.step(PixelShuffle(shuffle), pixels)
        self.done.update(x.output for x in self.program.operations[-2:])
        return True

    def _layer_norm(self, op: Operation) -> None:
        reader = self.reading_layer(op.output)
        weight, bias = (self.model.floats[f"{op.name}.{part}"] for part in ("weight", "bias"))
        factor, eps = op.attributes.get("factor", 1.0), op.attributes.get("eps", NORM_EPS)
        folded = constants.norm(op.name, weight, bias, reader, factor, eps)
        result = self.step(folded, self.floats[op.inputs[0]])
        if reader is None:
            self.floats[op.output] = result
        else:
            self.codes[op.output, reader.name] = result

    def _group_norm(self, op: Operation) -> None:
        weight, bias = (self.model.floats[f"{op.name}.{part}"].values for part in ("weight", "bias"))
        eps = op.attributes.get("eps", NORM_EPS)
        self._simple(op, GroupNorm(op.name, op.attributes["groups"], weight, bias, eps))

    def _window_attention(self, op: Operation) -> None:
        operands = {role: self.model.operands.get(f"{op.name}.{role}") for role in OPERANDS}
        left, right = operands["scores.left"], operands["scores.right"]
        mixture = [operands[f"mixture.{side}"] for side in ("left", "right")]
        source = self.producer[op.inputs[0]]
        heads, window = op.attributes["heads"], op.attributes["window"]
        overlap = op.attributes.get("overlap", 0)
        dim = self.layer(source).out_channels // 3
        root = (dim // heads) ** -0.5
        # With float operands the factor 1 / sqrt(d) goes into q, as in training.
        factors = (root if left is None else 1.0, 1.0, 1.0)
        codes = self.input(source.inputs[0], self.layer(source))
        parts = [
            constants.part_of_qkv(self.layer(source), part, operand, factor)
            for part, (operand, factor) in enumerate(zip((left, right, mixture[1]), factors, strict=True))
        ]
        mix = _step(mixture[0]) * _step(mixture[1])
        reader = self.reading_layer(op.output)
        table = self.model.floats[f"{op.name}.relative_position_bias_table"].values
        folded = Attention(
            name=op.name,
            heads=heads,
            window=window,
            shift=op.attributes["shift"],
            score_multiplier=np.float32(1.0 if left is None else _step(left) * _step(right) * root),
            bias=table[relative_positions(window, overlap)].transpose(2, 0, 1).copy(),  # (h, N, M)
            operands=(parts[0].codes_out, parts[1].codes_out, parts[2].codes_out),
            probabilities=None if mixture[0] is None else constants.requantize_operand(mixture[0]),
            mix=np.float32(mix) if reader is None else constants.requantize(reader, mix),
            overlap=overlap,
        )
        result = self.step(folded, *(self.step(part, codes) for part in parts))
        if reader is None:
            self.floats[op.output] = result
        else:
            self.codes[op.output, reader.name] = result

    def _rectangle_attention(self, op: Operation) -> None:
        (rows, columns), (down, right) = op.attributes["window"], op.attributes["shift"]
        heads, multiple = op.attributes["heads"], op.attributes["multiple"]
        parts = {
            name.rpartition(".")[2]: self.model.floats[name].values for name in operations.parameters(op)[1]
        }
        if "pairs" in op.attributes:
            bias = parts["pair_bias_table"].T.reshape(heads, rows * columns, -1)  # (h, N, N)
        else:
            table = parts["relative_position_bias_table"]
            bias = table[rectangles.relative_positions((rows, columns))].transpose(2, 0, 1)
        folded = RectangleAttention(
            name=op.name,
            heads=heads,
            window=(rows, columns),
            shift=(down, right),
            multiple=multiple,
            bias=np.ascontiguousarray(bias),
            beyond=(parts["beyond_k"], parts["beyond_v"]) if "beyond" in op.attributes else None,
            temperature=parts.get("temperature"),
        )
        self._simple(op, folded)

    def _channel_attention(self, op: Operation) -> None:
        temperature = self.model.floats[f"{op.name}.temperature"].values
        self._simple(op, ChannelAttention(op.name, op.attributes["heads"], temperature))

    def _global_attention(self, op: Operation) -> None:
        self._simple(op, GlobalAttention(op.name, op.attributes["heads"]))

    # Element by element

    def _activation(self, op: Operation) -> None:
        slope = None
        if op.kind == "leaky_relu":
            slope = np.asarray(op.attributes["slope"], np.float32)
        elif op.kind == "prelu":
            slope = self.model.floats[f"{op.name}.weight"].values
        self.floats[op.output] = self.step(Activation(op.kind, slope), self.floats[op.inputs[0]])

    _relu = _leaky_relu = _prelu = _gelu = _sigmoid = _silu = _mish = _tanh = _activation

    def _binary(self, op: Operation) -> None:
        self.floats[op.output] = self.step(Binary(op.kind), *(self.floats[value] for value in op.inputs))

    _add = _subtract = _multiply = _binary

    def _scale(self, op: Operation) -> None:
        self.floats[op.output] = self.scaled(op.inputs[0], op.attributes["factor"])

    def scaled(self, value: int, factor: float) -> int:
        rounded = np.float32(factor)
        if rounded == 1:
            return self.floats[value]
        return self.step(Scale(rounded, value in self.exact), self.floats[value])

    def _shortcut(self, op: Operation) -> None:
        """`s * x + branch`, both times the shortcuts of skipped units behind it."""
        stream, branch = op.inputs
        scaled = self.scaled(stream, op.attributes["factor"] * op.attributes.get("gap", 1.0))
        self.floats[op.output] = self.step(Binary("add"), scaled, self.floats[branch])

    def _around(self, op: Operation) -> None:
        """`y + (s - 1) * x`, both times the shortcuts of skipped units behind it."""
        stream, result = op.inputs
        factor = op.attributes.get("gap", 1.0) * (op.attributes["factor"] - 1)
        if np.float32(factor) == 0:
            self.floats[op.output] = self.floats[result]
            return
        scaled = self.scaled(stream, factor)
        self.floats[op.output] = self.step(Binary("add"), self.floats[result], scaled)

    def _affine(self, op: Operation) -> None:
        weight, bias = (self.model.floats[f"{op.name}.{part}"].values for part in ("weight", "bias"))
        self._simple(op, Offset(bias) if (weight == 1).all() else Affine(op.name, weight, bias))

    # Shapes

    def _simple(self, op: Operation, folded: Op) -> None:
        self.floats[op.output] = self.step(folded, *(self.floats[value] for value in op.inputs))

    def _concat(self, op: Operation) -> None:
        self._simple(op, Concat())

    def _slice(self, op: Operation) -> None:
        self._simple(op, Slice(op.attributes["start"], op.attributes["stop"]))

    def _pixel_shuffle(self, op: Operation) -> None:
        self._simple(op, PixelShuffle(op.attributes["factor"]))

    def _pixel_unshuffle(self, op: Operation) -> None:
        self._simple(op, PixelUnshuffle(op.attributes["factor"]))

    def _upsample_nearest(self, op: Operation) -> None:
        self._simple(op, UpsampleNearest(op.attributes["factor"]))

    def _upsample_bilinear(self, op: Operation) -> None:
        self._simple(op, UpsampleBilinear(op.attributes["factor"]))

    def _max_pool(self, op: Operation) -> None:
        self._simple(op, MaxPool(op.attributes["factor"]))

    def _resize_nearest(self, op: Operation) -> None:
        self._simple(op, ResizeNearest(op.attributes["factor"]))

    def _mean(self, op: Operation) -> None:
        self._simple(op, Mean())

    # The picture

    def _normalize(self, op: Operation) -> None:
        if any(reader.kind != "conv" for reader in self.readers[op.output]):
            mean = np.asarray(op.attributes["mean"], np.float32)
            self._simple(op, Normalize(np.float32(op.attributes["range"]), mean))

    def _picture(self, op: Operation) -> None:
        value = self.scaled(op.inputs[0], 255.0 / op.attributes["range"])
        if any(op.attributes["mean"]):
            value = self.step(Offset((255.0 * np.asarray(op.attributes["mean"])).astype(np.float32)), value)
        self.step(Pixels(), value)


def _step(operand: Operand | None) -> float:
    return 1.0 if operand is None else float(operand.step[0])


def relative_positions(window: int, overlap: int = 0) -> NDArray[np.int64]:
    """For each pair of tokens of a window the row of its table of relative positions, (N, N); with
    an overlap (N, M), the rows in the order of HAT's overlapping windows."""
    y, x = np.divmod(np.arange(window**2), window)
    if overlap:
        side = window + 2 * overlap
        below, right = np.divmod(np.arange(side**2), side)
        span = 2 * (window + overlap) - 1
        first = 2 * overlap - 1
        rows, columns = (b[None] - a[:, None] - first for a, b in ((y, below), (x, right)))
        found: NDArray[np.int64] = (rows * span + columns) % span**2
        return found
    rows, columns = (axis[:, None] - axis[None, :] + window - 1 for axis in (y, x))
    return rows * (2 * window - 1) + columns
