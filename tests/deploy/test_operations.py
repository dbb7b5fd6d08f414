"""Every operation of programs in every engine against the definition: bits 2 to 8, signed,
unsigned and with a zero point.

Networks are made of constants that are multiples of powers of two, so that neither the definition
in float64 nor an engine in float32 rounds anything but the codes: pictures are equal, value by
value. Where an operation rounds by nature (sigmoid, LayerNorm), they are within 1 of 255, 99 % of
them equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quantsr.deploy import operations
from quantsr.deploy.engines import select
from quantsr.deploy.engines.reference import run
from quantsr.deploy.packed.description import Header
from quantsr.deploy.packed.header import check_structure
from quantsr.deploy.packed.model import ConvLayer, FloatTensor, LinearLayer, Operand, PackedLayer, PackedModel
from quantsr.deploy.program import PICTURE, Builder
from quantsr.deploy.shapes import OPERANDS
from quantsr.errors import InputError
from quantsr.ranges import IntRange
from tests.deploy.native import ISAS
from tests.reference import program as definition

CHANNELS = 8
RANGES = ("signed", "unsigned", "zero point")
ENGINES: dict[str, Callable[[PackedModel, np.ndarray], np.ndarray]] = {
    "reference": run,
    "onnxruntime": lambda model, image: by_engine("onnxruntime", model, image),
    "ncnn": lambda model, image: by_engine("ncnn", model, image),
    "openvino": lambda model, image: by_engine("openvino", model, image, cache=False),
    "torch": lambda model, image: by_engine("torch", model, image),
    **{
        f"native {isa}": lambda model, image, isa=isa: by_engine("native", model, image, isa=isa)
        for isa in ISAS
    },
}


def by_engine(name: str, model: PackedModel, image: np.ndarray, **options: Any) -> np.ndarray:
    if name != "native":
        pytest.importorskip(name)
    return select.create(name, model, 1, threads=1, **options).run(image[None])[0]


class Net:
    """A network in the making: a float convolution of the picture, what is tried, and one back to
    a picture."""

    def __init__(self, *, bits: int = 4, range: str = "signed", seed: int = 0) -> None:
        self.bits, self.range = bits, range
        self.rng = np.random.default_rng(seed)
        self.build = Builder()
        self.layers: dict[str, PackedLayer] = {}
        self.floats: dict[str, FloatTensor] = {}
        self.operands: dict[str, Operand] = {}
        colours = {"mean": [0.4, 0.2, 0.6], "range": 255.0}  # 102, 51 and 153 of 255
        self.colours = colours
        self.picture = self.build.add("normalize", PICTURE, **colours)
        self.start = self.first()

    def first(self) -> int:
        """A convolution whose codes are the pixels, less their mean: floats would be rounded."""
        zero = np.array([102, 51, 153])
        self.layers["first"] = ConvLayer(
            "first",
            self.rng.integers(-127, 128, (CHANNELS, 3, 3, 3)).astype(np.int8),
            (self.rng.integers(-32, 33, CHANNELS) / 16).astype(np.float32),
            bits_w=8,
            weight_step=np.full(CHANNELS, 2.0**-9, np.float32),
            bits_a=8,
            act_step=np.ones(1, np.float32),
            act_tau=zero.astype(np.float32),
            act_signed=False,
            act_zero_point=zero.astype(np.int32),
        )
        return self.build.add("conv", self.picture, name="first")

    def layer(
        self,
        x: int,
        inputs: int,
        outputs: int,
        *,
        size: int = 3,
        quantized: bool = True,
        gain: float = 1.0,
        groups: int = 1,
    ) -> int:
        """A convolution, or a linear layer (size 0), on value `x`."""
        name, channels = f"layer{len(self.layers)}", inputs
        inputs //= groups
        shape = (outputs, inputs, size, size) if size else (outputs, inputs)
        kind = ConvLayer if size else LinearLayer
        bias = (self.rng.integers(-32, 33, outputs) / 16).astype(np.float32)
        if not quantized:
            integers = self.rng.integers(-8, 9, shape)
            step = 2.0 ** np.floor(np.log2(gain / (4 * np.sqrt(inputs * max(size, 1) ** 2))))
            self.layers[name] = kind(name, (integers * step).astype(np.float32), bias, groups=groups)
        else:
            codes = IntRange.of(self.bits, signed=True)
            weight = self.rng.integers(codes.qmin, codes.qmax + 1, shape).astype(np.int8)
            size_of_sum = np.sqrt(inputs * max(size, 1) ** 2) * codes.qmax
            self.layers[name] = kind(
                name,
                weight,
                bias,
                bits_w=self.bits,
                weight_step=np.array([2.0 ** np.floor(np.log2(2 / size_of_sum))], np.float32),
                **self.input(channels),
                groups=groups,
            )
        return self.build.add("conv" if size else "linear", x, name=name)

    def input(self, channels: int) -> dict[str, Any]:
        """Its quantizer."""
        signed, limits = self.range != "unsigned", None
        if self.range == "zero point":
            low = -(2**self.bits // 3)
            limits = (low, low + 2**self.bits - 1)
        step = 2.0 ** (7 - self.bits)
        tau = (self.rng.integers(-40, 41, channels) * step / 16).astype(np.float32)
        return {
            "bits_a": self.bits,
            "act_step": np.array([step], np.float32),
            "act_tau": tau,
            "act_signed": signed,
            "act_limits": limits,
        }

    def tensor(self, name: str, values: np.ndarray) -> None:
        self.floats[name] = FloatTensor(name, values.astype(np.float32))

    def finish(self, x: int, channels: int, *, factor: int = 1, multiple: int = 1) -> PackedModel:
        """The network, on multiples of so many pixels; the last convolution reads `x`, which is
        `factor` times the picture's size."""
        x = self.layer(x, channels, 3, quantized=False, gain=0.5)
        self.build.add("picture", x, **self.colours)
        header = Header(
            {"type": "OfATest"},
            factor,
            (1,),
            1,
            (1.0,),
            rgb_mean=(0.4, 0.2, 0.6),
            provenance={"note": "test"},
        )
        program = replace(self.build.finish(), multiple=multiple)
        model = PackedModel(header, self.layers, self.operands, self.floats, program)
        return replace(model, header=replace(header, format_version=model.format_version))


def conv(net: Net) -> PackedModel:
    return net.finish(net.layer(net.start, CHANNELS, CHANNELS), CHANNELS)


def conv_1x1(net: Net) -> PackedModel:
    return net.finish(net.layer(net.start, CHANNELS, CHANNELS, size=1), CHANNELS)


def conv_5x5(net: Net) -> PackedModel:
    return net.finish(net.layer(net.start, CHANNELS, CHANNELS, size=5), CHANNELS)


def conv_in_groups(net: Net) -> PackedModel:
    """Of two channels; before it depthwise, as codes and with a ReLU between."""
    x = net.layer(net.start, CHANNELS, CHANNELS, groups=CHANNELS)
    x = net.build.add("relu", net.layer(x, CHANNELS, CHANNELS, groups=CHANNELS))
    return net.finish(net.layer(x, CHANNELS, CHANNELS, groups=CHANNELS // 2), CHANNELS)


def more_outputs_in_groups(net: Net) -> PackedModel:
    x = net.layer(net.start, CHANNELS, 2 * CHANNELS, groups=CHANNELS)
    return net.finish(net.layer(x, 2 * CHANNELS, CHANNELS, groups=2), CHANNELS)


def layer_in_groups_used_again(net: Net) -> PackedModel:
    x = net.layer(net.start, CHANNELS, CHANNELS, groups=CHANNELS)
    x = net.build.add("conv", x, name=net.build.finish().operations[-1].name)
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)


def linear(net: Net) -> PackedModel:
    return net.finish(net.layer(net.start, CHANNELS, CHANNELS, size=0), CHANNELS)


def relu(net: Net) -> PackedModel:
    """Between two integer layers, so that codes go from one to the other."""
    x = net.build.add("relu", net.layer(net.start, CHANNELS, CHANNELS))
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)


def nothing_between(net: Net) -> PackedModel:
    x = net.layer(net.start, CHANNELS, CHANNELS)
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)


def relu_behind_linear(net: Net) -> PackedModel:
    x = net.build.add("relu", net.layer(net.start, CHANNELS, CHANNELS, size=0))
    return net.finish(net.layer(x, CHANNELS, CHANNELS, size=0), CHANNELS)


def leaky_relu(net: Net) -> PackedModel:
    x = net.build.add("leaky_relu", net.layer(net.start, CHANNELS, CHANNELS), slope=0.25)
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)


def prelu(net: Net) -> PackedModel:
    net.tensor("act.weight", net.rng.choice([0.5, 0.25, -0.5], CHANNELS))
    x = net.build.add("prelu", net.layer(net.start, CHANNELS, CHANNELS), name="act")
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)


def pixel_shuffle(net: Net) -> PackedModel:
    x = net.build.add("pixel_shuffle", net.layer(net.start, CHANNELS, 4 * CHANNELS), factor=2)
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS, factor=2)


def pixel_unshuffle(net: Net) -> PackedModel:
    """A network of maps of half and a quarter of the picture's size, and back."""
    x = net.layer(net.build.add("pixel_unshuffle", net.start, factor=2), 4 * CHANNELS, CHANNELS)
    small = net.build.add("pixel_unshuffle", x, factor=2)
    small = net.layer(small, 4 * CHANNELS, 4 * CHANNELS, size=0)
    x = net.build.add("add", x, net.build.add("pixel_shuffle", small, factor=2))
    x = net.build.add("add", net.start, net.build.add("upsample_nearest", x, factor=2))
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS, multiple=4)


def upsample_nearest(net: Net) -> PackedModel:
    x = net.build.add("upsample_nearest", net.layer(net.start, CHANNELS, CHANNELS), factor=3)
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS, factor=3)


def max_pool_resize_nearest(net: Net) -> PackedModel:
    """To 2 x 2 pixels and back, around a convolution."""
    small = net.layer(net.build.add("max_pool", net.start, factor=3), CHANNELS, CHANNELS)
    x = net.build.add("add", net.start, net.build.add("resize_nearest", small, factor=1))
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)


def pool_of_an_enlargement(net: Net) -> PackedModel:
    """To one pixel, of the double of the picture's size and back."""
    large = net.build.add("upsample_nearest", net.start, factor=2)
    small = net.layer(net.build.add("max_pool", large, factor=13), CHANNELS, CHANNELS, size=0)
    x = net.build.add("add", large, net.build.add("resize_nearest", small, factor=2))
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS, factor=2)


def add_subtract_scale(net: Net) -> PackedModel:
    a, b = (net.layer(net.start, CHANNELS, CHANNELS) for _ in range(2))
    x = net.build.add("scale", net.build.add("add", a, net.start), factor=0.5)
    x = net.build.add("subtract", x, b)
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)


def shortcut(net: Net) -> PackedModel:
    x = net.build.add("relu", net.layer(net.start, CHANNELS, CHANNELS))
    x = net.build.add("shortcut", net.start, net.layer(x, CHANNELS, CHANNELS), unit=0)
    model = net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)
    return replace(model, header=replace(model.header, shortcuts=(0.75,)))


def around(net: Net) -> PackedModel:
    y = net.build.add("add", net.start, net.layer(net.start, CHANNELS, CHANNELS))
    x = net.build.add("around", net.start, y, unit=0)
    model = net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)
    return replace(model, header=replace(model.header, shortcuts=(0.75,)))


def concat_slice(net: Net) -> PackedModel:
    """One value, read by two quantizers."""
    a, b = net.layer(net.start, CHANNELS, CHANNELS), net.layer(net.start, CHANNELS, CHANNELS)
    x = net.build.add("concat", a, b, net.start)
    x = net.build.add("slice", x, start=3, stop=CHANNELS + 5)
    return net.finish(net.layer(x, CHANNELS + 2, CHANNELS), CHANNELS)


def base_of_pixels(net: Net) -> PackedModel:
    """The picture itself, enlarged, is added at the end."""
    x = net.build.add("pixel_shuffle", net.layer(net.start, CHANNELS, 12), factor=2)
    x = net.build.add("add", x, net.build.add("upsample_nearest", net.picture, factor=2))
    net.build.add("picture", x, **net.colours)
    header = Header({"type": "OfATest"}, 2, (1,), 1, (1.0,), rgb_mean=(0.4, 0.2, 0.6))
    model = PackedModel(header, net.layers, {}, net.floats, net.build.finish())
    return replace(model, header=replace(header, format_version=model.format_version))


def rounding(kind: str) -> Callable[[Net], PackedModel]:
    def make(net: Net) -> PackedModel:
        x = net.build.add("scale", net.layer(net.start, CHANNELS, CHANNELS), factor=1 / 16)
        x = net.build.add("scale", net.build.add(kind, x), factor=32.0)
        return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)

    return make


def upsample_bilinear(net: Net) -> PackedModel:
    x = net.build.add("upsample_bilinear", net.layer(net.start, CHANNELS, CHANNELS), factor=3)
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS, factor=3)


def multiply_mean(net: Net) -> PackedModel:
    """Channel attention: a gate of the mean over all pixels."""
    x = net.layer(net.start, CHANNELS, CHANNELS)
    gate = net.build.add("scale", net.build.add("mean", x), factor=1 / 16)
    gate = net.build.add("sigmoid", net.layer(gate, CHANNELS, CHANNELS, size=1, quantized=False, gain=0.1))
    return net.finish(net.layer(net.build.add("multiply", x, gate), CHANNELS, CHANNELS), CHANNELS)


def layer_norm(net: Net, **attributes: float) -> PackedModel:
    """Between linear layers."""
    net.tensor("norm.weight", net.rng.uniform(10, 30, CHANNELS))
    net.tensor("norm.bias", net.rng.uniform(-5, 5, CHANNELS))
    x = net.layer(net.start, CHANNELS, CHANNELS, size=0)
    x = net.build.add("layer_norm", x, name="norm", **attributes)
    return net.finish(net.layer(x, CHANNELS, CHANNELS, size=0), CHANNELS)


def affine(weights: list[float]) -> Callable[[Net], PackedModel]:
    def make(net: Net) -> PackedModel:
        net.tensor("each.weight", np.array(weights * CHANNELS)[:CHANNELS])
        net.tensor("each.bias", net.rng.integers(-40, 40, CHANNELS) / 4)
        x = net.build.add("affine", net.layer(net.start, CHANNELS, CHANNELS), name="each")
        return net.finish(net.layer(x, CHANNELS, CHANNELS, size=0), CHANNELS)

    return make


def group_norm(net: Net) -> PackedModel:
    """In two groups, of a mean and an eps that matter."""
    net.tensor("norm.weight", net.rng.uniform(10, 30, CHANNELS))
    net.tensor("norm.bias", net.rng.uniform(-5, 5, CHANNELS))
    x = net.build.add("scale", net.layer(net.start, CHANNELS, CHANNELS), factor=1 / 256)
    x = net.build.add("group_norm", x, name="norm", groups=2, eps=0.01)
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)


def layer_norm_of_pools(net: Net) -> PackedModel:
    """Between linear layers, on maps of 2 x 2 pixels."""
    net.tensor("norm.weight", net.rng.uniform(10, 30, CHANNELS))
    net.tensor("norm.bias", net.rng.uniform(-5, 5, CHANNELS))
    x = net.layer(net.build.add("max_pool", net.start, factor=3), CHANNELS, CHANNELS, size=0)
    x = net.build.add("layer_norm", x, name="norm")
    x = net.build.add("resize_nearest", net.layer(x, CHANNELS, CHANNELS, size=0), factor=1)
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)


def attention(quantized: bool, shift: int) -> Callable[[Net], PackedModel]:
    """In windows of 4 pixels, on a picture continued to whole windows."""

    def make(net: Net) -> PackedModel:
        net.tensor("attn.relative_position_bias_table", net.rng.standard_normal((49, 2)))
        x = net.build.add("scale", net.layer(net.start, CHANNELS, CHANNELS), factor=1 / 32)
        x = net.layer(x, CHANNELS, 3 * CHANNELS, size=0, quantized=False)
        if quantized:
            for role in OPERANDS:
                channels, signed = (16, False) if role == "mixture.left" else (CHANNELS, True)
                step = np.array([2.0 ** -(net.bits if role == "mixture.left" else net.bits - 3)], np.float32)
                tau = (net.rng.standard_normal(channels) * step / 4).astype(np.float32)
                name = f"attn.{role}"
                net.operands[name] = Operand(name, channels, net.bits, step, tau, signed)
        how = {"heads": 2, "window": 4, "shift": shift, "quantized": int(quantized)}
        x = net.build.add("window_attention", x, name="attn", **how)
        x = net.build.add("scale", x, factor=64.0)
        return net.finish(net.layer(x, CHANNELS, CHANNELS, size=0), CHANNELS, multiple=4)

    return make


def overlapping_attention(net: Net) -> PackedModel:
    """From windows of 4 pixels to 8 x 8 pixels around them."""
    net.tensor("attn.relative_position_bias_table", net.rng.standard_normal((121, 2)))
    x = net.build.add("scale", net.layer(net.start, CHANNELS, CHANNELS), factor=1 / 32)
    x = net.layer(x, CHANNELS, 3 * CHANNELS, size=0, quantized=False)
    how = {"heads": 2, "window": 4, "shift": 0, "quantized": 0, "overlap": 2}
    x = net.build.add("scale", net.build.add("window_attention", x, name="attn", **how), factor=64.0)
    return net.finish(net.layer(x, CHANNELS, CHANNELS, size=0), CHANNELS, multiple=4)


def rectangle_attention(
    window: tuple[int, int],
    shift: tuple[int, int],
    multiple: int,
    *,
    cosine: bool = False,
    small: bool = False,
    **more: int,
) -> Callable[[Net], PackedModel]:
    """In windows of a map that zeros, or other numbers, continue, of values of one layer in parts;
    `small` of half the picture's size."""

    def make(net: Net) -> PackedModel:
        positions = (2 * window[0] - 1) * (2 * window[1] - 1)
        if "pairs" in more:
            net.tensor("attn.pair_bias_table", net.rng.standard_normal(((window[0] * window[1]) ** 2, 2)))
        else:
            net.tensor("attn.relative_position_bias_table", net.rng.standard_normal((positions, 2)))
        for name in ("attn.beyond_k", "attn.beyond_v") if "beyond" in more else ():
            net.tensor(name, net.rng.standard_normal(CHANNELS))
        x = net.build.add("scale", net.layer(net.start, CHANNELS, CHANNELS), factor=1 / 32)
        if small:
            x = net.build.add("max_pool", x, factor=2)
        q, k, v = parts_of_a_layer(net, x)
        how = {"heads": 2, "window": list(window), "shift": list(shift), "multiple": multiple, **more}
        if cosine:
            how["cosine"] = 1
            net.tensor("attn.temperature", np.array([4.0, 10.0]))
        x = net.build.add("rectangle_attention", q, k, v, name="attn", **how)
        x = net.build.add("scale", x, factor=64.0)
        if small:
            x = net.build.add("upsample_nearest", x, factor=2)
        return net.finish(net.layer(x, CHANNELS, CHANNELS, size=0), CHANNELS, multiple=2 if small else 1)

    return make


def parts_of_a_layer(net: Net, x: int) -> list[int]:
    """q, k and v."""
    x = net.layer(x, CHANNELS, 3 * CHANNELS, size=0, quantized=False)
    ends = range(0, 3 * CHANNELS, CHANNELS)
    return [net.build.add("slice", x, start=start, stop=start + CHANNELS) for start in ends]


def channel_attention(net: Net) -> PackedModel:
    """Of values of one layer in parts."""
    net.tensor("attn.temperature", np.array([4.0, -2.0]))
    x = net.build.add("scale", net.layer(net.start, CHANNELS, CHANNELS), factor=1 / 32)
    x = net.build.add("channel_attention", *parts_of_a_layer(net, x), name="attn", heads=2)
    x = net.build.add("scale", x, factor=64.0)
    return net.finish(net.layer(x, CHANNELS, CHANNELS, size=0), CHANNELS)


def channel_attention_of_pools(net: Net) -> PackedModel:
    """On maps of 2 x 2 pixels, of convolutions of codes."""
    net.tensor("attn.temperature", np.array([4.0, -2.0]))
    small = net.build.add("max_pool", net.start, factor=3)
    q, k, v = (net.layer(small, CHANNELS, CHANNELS) for _ in range(3))
    x = net.build.add("channel_attention", q, k, v, name="attn", heads=2)
    x = net.build.add("resize_nearest", x, factor=1)
    return net.finish(net.layer(x, CHANNELS, CHANNELS), CHANNELS)


def global_attention(factor: int) -> Callable[[Net], PackedModel]:
    """To pools of the map, of values of other channels than keys."""

    def make(net: Net) -> PackedModel:
        x = net.build.add("scale", net.layer(net.start, CHANNELS, CHANNELS), factor=1 / 32)
        small = net.build.add("max_pool", x, factor=factor)
        q = net.layer(x, CHANNELS, CHANNELS // 2, size=0, quantized=False, gain=2.0)
        k = net.layer(small, CHANNELS, CHANNELS // 2, size=0, quantized=False, gain=2.0)
        v = net.layer(small, CHANNELS, CHANNELS, quantized=False)
        x = net.build.add(
            "scale", net.build.add("global_attention", q, k, v, name="attn", heads=2), factor=64.0
        )
        return net.finish(net.layer(x, CHANNELS, CHANNELS, size=0), CHANNELS)

    return make


LAYERS = [
    conv,
    conv_1x1,
    conv_5x5,
    conv_in_groups,
    more_outputs_in_groups,
    layer_in_groups_used_again,
    linear,
    relu,
    nothing_between,
    relu_behind_linear,
]
EXACT = [
    leaky_relu,
    prelu,
    pixel_shuffle,
    pixel_unshuffle,
    upsample_nearest,
    max_pool_resize_nearest,
    pool_of_an_enlargement,
    add_subtract_scale,
    shortcut,
    around,
    concat_slice,
]
ROUNDING = {
    "base of pixels": base_of_pixels,
    "upsample_bilinear": upsample_bilinear,
    "multiply and mean": multiply_mean,
    "layer_norm": layer_norm,
    "layer_norm, other eps": lambda net: layer_norm(net, eps=30.0 / 64),
    "group_norm": group_norm,
    "affine": affine([0.5, -0.25, 1.5]),
    "one number for each channel": affine([1.0]),
    "layer_norm of pools": layer_norm_of_pools,
    "window_attention": attention(quantized=False, shift=0),
    "window_attention, shifted": attention(quantized=False, shift=2),
    "window_attention, overlapping": overlapping_attention,
    "window_attention of codes": attention(quantized=True, shift=0),
    "window_attention of codes, shifted": attention(quantized=True, shift=2),
    "rectangle_attention": rectangle_attention((2, 4), (0, 0), 4),
    "rectangle_attention, shifted": rectangle_attention((4, 2), (3, 1), 4),
    "rectangle_attention, of pairs": rectangle_attention((2, 4), (1, 0), 4, pairs=1, beyond=1),
    "rectangle_attention, one row": rectangle_attention((1, 6), (0, 2), 6),
    "rectangle_attention, one window": rectangle_attention((8, 8), (4, 4), 8),
    "rectangle_attention, cosine": rectangle_attention((2, 4), (1, 2), 8, cosine=True),
    "rectangle_attention of pools": rectangle_attention((2, 1), (1, 0), 4, small=True),
    "channel_attention": channel_attention,
    "channel_attention of pools": channel_attention_of_pools,
    "global_attention of pools": global_attention(2),
    "global_attention, one key of pools": global_attention(6),
    **{kind: rounding(kind) for kind in ("gelu", "sigmoid", "silu", "mish", "tanh")},
}


NOT_NATIVE = (
    "layer_norm",
    "group_norm",
    "affine",
    "mish",
    "rectangle_attention",
    "channel_attention",
    "global_attention",
)
NOT_NCNN = {"rectangle_attention": "takes windows", "channel_attention": "attends to channels"}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (7, 6, 3), np.uint8)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", LAYERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("turn", [0, *(pytest.param(n, marks=pytest.mark.integration) for n in (1, 2))])
def test_layers_of_all_bits_and_ranges_equal_the_definition(make, engine, turn, image) -> None:
    """Each number of bits with one range in a turn, another one for the next layer: one turn has
    every layer with all bits, and all bits with all ranges."""
    for bits in range(2, 9):
        seed = (bits + LAYERS.index(make) + turn) % len(RANGES)
        model = make(Net(bits=bits, range=RANGES[seed], seed=seed))
        check_structure(model)
        if "groups" in make.__name__ and engine.startswith("native"):
            with pytest.raises(InputError, match="groups"):
                ENGINES[engine](model, image)
            continue
        expected = definition.run(model, image, 1)
        assert expected.std() > 20
        got = ENGINES[engine](model, image)
        np.testing.assert_array_equal(got, expected, err_msg=f"{bits} bits, {RANGES[seed]}")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", EXACT, ids=lambda make: make.__name__)
def test_operations_that_round_nothing_equal_the_definition(make, engine, image) -> None:
    for bits in (2, 4, 8):
        model = make(Net(bits=bits, seed=bits))
        check_structure(model)
        if ("pool" in make.__name__ or make is pixel_unshuffle) and engine.startswith(("native", "ncnn")):
            lacks = r"cannot run this network, .*(MaxPool|PixelUnshuffle)|has no layer that shrinks maps"
            with pytest.raises(InputError, match=lacks):
                ENGINES[engine](model, image)
            continue
        expected = definition.run(model, image, 1)
        assert expected.std() > 20
        np.testing.assert_array_equal(ENGINES[engine](model, image), expected, err_msg=f"{bits} bits")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ROUNDING)
def test_operations_that_round_are_within_1_of_the_definition(kind, engine, image) -> None:
    if kind.startswith(NOT_NATIVE) and engine.startswith("native"):
        with pytest.raises(InputError, match=r"has no kernel|comes where its kernels have"):
            ENGINES[engine](ROUNDING[kind](Net()), image)
        return
    lacks = NOT_NCNN.get(kind.split(",")[0])
    if lacks and engine == "ncnn":
        with pytest.raises(InputError, match=f"ncnn: has no layer that {lacks}"):
            ENGINES[engine](ROUNDING[kind](Net()), image)
        return
    if kind.endswith("of pools") and engine == "ncnn":
        pytest.skip("ncnn shrinks no maps")
    if kind.startswith("window_attention") and engine.startswith(("native", "ncnn")):
        pytest.skip("the native engine has whole Swin layers only, ncnn no windows")
    for bits in (4, 8):
        model = ROUNDING[kind](Net(bits=bits, seed=bits))
        check_structure(model)
        expected = definition.run(model, image, 1)
        assert expected.std() > 20
        difference = np.abs(ENGINES[engine](model, image).astype(int) - expected)
        assert difference.max() <= 1
        assert (difference == 0).mean() >= 0.99


def test_every_kind_of_operation_is_tried() -> None:
    made = [make(Net()) for make in (*LAYERS, *EXACT, *ROUNDING.values())]
    tried = {op.kind for model in made for op in model.program.operations}
    assert tried == set(operations.KINDS)
