"""Conversion: codes, steps and folded constants against the training network on the same
pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from quantsr.archs.quantsr_c_arch import QuantSR_C
from quantsr.deploy import calibrate8, convert
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.module import to_module
from quantsr.deploy.packed import packing, restrict
from quantsr.deploy.packed.model import PackedModel
from quantsr.errors import InputError
from quantsr.quant import QuantConv2d, calibrate, manifest
from tests.deploy.conftest import dyadic_model, small_model
from tests.deploy.test_packing import assert_same


def trained(**options) -> QuantSR_C:
    """A small calibrated network whose taus, biases and shortcuts have left their start."""
    torch.manual_seed(3)
    net = QuantSR_C(**{"num_feat": 8, "num_block": 4, "upscale": 2, "nbits_w": 4, "nbits_a": 4, **options})
    calibrate(net, [torch.rand(2, 3, 16, 16)])
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith((".tau", ".bias")):
                parameter.add_(torch.randn_like(parameter) * 2)
            if name.endswith(".shortcut"):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    net.rank_blocks()
    return net.eval()


def upscaled(net: QuantSR_C, picture: np.ndarray, depth: int) -> np.ndarray:
    x = torch.tensor(picture).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        y = net(x, depth=depth)[0].clamp(0, 1).permute(1, 2, 0)
    return (y * 255).round().to(torch.uint8).numpy()


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """The design's bound: at least 99.9 % of the values within 1 of 255."""
    difference = np.abs(got.astype(int) - expected)
    assert expected.std() > 5
    assert (difference <= 1).mean() >= 0.999, difference.max()


@pytest.mark.parametrize(
    "options",
    [
        *({"nbits_w": bits, "nbits_a": bits} for bits in range(2, 9)),
        {"weight_granularity": "channel"},
        {"quantizer": "LSQ"},
        {"res_scale": 0.5, "img_range": 1.0},
        {"upscale": 3},
        {"upscale": 3, "upsampler": "pixelshuffledirect"},
        {"nbits_w": 32},
        {"nbits_a": 32},
        {"depth_rule": "released"},
    ],
    ids=str,
)
def test_integers_give_the_training_networks_picture(picture, options):
    net = trained(**options)
    model = convert.convert(net, head_tail_bits=32)
    assert model.header.depths == (4, 2, 1)
    for depth in model.header.depths:
        assert model.header.blocks_kept(depth) == net.blocks_kept(depth)
        assert_close(integer_reference.run(model, picture, depth), upscaled(net, picture, depth))


def test_codes_and_steps_are_those_of_training():
    net = trained()
    model = convert.convert(net, head_tail_bits=16)
    for name, module in net.named_modules():
        if isinstance(module, QuantConv2d):
            layer = model.layers[name]
            np.testing.assert_array_equal(layer.weight, module.weight_codes().numpy())
            np.testing.assert_array_equal(layer.act_step, module.input_quantizer.step.detach().numpy())
            np.testing.assert_array_equal(layer.act_tau, module.input_quantizer.tau.detach().numpy())
            assert layer.act_signed == bool(module.input_quantizer.signed)
    for ours, theirs in zip(model.manifest, manifest(net), strict=True):
        assert ours["name"] == theirs["name"]
        assert ours["shape"] == theirs["shape"]
        assert ours["bits_a"] == theirs["bits_a"]
        rest = 32 if ours["name"] == "conv_first" else 16
        assert ours["bits_w"] == (rest if theirs["bits_w"] == 32 else theirs["bits_w"])


def test_eight_bit_head_and_tail_are_close_to_float(picture):
    net = trained()
    model = convert.convert(net, head_tail_bits=8, calib=[picture], first_bits=8)
    assert all(layer.integer for layer in model.layers.values())
    full = upscaled(net, picture, 4).astype(float)
    error = np.sqrt(((integer_reference.run(model, picture, 4) - full) ** 2).mean())
    assert error < 1.5


def test_conv_first_reads_the_pixels_themselves(picture):
    # Inside the picture its 8-bit input costs nothing: only the weights are rounded.
    net = trained()
    model = convert.convert(net, head_tail_bits=8, calib=[picture], first_bits=8)
    x = torch.tensor(picture).permute(2, 0, 1)[None] / 255
    layer = model.layers["conv_first"]
    rounded = torch.from_numpy(layer.float_weight())
    with torch.no_grad():
        expected = torch.nn.functional.conv2d((x - net.mean) * 255, rounded, net.conv_first.bias, padding=1)[
            0
        ].numpy()
    from tests.reference import program as reference

    a = (picture.transpose(2, 0, 1) / 255 - np.reshape(model.header.rgb_mean, (3, 1, 1))) * 255
    got = reference.conv(layer, a)
    np.testing.assert_allclose(got[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=2e-3)
    half_a_pixel = 0.5 * np.abs(layer.float_weight()).sum((1, 2, 3)).max()
    assert np.abs(got - expected).max() <= half_a_pixel


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
def test_every_output_of_the_tail_has_a_step(picture, upsampler):
    model = convert.convert(trained(upsampler=upsampler), head_tail_bits=8, calib=[picture])
    tail = [x for n, x in model.layers.items() if n.startswith(("conv_after", "upsample", "conv_last"))]
    assert [layer.weight_step.size for layer in tail] == [len(layer.bias) for layer in tail]


def test_conv_first_stays_float_unless_asked(picture):
    net = trained()
    for first_bits in (8, 16, 32):
        model = convert.convert(net, head_tail_bits=8, calib=[picture], first_bits=first_bits)
        bits = [layer.bits_w for layer in model.layers.values() if not layer.name.startswith("body.")]
        assert bits == [first_bits, 8, 8, 8]
    assert convert.convert(net, head_tail_bits=8, calib=[picture]).layers["conv_first"].bits_w == 32


@pytest.mark.parametrize("head_tail_bits", [8, 16, 32])
def test_to_module_computes_the_same(picture, head_tail_bits):
    model = small_model(head_tail_bits=head_tail_bits, num_block=2)
    net = to_module(model)
    for depth in model.header.depths:
        assert_close(upscaled(net, picture, depth), integer_reference.run(model, picture, depth))


def test_to_module_and_convert_are_inverse():
    model = small_model(head_tail_bits=32, scale=3)
    again = convert.convert(to_module(model), head_tail_bits=32, provenance=model.header.provenance)
    assert_same(model, again)


def test_what_cannot_be_converted(picture):
    with pytest.raises(InputError, match="converted to 8 bits before"):
        convert.convert(to_module(small_model()), calib=[picture])
    with pytest.raises(InputError, match=r"has padding \(0, 0\)"):
        convert.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3)), head_tail_bits=32)
    net = QuantSR_C(num_feat=8, num_block=1, upscale=2)
    with pytest.raises(InputError, match="not calibrated"):
        convert.convert(net, head_tail_bits=32)
    with pytest.raises(InputError, match="--calib"):
        convert.convert(net)
    with pytest.raises(InputError, match=r"choose one of \[8, 16, 32\]"):
        convert.convert(net, head_tail_bits=4)
    with pytest.raises(InputError, match="first-bits: 4"):
        convert.convert(net, head_tail_bits=32, first_bits=4)
    with pytest.raises(InputError, match="3 channels"):
        convert.convert(QuantSR_C(num_in_ch=1, num_out_ch=1, rgb_mean=(0.5,)), head_tail_bits=32)


def test_unranked_networks_keep_full_depth_only():
    net = trained()
    net.ranking = None
    assert convert.convert(net, head_tail_bits=32).header.depths == (4,)


def test_weight_steps_are_those_of_the_largest_weights():
    weight = np.random.default_rng(0).standard_normal((5, 4, 3, 3)).astype(np.float32)
    weight[0, 0, 0, 0], weight[3] = -30, 0
    steps = calibrate8.choose_weight_steps(weight)
    np.testing.assert_array_equal(
        steps[[0, 1, 2, 4]], np.abs(weight[[0, 1, 2, 4]]).max((1, 2, 3)) / np.float32(127)
    )
    codes = calibrate8.quantize_weight(weight, steps)
    assert codes.dtype == np.int8
    assert codes[0, 0, 0, 0] == -127
    assert not codes[3].any()
    assert np.abs(codes * steps[:, None, None, None] - weight).max() < steps.max()


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (4, 3, 5, 5), (3, 4, 1, 1)])
def test_rounding_keeps_the_sum_of_every_kernel(shape):
    """Against the slow way: one weight after the other, the one that was rounded farthest away
    first."""
    rng = np.random.default_rng(1)
    weight = rng.uniform(-1, 1, shape).astype(np.float32)
    for steps in (np.array([0.01], np.float32), rng.uniform(0.01, 0.02, len(weight)).astype(np.float32)):
        codes = calibrate8.quantize_weight(weight, steps)
        scaled = weight / steps.reshape(-1, 1, 1, 1)
        for got, wanted in zip(codes.reshape(-1, *shape[2:]), scaled.reshape(-1, *shape[2:]), strict=True):
            slow = np.rint(wanted)
            while abs(off := np.rint((slow - wanted).sum())) > 0:
                farthest = np.argmax((slow - wanted) * np.sign(off))
                slow.flat[farthest] -= np.sign(off)
            np.testing.assert_array_equal(got, slow)
            assert abs((got - wanted).sum()) <= 0.5 + 1e-4
            assert np.abs(got - wanted).max() < 1


def test_input_steps():
    values = np.random.default_rng(0).standard_normal((2, 20_000)).astype(np.float32)
    values[0] *= 10
    values[:, 0] = 400, 100  # outliers
    peaks = np.array([400, 100], np.float32)
    choice = calibrate8.choose_input("layer", values, peaks)
    np.testing.assert_allclose(choice.equal, [1, 0.5])
    assert choice.step == pytest.approx(2 * 400 / 32767)
    assert 0 < choice.error < 1e-3
    assert "relative error" in str(choice)
    assert calibrate8.choose_input("layer", np.zeros((1, 4), np.float32), np.zeros(1, np.float32)).step == 1


# --- one depth as a network of its own ------------------------------------------------------------


@pytest.mark.parametrize("head_tail_bits", [8, 32])
def test_a_restricted_network_is_the_same_network(picture, head_tail_bits):
    model = dyadic_model(num_block=8, head_tail_bits=head_tail_bits, depths=(8, 4, 2))
    shortcuts = tuple(2.0 ** (i % 3 - 1) for i in range(8))
    for ranking in ((3, 5, 1, 6, 0, 2, 4, 7), (0, 1, 2, 3, 4, 5, 6, 7), (7, 6, 5, 4, 3, 2, 1, 0)):
        full = PackedModel(replace(model.header, ranking=ranking, shortcuts=shortcuts), model.layers)
        small = restrict.restrict(full, 4)
        assert small.header.depths == (4, 2)
        assert small.header.num_block == 4
        for depth in (4, 2):
            np.testing.assert_array_equal(
                integer_reference.run(small, picture, depth), integer_reference.run(full, picture, depth)
            )


def test_a_restricted_network_is_a_network(tmp_path, picture):
    small = restrict.restrict(small_model(num_block=8, depths=(8, 4, 2)), 4)
    packing.save(small, tmp_path / "net.safetensors")
    assert_same(small, packing.load(tmp_path / "net.safetensors"))
    net = to_module(small)
    assert net.depths == (4, 2)
    assert restrict.restrict(small, 4) is small


def test_restricting_under_the_released_rule_keeps_its_extra_block(picture):
    model = small_model(num_block=8, depths=(8, 4, 2))
    released = PackedModel(
        replace(model.header, arch={**model.header.arch, "depth_rule": "released"}), model.layers
    )
    small = restrict.restrict(released, 4)
    assert small.header.depths == (5, 3)
    assert_close(integer_reference.run(small, picture, 5), integer_reference.run(released, picture, 4))


def test_dropped_shortcuts_must_be_positive():
    model = small_model()
    bad = PackedModel(replace(model.header, shortcuts=(-1.0,) * 4, ranking=(0, 1, 2, 3)), model.layers)
    with pytest.raises(InputError, match="not positive"):
        restrict.restrict(bad, 1)
