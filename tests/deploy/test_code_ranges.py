"""Codes that do not fill their bits, and codes with a zero point: the same in training's
evaluation, files and engines, borders included."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from quantsr.deploy import convert
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.engines import select
from quantsr.deploy.module import to_module
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.engine.evaluate import evaluating, network_upscaler
from quantsr.errors import InputError
from quantsr.quant import QUANTIZER_REGISTRY, QuantConv2d, Quantizer, calibrate, quantizer_names
from quantsr.quant.rlq_quantizer import RLQActivation, RLQWeight
from quantsr.ranges import IntRange
from quantsr.trained_files.packed_header import FORMAT_VERSION, FORMAT_WITHOUT_RANGES
from tests.deploy import codes as by
from tests.deploy.native import needs_kernels
from tests.deploy.quantsr_t import trained
from tests.deploy.quantsr_t import upscaled as swin_upscaled
from tests.deploy.test_exactness import BITS, BITS_AND_DEPTHS, DEPTHS, assert_same_picture, network
from tests.deploy.test_packing import assert_same


class NarrowWeight(RLQWeight):
    """Without the lowest code: as many below 0 as above."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.range = IntRange(-self.range.qmax, self.range.qmax)


class NarrowActivation(RLQActivation):
    """Signed as the weights; unsigned without the highest code."""

    def _sync(self) -> None:
        super()._sync()
        low, high = self.range.bounds
        self.range = IntRange(-high, high) if low < 0 else IntRange(0, high - 1)


class OtherActivation(RLQActivation):
    """A range of codes that a test sets."""

    codes = IntRange(0, 1)

    def _sync(self) -> None:
        super()._sync()
        self.range = self.codes


@pytest.fixture(autouse=True)
def quantizers(monkeypatch):
    """Quantizers of one's own, registered during a test."""
    quantizer_names()
    monkeypatch.setattr(QUANTIZER_REGISTRY, "_obj_map", dict(QUANTIZER_REGISTRY._obj_map))
    for name, activation in (("Narrow", NarrowActivation), ("Other", OtherActivation)):
        QUANTIZER_REGISTRY._obj_map[name] = type(
            name, (Quantizer,), {"weight": NarrowWeight, "activation": activation}
        )


ON_CODES = ["Narrow", "MinMax", "Percentile"]
METHODS = [*ON_CODES, "LSQPlus"]
ENGINES: dict[str, Callable[..., tuple[dict[str, np.ndarray], np.ndarray]]] = {
    "openvino": by.codes_of_openvino,
    "onnxruntime": by.codes_of_onnx,
    "torch": by.codes_of_module,
    "native": by.codes_of_native,
}


def network_of(method: str, bits: int, **options):
    """Weights of at most 4 bits, whose transforms are bytes in the native engine."""
    net = network(quantizer=method, nbits_w=min(bits, 4), nbits_a=bits, **options)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(".beta"):  # off the multiples of the step, as training moves it
                quantizer = net.get_submodule(name.removesuffix(".beta"))
                parameter.add_(0.3 * quantizer.step)
    if method in ("MinMax", "Percentile"):
        largest = 2**bits - 1
        # as of lopsided inputs
        zero_points = itertools.cycle([largest // 3, largest - largest // 3])
        for block in net.body:
            quantizer, zero_point = block.conv1.input_quantizer, next(zero_points)
            codes = IntRange(-zero_point, largest - zero_point)
            quantizer.load_integers(step=quantizer.step, tau=quantizer.no_tau, codes=codes)
    return net


def packed(method: str, bits: int, tmp_path, **options) -> PackedModel:
    """A converted network as its file gives it back."""
    model = convert.convert(network_of(method, bits, **options), head_tail_bits=32)
    packing.save(model, tmp_path / "net.safetensors")
    loaded = packing.load(tmp_path / "net.safetensors")
    assert_same(loaded, model)
    return loaded


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", ON_CODES)
def test_the_integer_reference_has_the_codes_of_trainings_evaluation(method, bits, picture):
    net = network_of(method, bits)
    model = convert.convert(net, head_tail_bits=32)
    whole = {IntRange.of(bits, signed).bounds for signed in (True, False)}
    assert {layer.act_range for layer in model.layers.values() if layer.bits_a == bits} - whole
    for depth in model.header.depths:
        expected, wanted = by.codes_of_training(net, picture, depth)
        got, upscaled = by.codes_of_reference(model, picture, depth)
        by.assert_equal_codes(got, expected)
        assert_same_picture(upscaled, wanted)


@pytest.fixture(scope="module")
def referenced(picture, tmp_path_factory):
    """A function that gives a network as its file gives it back, and the reference's codes and
    picture of it: made once for all engines."""

    @cache
    def make(method: str, bits: int, depth: int):
        model = packed(method, bits, tmp_path_factory.mktemp("packed"))
        return model, *by.codes_of_reference(model, picture, depth)

    return make


@pytest.mark.parametrize(("bits", "depth"), BITS_AND_DEPTHS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "engine", ["openvino", "onnxruntime", "torch", pytest.param("native", marks=needs_kernels)]
)
def test_every_engine_has_the_codes_of_the_reference(engine, method, bits, depth, picture, referenced):
    if engine in select.PACKAGES:
        pytest.importorskip(engine)
    model, expected, wanted = referenced(method, bits, depth)
    assert model.header.depths == DEPTHS
    got, upscaled = ENGINES[engine](model, picture, depth)
    by.assert_equal_codes(got, expected)
    assert_same_picture(upscaled, wanted)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "engine", ["openvino", "onnxruntime", "torch", pytest.param("native", marks=needs_kernels)]
)
def test_every_engine_has_the_codes_of_the_reference_at_8_bits(engine, method, picture, referenced):
    if engine in select.PACKAGES:
        pytest.importorskip(engine)
    model, expected, _ = referenced(method, 8, 4)
    got, _ = ENGINES[engine](model, picture, 4)
    by.assert_equal_codes(got, expected)


@pytest.mark.parametrize("bits", BITS)
def test_of_lsq_plus_only_what_the_padding_stands_for_differs(bits):
    """Its offset is no multiple of the step: the rest is in the bias, and zero padding stands for
    it."""
    net = network_of("LSQPlus", bits, num_block=1, depths=[1])
    model = convert.convert(net, head_tail_bits=32)
    rng = np.random.default_rng(0)
    image = rng.integers(60, 200, (24, 26, 3)).astype(np.uint8)
    seen = {}
    for name in ("body.0.conv1", "body.0.conv2"):
        layer = net.get_submodule(name)

        def record(module, inputs, name=name):
            quantizer = module.input_quantizer
            assert isinstance(module, QuantConv2d)
            seen[name] = (quantizer.codes(inputs[0]) - quantizer.integers().spec.zero_point)[0].numpy()

        layer.register_forward_pre_hook(record)
    with evaluating(net):
        (expected,) = network_upscaler(net, (1,), scale=2)(image)
    got, upscaled = by.codes_of_reference(model, image, 1)
    # Before the first padding, and a pixel inside of it: but for values that float32 puts on either
    # side of a tie.
    assert (got["body.0.conv1"] != seen["body.0.conv1"]).mean() < 1e-3
    inner = (slice(None), slice(1, -1), slice(1, -1))
    assert (got["body.0.conv2"] != seen["body.0.conv2"])[inner].mean() < 2e-3
    difference = np.abs(upscaled.astype(int) - expected)[12:-12, 12:-12]  # what no padding reaches
    assert (difference <= 1).mean() >= 0.999
    for name, layer in model.layers.items():
        if layer.bits_a == bits and layer.act_tau is not None:
            assert np.abs(layer.act_tau).max() <= 0.51 * layer.act_step[0], name


@pytest.mark.parametrize("method", METHODS)
def test_a_packed_network_is_the_same_one_as_a_module_and_back(method, tmp_path):
    model = packed(method, 4, tmp_path)
    again = convert.convert(to_module(model), head_tail_bits=32, provenance=model.header.provenance)
    assert_same(model, again)


def test_only_files_with_ranges_have_the_new_version(tmp_path):
    for method, version in (("RLQ", FORMAT_WITHOUT_RANGES), ("Narrow", FORMAT_VERSION)):
        assert packed(method, 4, tmp_path).header.format_version == version
    assert (FORMAT_WITHOUT_RANGES, FORMAT_VERSION) == (2, 3)


def test_a_restricted_network_keeps_its_ranges(picture, tmp_path):
    from quantsr.deploy.packed import restrict

    net = network_of("MinMax", 4)
    with torch.no_grad():
        for unit in net.units():
            unit.shortcut.fill_(1.0)  # dropped blocks then change no constant
    model = convert.convert(net, head_tail_bits=32)
    small = restrict.restrict(model, 2)
    packing.save(small, tmp_path / "net.safetensors")
    small = packing.load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(
        integer_reference.run(small, picture, 2), integer_reference.run(model, picture, 2)
    )


def test_operands_of_lsq_plus_have_their_offset_rounded_to_steps(picture):
    """There is no bias to take the rest: all levels move by it."""
    options = {"quantizer": "LSQPlus", "quantize_attention": True, "num_block": 1, "depths": [1]}
    net = trained(**options)
    model = convert.convert(net, head_tail_bits=32)
    for name, operand in model.operands.items():
        quantizer = net.get_submodule(name).input_quantizer
        zero_point = round(-float(quantizer.beta.detach()) / float(quantizer.step.detach()))
        assert operand.tau is None
        assert operand.range == (-zero_point, 15 - zero_point)
    assert any(operand.range[0] < 0 for operand in model.operands.values())
    module = to_module(model)
    difference = np.abs(
        swin_upscaled(module, picture, 1).astype(int) - integer_reference.run(model, picture, 1)
    )
    assert (difference <= 1).mean() >= 0.999


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [IntRange(-8, 8), IntRange(1, 9), IntRange(0, 16)])
def test_codes_that_the_bits_do_not_hold_or_without_0_are_refused(codes, monkeypatch):
    monkeypatch.setattr(OtherActivation, "codes", codes)
    net = network(quantizer="Other", nbits_w=4, nbits_a=4)
    with pytest.raises(
        InputError, match=f"conv1: quantizer Other has input codes from {codes.qmin} to"
    ) as caught:
        convert.convert(net, head_tail_bits=32)
    assert "\n" not in str(caught.value)


def test_weight_codes_that_the_bits_do_not_hold_are_refused(monkeypatch):
    monkeypatch.setattr(QUANTIZER_REGISTRY._obj_map["Narrow"], "weight", RLQWeight)
    net = network(quantizer="Narrow", nbits_w=4, nbits_a=4)
    net.body[1].conv2.weight_quantizer.range = IntRange(-9, 9)
    with torch.no_grad():
        net.body[1].conv2.weight_quantizer.step.mul_(0.2)
    with pytest.raises(
        InputError, match=r"body.1.conv2: RLQWeight has no integer codes of 4 bits: they go from -9 to 9"
    ):
        convert.convert(net, head_tail_bits=32)


def test_a_file_whose_codes_its_quantizer_does_not_give_is_no_module():
    model = convert.convert(network_of("Narrow", 4), head_tail_bits=32)
    name = "body.0.conv1"
    for changes, why in (
        ({"act_limits": (-5, 9)}, "NarrowActivation of 4 bits has no codes from -5 to 9"),
        ({"weight": np.full_like(model.layers[name].weight, -8)}, "Narrow does not give its weight codes"),
    ):
        layers = {**model.layers, name: replace(model.layers[name], **changes)}
        with pytest.raises(InputError, match=f"its header does not describe its network .*{why}") as caught:
            to_module(replace(model, layers=layers), "net.safetensors")
        assert "\n" not in str(caught.value)


def test_calibrated_layers_say_their_sign():
    net = network(quantizer="MinMax", nbits_w=4, nbits_a=4)
    calibrate(net, [torch.rand(1, 3, 8, 8)])
    model = convert.convert(net, head_tail_bits=32)
    signs = {name: layer.act_signed for name, layer in model.layers.items() if layer.bits_a == 4}
    assert signs == {name: name.endswith("conv1") for name in signs}
