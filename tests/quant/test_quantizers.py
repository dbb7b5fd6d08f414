"""RLQ and LSQ compared with their slow reference."""

import pytest
import torch

from quantsr.quant import IntRange, QuantConv2d, QuantLinear, calibrate, get_quantizer
from tests.reference import rlq

METHODS = [("RLQ", True), ("LSQ", False)]


def activation(method, bits, channels, x, channel_dim=1):
    q = get_quantizer(method).activation(bits=bits, channels=channels, channel_dim=channel_dim)
    q.observe(x)
    return q


@pytest.mark.parametrize(("method", "soft"), METHODS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_activation_forward_is_exact_and_gradients_agree(method, soft, bits, signed):
    torch.manual_seed(bits)
    x = torch.randn(2, 5, 6, 7) * 3
    x = x if signed else x.relu()
    q = activation(method, bits, 5, x)
    assert bool(q.signed) is signed
    if method == "RLQ":
        q.tau.data.normal_(0, 0.3)
    upstream = torch.randn_like(x)

    a = x.clone().requires_grad_()
    out = q(a)
    out.backward(upstream)

    b, tau, v = (t.detach().clone().requires_grad_() for t in (x, q.tau.view(1, -1, 1, 1), q.step))
    r = IntRange.of(bits, signed)
    expected = rlq.fake_quantize(b, tau, v, r.qmin, r.qmax, soft=soft, numel=x.numel())
    expected.backward(upstream)

    assert torch.equal(out, expected)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(q.step.grad, v.grad, rtol=1e-4, atol=1e-6)
    if method == "RLQ":
        torch.testing.assert_close(q.tau.grad, tau.grad.flatten(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "soft"), METHODS)
def test_activation_gradients_in_double_precision(method, soft):
    torch.manual_seed(1)
    x = torch.randn(3, 4, 9, dtype=torch.float64) * 2
    q = activation(method, 4, 9, x, channel_dim=-1).double()
    upstream = torch.randn_like(x)
    a = x.clone().requires_grad_()
    q(a).backward(upstream)
    b, v = x.clone().requires_grad_(), q.step.detach().clone().requires_grad_()
    rlq.fake_quantize(b, q.tau.detach(), v, -8, 7, soft=soft, numel=x.numel()).backward(upstream)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(q.step.grad, v.grad, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("method", "soft"), METHODS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_forward_is_exact_and_gradients_agree(method, soft, granularity, bits):
    torch.manual_seed(bits)
    w = torch.randn(6, 5, 3, 3)
    q = get_quantizer(method).weight(bits=bits, out_channels=6, granularity=granularity)
    q.calibrate(w)
    upstream = torch.randn_like(w)
    a = w.clone().requires_grad_()
    out = q(a)
    out.backward(upstream)

    v = q.step.detach().clone().requires_grad_()
    b = w.clone().requires_grad_()
    r = IntRange.of(bits, True)
    view = v if granularity == "tensor" else v.view(-1, 1, 1, 1)
    expected = rlq.fake_quantize(b, None, view, r.qmin, r.qmax, soft=soft, numel=w.numel() // v.numel())
    expected.backward(upstream)

    assert torch.equal(out, expected)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(q.step.grad, v.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_never_more_than_two_to_the_bits_codes(bits):
    torch.manual_seed(0)
    x = torch.randn(4, 8, 32, 32) * 50
    q = activation("RLQ", bits, 8, x)
    q.tau.data.normal_(0, 5)
    w = get_quantizer("RLQ").weight(bits=bits, out_channels=64, granularity="tensor")
    weight = torch.randn(64, 64, 3, 3)
    w.calibrate(weight)
    assert q(x).unique().numel() <= 2**bits
    assert w(weight).unique().numel() <= 2**bits
    assert w.codes(weight).unique().numel() <= 2**bits


def test_values_are_codes_times_step():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 5)
    q = activation("RLQ", 4, 8, x)
    assert torch.equal(q.codes(x).float() * q.step, q(x))


def test_the_initial_step_is_that_of_the_paper():
    x = torch.rand(2, 3, 4, 4)
    q = activation("RLQ", 4, 3, x)
    assert not q.signed
    assert q.step.item() == pytest.approx(2 * x.mean().item() / 15**0.5, rel=1e-6)
    q = activation("RLQ", 4, 3, x - 0.5)
    assert q.signed
    assert q.step.item() == pytest.approx(2 * (x - 0.5).abs().mean().item() / 7**0.5, rel=1e-6)


def test_statistics_of_several_batches_are_averaged():
    q = get_quantizer("RLQ").activation(bits=4, channels=1, channel_dim=1)
    q.observe(torch.ones(1, 1, 2, 2))
    q.observe(3 * torch.ones(1, 1, 2, 2))
    assert q.step.item() == pytest.approx(2 * 2 / 15**0.5)


def test_the_sign_is_restored_from_a_checkpoint():
    q = activation("RLQ", 4, 3, torch.rand(1, 3, 4, 4))
    other = get_quantizer("RLQ").activation(bits=4, channels=3, channel_dim=1)
    other.load_state_dict(q.state_dict())
    assert other.range == IntRange.of(4, signed=False)
    assert other.is_calibrated


@pytest.mark.parametrize(
    "layer", [QuantConv2d(3, 4, 3, nbits_w=4, nbits_a=4), QuantLinear(3, 4, nbits_w=4, nbits_a=4)]
)
def test_an_uncalibrated_layer_refuses_to_run(layer):
    with pytest.raises(RuntimeError, match="not calibrated"):
        layer(torch.rand(1, 3, 8, 3))


def test_a_step_below_zero_can_recover():
    x = torch.randn(1, 2, 4, 4)
    q = activation("RLQ", 4, 2, x)
    q.step.data.fill_(-0.1)
    out = q(x)
    assert out.isfinite().all()
    out.backward(torch.randn_like(out))
    assert q.step.grad.abs().item() > 0


def test_unknown_quantizer_lists_the_known():
    with pytest.raises(ValueError, match=r"choose from Bounds, DDTB, DoReFa, LSQ, .*, RLQ"):
        get_quantizer("RQL")


def test_calibration_needs_batches_and_reaches_every_layer():
    layer = QuantConv2d(3, 4, 3, nbits_w=4, nbits_a=4)
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate(layer, [])
    net = torch.nn.Sequential(layer)
    net.add_module("unused", torch.nn.Identity())
    net.unused.hidden = QuantConv2d(3, 4, 3, nbits_w=4, nbits_a=4)
    with pytest.raises(ValueError, match=r"unused\.hidden"):
        calibrate(net, [torch.rand(1, 3, 8, 8)])


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_calibration_for_least_error_reduces_the_error(granularity):
    torch.manual_seed(0)
    x = torch.relu(torch.randn(2, 6, 24, 24) - 1)
    found = {}
    for steps in ("mean", "mse"):
        layer = QuantConv2d(6, 5, 3, nbits_w=4, nbits_a=4, weight_granularity=granularity)
        torch.nn.init.trunc_normal_(layer.weight, std=0.1)
        layer.weight.data[0] *= 8
        calibrate(layer, [x[:1], x[1:]], steps)
        weight = layer.weight_quantizer(layer.weight) - layer.weight
        found[steps] = weight.square().mean(), (layer.input_quantizer(x) - x).square().mean()
        assert layer.weight_quantizer.step.shape == ((5,) if granularity == "channel" else (1,))
    assert found["mse"][0] <= found["mean"][0]
    assert found["mse"][1] < 0.7 * found["mean"][1]


def test_the_search_samples_all_channels_of_a_large_batch():
    """One channel of 60 has the large values."""
    x = torch.rand(20_000, 60) * 0.1
    x[:, 7] *= 100
    layer = QuantLinear(60, 4, nbits_w=4, nbits_a=4)
    calibrate(layer, [x], "mse")
    errors = (layer.input_quantizer(x) - x).square().mean()
    assert errors < 0.5 * x.square().mean()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero_point", [0, 1, 2])
def test_asymmetric_rlq_is_rlq_with_codes_from_minus_its_zero_point(bits, zero_point):
    torch.manual_seed(bits)
    x = torch.randn(2, 5, 6, 7) * 3
    q = get_quantizer("RLQAsymmetric").activation(bits=bits, channels=5, channel_dim=1)
    q.fix_zero_point(zero_point)
    q.observe(x)
    q.tau.data.normal_(0, 0.3)
    upstream = torch.randn_like(x)
    a = x.clone().requires_grad_()
    out = q(a)
    out.backward(upstream)
    b, tau, v = (t.detach().clone().requires_grad_() for t in (x, q.tau.view(1, -1, 1, 1), q.step))
    codes = (-zero_point, 2**bits - 1 - zero_point)
    expected = rlq.fake_quantize(b, tau, v, *codes, soft=True, numel=x.numel())
    expected.backward(upstream)
    assert torch.equal(out, expected)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(q.step.grad, v.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(q.tau.grad, tau.grad.flatten(), rtol=1e-5, atol=1e-5)
    assert q.integers().spec.centred.bounds == codes


@pytest.mark.parametrize(("low", "high", "zero_point"), [(0.0, 2.0, 0), (-1.0, 1.0, 8), (-0.5, 7.0, 1)])
def test_extremes_decide_the_zero_point(low, high, zero_point):
    q = get_quantizer("RLQAsymmetric").activation(bits=4, channels=1, channel_dim=1)
    q.observe(torch.linspace(low, high, 9).view(1, 1, 3, 3))
    assert int(q.zero_point) == zero_point
    other = get_quantizer("RLQAsymmetric").activation(bits=4, channels=1, channel_dim=1)
    other.load_state_dict(q.state_dict())
    assert other.spec().range == q.spec().range == IntRange(-zero_point, 15 - zero_point)
