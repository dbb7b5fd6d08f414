"""QuantSR-T in the native engine: the integer reference's picture on every instruction set,
protocol, size and number of threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from quantsr import Upscaler
from quantsr.archs.constructors import build_network
from quantsr.deploy.convert import convert
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.engines.reference import ReferenceOps
from quantsr.deploy.folded import FoldedConv, FoldedLinear, Norm, Requantize
from quantsr.deploy.native.engine import NativeEngine
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.layout import lay_out
from quantsr.errors import InputError
from quantsr.quant import calibrate
from tests.deploy.codes import codes_of_reference, with_zero_points
from tests.deploy.native import (
    ISAS,
    assert_left_to_others,
    assert_within_memory,
    needs_kernels,
    picture,
    some_of,
)
from tests.deploy.programs import Written, swin
from tests.deploy.quantsr_t import PROTOCOLS, small_model
from tests.deploy.test_swin_integer import ROOM, Recording, run

SIZES = [(18, 21), (1, 1), (1, 9), (4, 4), (5, 2), (8, 12), (3, 37)]


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """LayerNorm, softmax and GELU are summed in another order, so a code next to a tie may flip;
    later layers see that."""
    assert got.shape == expected.shape
    difference = np.abs(got.astype(int) - expected)
    assert (difference <= 1).mean() >= 0.999, difference.max()
    assert difference.max() <= 3


@needs_kernels
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_references_picture(protocol: str, bits: int) -> None:
    # One RSTB: deep random networks, unlike trained ones, amplify a flipped code on its way to the
    # output.
    model = small_model(bits_w=bits, bits_a=bits, num_block=1, **PROTOCOLS[protocol])
    image = picture(21, 27)
    expected = integer_reference.run(model, image)
    assert expected.std() > 20
    for isa in ISAS:
        assert_close(NativeEngine(model, 1, isa=isa, threads=2).run(image[None])[0], expected)


class WithRoom(Recording):
    """Beside the codes, how near a value lies to a tie between two of them, in units of codes."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__(grid)
        self.room = 0.5

    def _see(self, units: torch.Tensor) -> None:
        self.room = min(self.room, float((units - units.floor() - 0.5).abs().min()))

    def norm(self, op: Norm, x: torch.Tensor) -> torch.Tensor:
        if op.limits is not None:
            self._see(ReferenceOps.norm(self, replace(op, limits=None), x))
        return super().norm(op, x)

    def linear(self, op: FoldedLinear, x: torch.Tensor) -> torch.Tensor:
        if op.codes_out is not None:
            self._see(ReferenceOps.linear(self, replace(op, codes_out=None), x))
        return super().linear(op, x)

    def conv(self, op: FoldedConv, x: torch.Tensor) -> torch.Tensor:
        self._keep(op.name, x, op.codes_in)  # a map; what requantizes may see tokens in another order
        return super().conv(op, x)

    def requantize(self, op: Requantize, x: torch.Tensor) -> torch.Tensor:
        self._see(x * self._along(op.multiplier, x) + self._along(op.shift, x))
        return super().requantize(op, x)

    def requantize_last(self, op: Requantize, x: torch.Tensor) -> torch.Tensor:
        self._see(x * self.constant(op.multiplier) + self.constant(op.shift))
        return super().requantize_last(op, x)


def codes_with_room(model: PackedModel, image: np.ndarray) -> dict[str, np.ndarray] | None:
    """The reference's codes of a picture, whose sides are multiples of the window; None where a
    value is so near a tie that the order of float32 sums in LayerNorm, softmax and GELU may decide
    about it."""
    ops = WithRoom(image.shape[:2])
    with torch.inference_mode():
        run(ops, lay_out(fold(model)).steps, {0: torch.from_numpy(image).permute(2, 0, 1)[None].float()})
    return {name: codes[0] for name, codes in ops.codes.items()} if ops.room >= ROOM else None


@needs_kernels
@pytest.mark.parametrize("zero_points", [False, True], ids=["two's complement", "zero points"])
@pytest.mark.parametrize("attention", [False, True], ids=["float attention", "quantized attention"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_of_2_to_4_bits_of_linear_layers_are_the_references_bit_for_bit(
    bits: int, attention: bool, zero_points: bool
) -> None:
    """Of an RSTB, on pictures of which no value is so near a tie that the order of float32 sums in
    LayerNorm, softmax and GELU decides."""
    model = small_model(
        num_block=1, bits_w=bits, bits_a=bits, quantize_attention=attention, head_tail_bits=32
    )
    model = with_zero_points(model) if zero_points else model
    assert_codes(model, bits, 2 * 4)  # two layers, of each what qkv, proj, fc1 and fc2 read


def assert_codes(model: PackedModel, bits: int, layers: int, size: tuple[int, int] = (8, 12)) -> None:
    """Those that so many layers of a network at depth 1 read are the reference's."""
    compared = 0
    for seed in range(12):
        image = picture(*size, seed)
        expected = codes_with_room(model, image)
        if expected is None:
            continue
        for isa in ISAS:
            got = NativeEngine(model, 1, isa=isa, threads=2).codes(image)
            assert len(got) == layers
            for name, codes in got.items():
                assert len(np.unique(codes)) >= 2 ** (bits - 1)
                np.testing.assert_array_equal(codes, expected[name], err_msg=f"{isa}: {name}")
        compared += 1
        if compared == 3:
            return
    raise AssertionError("of too few pictures are all values far from ties")


@needs_kernels
@pytest.mark.parametrize("zero_points", [False, True], ids=["two's complement", "zero points"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_of_three_convolutions_are_the_references_bit_for_bit(bits: int, zero_points: bool) -> None:
    """What lies between them, sums times a multiplier and a leaky ReLU, is exact as well."""
    shape = {"embed_dim": 20, "num_heads": 4, "resi_connection": "3conv", "quantize_conv": True}
    model = small_model(num_block=1, bits_w=bits, bits_a=bits, head_tail_bits=32, **shape)
    layers = dict(model.layers)
    for name, size in (("layers.0.conv.2", 1 / 4), ("layers.0.conv.4", 1 / 16)):  # of their inputs
        layers[name] = replace(layers[name], act_step=size * layers[name].act_step)
    model = replace(model, layers=layers)
    assert_codes(with_zero_points(model) if zero_points else model, bits, 2 * 4 + 3, (4, 8))


@needs_kernels
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("bits", "head_tail_bits", "upsampler"),
    some_of(5, [2, 4, 8], [8, 16, 32], ["pixelshuffledirect", "pixelshuffle"]),
)
def test_three_convolutions_give_the_references_picture(
    protocol: str, bits: int, head_tail_bits: int, upsampler: str
) -> None:
    options = {"head_tail_bits": head_tail_bits, "upsampler": upsampler, **PROTOCOLS[protocol]}
    model = small_model(num_block=1, bits_w=bits, bits_a=bits, resi_connection="3conv", **options)
    image = picture(21, 27)
    expected = integer_reference.run(model, image)
    assert expected.std() > 10
    for isa in ISAS:
        assert_close(NativeEngine(model, 1, isa=isa, threads=2).run(image[None])[0], expected)


@needs_kernels
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_points_give_the_references_picture(bits: int, protocol: str) -> None:
    model = with_zero_points(small_model(bits_w=bits, bits_a=bits, num_block=1, **PROTOCOLS[protocol]))
    image = picture(21, 27)
    expected = integer_reference.run(model, image)
    assert expected.std() > 20
    for isa in ISAS:
        assert_close(NativeEngine(model, 1, isa=isa, threads=2).run(image[None])[0], expected)


@needs_kernels
@pytest.mark.parametrize(
    "options",
    [
        {"embed_dim": 60, "num_heads": 6, "window_size": 8},
        {"embed_dim": 36, "num_heads": 4, "window_size": 8, "quantize_attention": True},
        {"embed_dim": 16, "num_heads": 1, "window_size": 12},
        {"embed_dim": 64, "num_heads": 2, "window_size": 4, "weight_granularity": "channel"},
        {"embed_dim": 60, "num_heads": 6, "window_size": 8, "resi_connection": "3conv"},
        {"embed_dim": 240, "num_heads": 8, "window_size": 8, "resi_connection": "3conv"},
    ],
    ids=lambda options: f"{options['embed_dim']} channels, {options.get('resi_connection', '1conv')}",
)
def test_channels_heads_and_windows(options: dict) -> None:
    """Vectors of tokens with and without a rest, channels of a head with and without one, channels
    padded to 16 and not. (Rounding inputs to 16-bit steps in another place flips codes, which some
    of these networks amplify in every engine: here all outside the layers is float.)"""
    model = small_model(num_block=1, head_tail_bits=32, **options)
    image = picture(27, 18)
    expected = integer_reference.run(model, image)
    for isa in ISAS:
        assert_close(NativeEngine(model, 1, isa=isa, threads=2).run(image[None])[0], expected)


@needs_kernels
@pytest.mark.parametrize(("scale", "head_tail_bits"), some_of(2, [2, 3, 4], [8, 16, 32]))
def test_every_size_and_scale(scale: int, head_tail_bits: int) -> None:
    model = small_model(scale=scale, num_block=1, head_tail_bits=head_tail_bits)
    engine = NativeEngine(model, 1, threads=2)
    for height, width in SIZES:
        image = picture(height, width)
        assert_close(engine.run(image[None])[0], integer_reference.run(model, image))


@needs_kernels
@pytest.mark.parametrize("unit", ["rstb", "layer"])
@pytest.mark.parametrize("resi_connection", ["1conv", "3conv"])
def test_every_depth(unit: str, resi_connection: str) -> None:
    model = small_model(num_block=2, dqa_unit=unit, head_tail_bits=32, resi_connection=resi_connection)
    image = picture(18, 21)
    for depth in model.header.depths:
        assert_close(
            NativeEngine(model, depth).run(image[None])[0], integer_reference.run(model, image, depth)
        )


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("resi_connection", ["1conv", "3conv"])
def test_threads_and_neighbours_change_nothing(isa: str, resi_connection: str) -> None:
    model = small_model(resi_connection=resi_connection, quantize_conv=resi_connection == "3conv")
    images = np.stack([picture(13, 40, seed) for seed in range(3)])
    expected = NativeEngine(model, 2, isa=isa, threads=1).run(images)
    for threads in (2, 5):
        engine = NativeEngine(model, 2, isa=isa, threads=threads)
        np.testing.assert_array_equal(engine.run(images), expected)
        np.testing.assert_array_equal(engine.run(images[1:2])[0], expected[1])


@needs_kernels
def test_sixteen_bits_are_kept() -> None:
    model = small_model(num_block=1)
    image = picture(12, 14).astype(np.uint16) * 257
    result = Upscaler(model, "native")(image)
    difference = np.abs(result.astype(int) - Upscaler(model, "torch")(image))
    assert (difference <= 300).mean() >= 0.999
    assert len(np.unique(result % 257)) > 100


def wide(net: Written, x: int, name: str, size: int) -> int:
    return net.conv(x, name, 16, 16, size)


def narrow(net: Written, x: int, name: str) -> int:
    y = net.add("leaky_relu", net.conv(x, f"{name}.0", 4, 16), slope=0.2)
    return net.conv(net.add("leaky_relu", net.conv(y, f"{name}.2", 4, 4, 1), slope=0.2), f"{name}.4", 16, 4)


def gated(net: Written, x: int, name: str) -> int:
    y = net.add("relu", net.quantized(x, f"{name}.conv", 32, 16, bits=4))
    gate = net.add("sigmoid", net.conv(net.add("mean", y), f"{name}.gate", 32, 32, 1))
    return net.add("slice", net.add("multiply", y, gate), start=8, stop=24)


@needs_kernels
@pytest.mark.parametrize(
    "closing",
    [narrow, gated, lambda net, x, name: wide(net, x, name, 1), lambda net, x, name: wide(net, x, name, 5)],
    ids=["three convolutions", "channel attention", "1x1", "5x5"],
)
@pytest.mark.parametrize("scale", [1, 2])
def test_groups_and_body_end_in_any_operations_of_sweeps(closing, scale: int) -> None:
    model, image = swin(closing=closing, shifts=(0, 4), scale=scale), picture(19, 23)
    expected = integer_reference.run(model, image)
    assert expected.std() > 20
    for isa in ISAS:
        engine = NativeEngine(model, 1, isa=isa, threads=2)
        assert_close(engine.run(image[None])[0], expected)
        assert_within_memory(engine, isa, (16, 24))


@needs_kernels
@pytest.mark.parametrize(
    ("model", "why"),
    [
        (small_model(embed_dim=18, num_heads=2), "18 channels are not a multiple of 4"),
        (small_model(window_size=6), "windows of 6x6 are not of a multiple of 4"),
        (swin(closing=lambda net, x, name: wide(net, x, name, 7)), "closing has a kernel of 7 x 7"),
        (swin(closing=lambda net, x, name: net.add("mish", x)), "it has no kernel for Activation mish"),
        (swin(closing=lambda net, x, name: x), "Binary add comes where its kernels have a convolution"),
        (small_model(first_bits=8), "conv_first is quantized"),
        (small_model(bits_w=32), "attn.qkv.q is not integer"),
        (small_model(bits_w=32, bits_a=32), "its linear layers are not integer"),
        (small_model(mlp_ratio=1.5), "18 outputs, not multiples of 4"),
    ],
)
def test_what_it_cannot_run_is_said_and_left_to_others(model, why: str) -> None:
    assert_left_to_others(model, why)


def swinir(
    head_tail_bits: int,
    upsampler: str,
    scale: int,
    rules: Mapping[str, int] | None = None,
    resi_connection: str = "1conv",
) -> PackedModel:
    """BasicSR's SwinIR, whose layers behind the groups have 8-bit inputs as those inside."""
    torch.manual_seed(3)
    shape = {"window_size": 4, "depths": [2, 1], "embed_dim": 12, "num_heads": [3, 3], "mlp_ratio": 2}
    kind = {"type": "SwinIR", "upsampler": upsampler, "resi_connection": resi_connection}
    network = {"upscale": scale, "img_size": 8, **kind, **shape}
    bits = {"layers.*": 4, "conv_after_body*": 8, **(rules or {})}
    net = build_network("Quantized", {"network": network, "rules": bits, "quantizer": "RLQAsymmetric"})
    for name, parameter in net.named_parameters():
        if "norm" in name or name.endswith(".bias"):
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    calibrate(net.eval(), [torch.rand(1, 3, 16, 16)], "mse")
    return convert(net, calib=[picture(24, 24)], head_tail_bits=head_tail_bits)


SWINIRS = {
    "lightweight": swinir(8, "pixelshuffledirect", 2),
    "lightweight, float tail": swinir(32, "pixelshuffledirect", 2),
    "classical": swinir(8, "pixelshuffle", 4),
    "classical, float tail": swinir(32, "pixelshuffle", 2),
    "classical, tail of 4 bits": swinir(8, "pixelshuffle", 4, {"conv_before*": 4, "upsample.*": 4}),
    "real world": swinir(8, "nearest+conv", 4, {"conv_hr": 4}),
    "denoising": swinir(8, "", 1),
    "real world, 3conv": swinir(8, "nearest+conv", 4, {"conv_hr": 4}, "3conv"),
    "classical, float tail, 3conv": swinir(32, "pixelshuffle", 2, None, "3conv"),
    "denoising, 3conv": swinir(8, "", 1, None, "3conv"),
}


@needs_kernels
@pytest.mark.parametrize("model", SWINIRS.values(), ids=SWINIRS)
def test_basicsrs_swinir_gives_the_references_picture(model: PackedModel) -> None:
    image = picture(9, 14)
    assert next(x for name, x in model.layers.items() if name.startswith("conv_after_body")).bits_a == 8
    expected = integer_reference.run(model, image)
    assert expected.std() > 3
    for isa in ISAS:
        assert_close(NativeEngine(model, 1, isa=isa, threads=2).run(image[None])[0], expected)


@needs_kernels
def test_the_kernels_of_what_follows_swin_layers_stay_within_their_memory() -> None:
    for isa in ISAS:
        for name in ("real world", "real world, 3conv"):
            engine = NativeEngine(SWINIRS[name], 1, isa=isa)
            assert_within_memory(engine, isa, (8, 12))
            assert not engine.in_sweeps


@needs_kernels
def test_codes_behind_swin_layers_are_those_of_the_reference() -> None:
    model, image = SWINIRS["classical, tail of 4 bits"], picture(8, 12)
    expected, _ = codes_of_reference(model, image, 1)
    for isa in ISAS:
        found = NativeEngine(model, 1, isa=isa).codes(image)
        for name in ("conv_before_upsample.0", "upsample.0", "upsample.2"):
            assert (found[name] != expected[name]).mean() < 0.01, name


@needs_kernels
def test_sums_of_two_products_stay_within_16_bits_on_avx2() -> None:
    if "avx2" not in ISAS:
        pytest.skip("no AVX2 here")
    model = small_model(num_block=1, bits_w=8, bits_a=8)
    layer = model.layers["layers.0.blocks.1.mlp.fc1"]
    layers = {**model.layers, layer.name: replace(layer, weight=np.full_like(layer.weight, -128))}
    with pytest.raises(InputError, match=r"blocks.1.mlp.fc1 do not fit in this processor's 16 bits"):
        NativeEngine(replace(model, layers=layers), 1, isa="avx2")


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_tail_bits", [8, 32])
@pytest.mark.parametrize("size", [(4, 4), (4, 20), (16, 12)])
@pytest.mark.parametrize("resi_connection", ["1conv", "3conv"])
def test_the_kernels_stay_within_their_memory(
    isa: str, size: tuple[int, int], head_tail_bits: int, resi_connection: str
) -> None:
    model = small_model(num_block=1, head_tail_bits=head_tail_bits, resi_connection=resi_connection)
    assert_within_memory(NativeEngine(model, 1, isa=isa), isa, size)
