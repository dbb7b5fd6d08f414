"""Every registered method in small networks: training, depths, checkpoints, export."""

import copy
from functools import cache

import numpy as np
import pytest
import torch

import quantsr
from quantsr import cli
from quantsr.archs import QuantSR_C, QuantSR_T
from quantsr.deploy import convert
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.module import to_module
from quantsr.engine.network_file import network_file
from quantsr.errors import InputError
from quantsr.quant import (
    QUANTIZER_REGISTRY,
    QuantConv2d,
    calibrate,
    layer_steps,
    manifest,
    quantizer_names,
    step_magnitudes,
    step_parameters,
)
from quantsr.trained_files import checkpoint

LEARNED = {
    "Bounds": {"weight_quantizer.step", "input_quantizer.lower", "input_quantizer.upper"},
    "DDTB": {"input_quantizer.lower", "input_quantizer.upper"},
    "DoReFa": set(),
    "LSQ": {"weight_quantizer.step", "input_quantizer.step"},
    "LSQPlus": {"weight_quantizer.step", "input_quantizer.step", "input_quantizer.beta"},
    "MinMax": set(),
    "ODM": {"weight_quantizer.gamma", "input_quantizer.lower", "input_quantizer.upper"},
    "PACT": {"input_quantizer.step"},
    "PAMS": {"input_quantizer.step"},
    "Percentile": set(),
    "RBD": {
        "weight_quantizer.step",
        "weight_quantizer.bit_scale",
        "weight_quantizer.bit_offset",
        "input_quantizer.step",
        "input_quantizer.tau",
    },
    "RLQ": {"weight_quantizer.step", "input_quantizer.step", "input_quantizer.tau"},
    "RLQAsymmetric": {"weight_quantizer.step", "input_quantizer.step", "input_quantizer.tau"},
}
METHODS = sorted(LEARNED)
KINDS = ["C", "T"]
every_method = pytest.mark.parametrize("method", METHODS)
both_kinds = pytest.mark.parametrize("kind", KINDS)


def network(kind: str, method: str, bits: int = 2):
    torch.manual_seed(0)
    common = {"upscale": 2, "nbits_w": bits, "nbits_a": bits, "quantizer": method}
    if kind == "C":
        return QuantSR_C(num_feat=8, num_block=4, **common)
    shape = {"embed_dim": 12, "num_block": 4, "layers_per_block": 2, "num_heads": 3, "window_size": 4}
    return QuantSR_T(**shape, quantize_attention=True, quantize_conv=True, **common)


@cache
def calibrated_once(kind: str, method: str, bits: int):
    net = network(kind, method, bits)
    calibrate(net, [torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)], "mse")
    net.rank_blocks()
    return net


def calibrated(kind: str, method: str, bits: int = 2):
    """A copy, which a test may change."""
    net = copy.deepcopy(calibrated_once(kind, method, bits))
    torch.manual_seed(1)  # whether it was made before or not
    return net


def test_the_methods_here_are_those_registered():
    assert quantizer_names() == METHODS
    assert set(METHODS) == set(QUANTIZER_REGISTRY.keys())


@every_method
@both_kinds
def test_an_uncalibrated_network_refuses_to_run(kind, method):
    with pytest.raises(RuntimeError, match=r"not calibrated; call quantsr\.quant\.calibrate"):
        network(kind, method)(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("kind", "amp"),  # as unit tests each kind and each arithmetic once
    [
        ("C", True),
        ("T", False),
        *(pytest.param(*x, marks=pytest.mark.integration) for x in (("C", False), ("T", True))),
    ],
    ids=["C-bf16", "T-fp32", "C-fp32", "T-bf16"],
)
@every_method
def test_training_changes_the_learned_parameters(kind, method, amp):
    net = calibrated(kind, method)
    learned = step_parameters(net)
    assert {name.split(".", name.count(".") - 1)[-1] for name in learned} == LEARNED[method]
    assert set(step_magnitudes(net)) == set(learned)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, eps=1e-15)
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            outputs = net(x, depth=net.depths)
        loss = sum((out.float() - y).abs().mean() for out in outputs)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        optimizer.step()
    assert loss.isfinite()
    still = {name for name, parameter in net.named_parameters() if torch.equal(parameter, before[name])}
    # Where no value is clipped, PACT's bound and LSQ+'s offset have no gradient.
    idle = {name for name, p in net.named_parameters() if not p.grad.any()} & set(learned)
    if method not in ("PACT", "LSQPlus"):
        idle = set()
    assert still <= idle
    assert len(idle) <= len(learned) / 4
    for depth in net.depths:
        with torch.inference_mode():
            assert net(x, depth=depth).isfinite().all()


@every_method
@both_kinds
def test_eight_bits_change_little(kind, method):
    """A wrong bound, offset or padding would give a larger difference."""
    net = calibrated(kind, method, 8)
    exact = network(kind, method, 32)
    exact.load_state_dict(net.state_dict(), strict=False)
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        out, wanted = net(x), exact(x)
    assert 0 < (out - wanted).abs().mean() < 0.05 * wanted.std()


@every_method
@both_kinds
def test_depths_in_one_pass_equal_one_by_one(kind, method):
    net = calibrated(kind, method)
    x = torch.rand(2, 3, 8, 8)
    for depth, out in zip(net.depths, net(x, depth=net.depths), strict=True):
        assert torch.equal(out, net(x, depth=depth))


@every_method
@both_kinds
def test_a_checkpoint_gives_the_same_network(kind, method, tmp_path):
    net = calibrated(kind, method).eval()
    checkpoint.save(tmp_path / "net.pth", network_file(net, None, iteration=1))
    loaded = quantsr.load(tmp_path / "net.pth")
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))
    assert manifest(loaded) == manifest(net)
    assert {r["quantizer"] for r in manifest(net) if min(r["bits_w"], r["bits_a"]) < 32} == {method}
    assert layer_steps(loaded) == layer_steps(net)


@every_method
def test_resuming_from_a_state_equals_uninterrupted_training(method):
    def train(net, optimizer, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            loss = (net(torch.rand(1, 3, 8, 8)) - torch.rand(1, 3, 16, 16)).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    net = calibrated("C", method)
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    train(net, adam, [1])
    state, moments = copy.deepcopy(net.state_dict()), copy.deepcopy(adam.state_dict())
    train(net, adam, [2, 3])
    other = network("C", method)
    other.load_state_dict(state)
    adam = torch.optim.Adam(other.parameters(), 1e-3)
    adam.load_state_dict(moments)
    train(other, adam, [2, 3])
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@every_method
def test_a_convolution_on_codes_equals_the_one_on_values(method, granularity):
    layer = QuantConv2d(
        6, 5, 3, padding=1, nbits_w=3, nbits_a=4, quantizer=method, weight_granularity=granularity
    )
    for x in (torch.randn(2, 6, 9, 7), torch.randn(2, 6, 9, 7).relu()):
        calibrate(layer, [x])
        out = layer(x)
        values = torch.nn.functional.conv2d(
            layer.input_quantizer(x), layer.weight_quantizer(layer.weight), layer.bias, padding=1
        )
        torch.testing.assert_close(out, values, rtol=1e-5, atol=1e-5)


# --- export ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("method", ["PAMS", "MinMax", "Percentile", "DDTB", "ODM", "RBD"])
def test_the_integer_reference_is_within_one_level_of_the_network(method, granularity, bits):
    torch.manual_seed(3)
    options = {"nbits_w": bits, "nbits_a": bits, "weight_granularity": granularity, "quantizer": method}
    net = QuantSR_C(num_feat=8, num_block=4, upscale=2, **options)
    calibrate(net, [torch.rand(2, 3, 16, 16)], "mse")
    net.rank_blocks()
    model = convert.convert(net.eval(), head_tail_bits=32)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    for depth in model.header.depths:
        with torch.no_grad():
            x = torch.tensor(picture).permute(2, 0, 1)[None] / 255  # (1, 3, h, w)
            y = net(x, depth=depth)[0].clamp(0, 1).permute(1, 2, 0)  # (2 * h, 2 * w, 3)
        wanted = (y * 255).round().to(torch.uint8).numpy()
        assert np.abs(integer_reference.run(model, picture, depth).astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("method", ["DDTB", "ODM", "RBD"])
@both_kinds
def test_packed_and_trained_networks_make_the_same_picture(kind, method):
    net = calibrated(kind, method, 4).eval()
    model = convert.convert(net, head_tail_bits=32)
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    x = torch.tensor(picture).permute(2, 0, 1)[None] / 255  # (1, 3, h, w)
    wanted = integer_reference.run(model, picture, net.depths[0])
    for trained in (net, to_module(model)):
        with torch.no_grad():
            y = trained(x)[0].clamp(0, 1).permute(1, 2, 0)  # (2 * h, 2 * w, 3)
        assert np.array_equal((y * 255).round().to(torch.uint8).numpy(), wanted)


@pytest.mark.parametrize("method", ["DoReFa", "PACT"])
@both_kinds
def test_quantizers_without_integer_codes_are_refused_by_conversion(kind, method):
    with pytest.raises(InputError, match="no integer") as caught:
        convert.convert(calibrated(kind, method), head_tail_bits=32)
    assert "\n" not in str(caught.value)


def test_export_reports_them_in_one_line(tmp_path, capsys):
    net = calibrated("C", "PACT")
    checkpoint.save(tmp_path / "net.pth", network_file(net, None, iteration=1))
    arguments = ["export", "-m", str(tmp_path / "net.pth"), "-o", str(tmp_path / "net.safetensors")]
    assert cli.main([*arguments, "--head-tail-bits", "32", "--no-parity"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "body.0.conv1: DoReFaWeight has no integer codes of 2 bits" in error
    assert not (tmp_path / "net.safetensors").exists()
