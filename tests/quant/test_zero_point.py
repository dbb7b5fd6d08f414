"""Quantizers with a zero point, and layers on their codes, equal the reference exactly."""

import numpy as np
import pytest
import torch

from quantsr.quant import IntRange, get_quantizer
from quantsr.quant.autograd import (
    ActivationQuant,
    activation_codes,
    conv2d_on_codes,
    fake_quantize_activation,
    linear_on_codes,
    quantize_weight,
)
from quantsr.quant.layers import QuantConv2d
from tests.reference import zero_point as reference

BITS = pytest.mark.parametrize("bits", [2, 3, 4, 8])
STEP, STEP_W = 0.25, 0.125  # powers of two: every result is exact in float32, whatever its order of summation


def spec_of(bits: int, zero_point: int, channels: int, channel_dim: int = 1) -> ActivationQuant:
    tau = torch.arange(channels) / 16
    codes = IntRange.of(bits, signed=False)
    return ActivationQuant(tau, torch.tensor([STEP]), codes, False, channel_dim, zero_point)


def zero_points(bits: int) -> list[int]:
    """For a range that begins at 0, for one that ends there, and between."""
    largest = 2**bits - 1
    return [0, 1, largest // 2, largest]


def inputs(*shape: int, bits: int) -> torch.Tensor:
    """Multiples of 1/32 that exceed every range of this many bits; ties are among them."""
    generator, reach = torch.Generator().manual_seed(2), 10 * 2**bits
    return torch.randint(-reach, reach, shape, generator=generator) / 32


def weight_of(bits: int, *shape: int):
    weight = inputs(*shape, bits=bits) / 4
    return quantize_weight(weight, torch.tensor([STEP_W]), IntRange.of(bits, True), False, torch.float32)


def codes_of(x: torch.Tensor, spec: ActivationQuant) -> np.ndarray:
    """Codes by the reference; the channels are the first dimension of (C, ...) or the last of
    (M, C)."""
    taus = spec.tau.view(-1, *[1] * (x.dim() - 1)) if spec.channel_dim == 1 else spec.tau
    taus = taus.expand(x.shape)
    numbers = [
        reference.code(float(a), float(tau), STEP, spec.zero_point, *spec.range.bounds)
        for a, tau in zip(x.flatten(), taus.flatten(), strict=True)
    ]
    return np.array(numbers).reshape(x.shape)


@BITS
def test_a_convolution_pads_with_the_code_of_0(bits: int) -> None:
    x, weight, bias = inputs(1, 3, 5, 4, bits=bits), weight_of(bits, 2, 3, 3, 3), torch.tensor([0.5, -2.0])
    how = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    for zero_point in zero_points(bits):
        spec = spec_of(bits, zero_point, 3)
        codes = codes_of(x[0], spec)
        assert len(np.unique(codes)) > 2
        expected = reference.convolution(
            codes, weight.codes.int().numpy(), bias.numpy(), STEP, zero_point, STEP_W
        )
        got = conv2d_on_codes(x, spec, weight, bias, **how)[0]
        np.testing.assert_array_equal(got.numpy(), expected)


@BITS
def test_a_linear_layer_on_codes_is_the_reference(bits: int) -> None:
    x, weight, bias = inputs(6, 5, bits=bits), weight_of(bits, 3, 5), torch.tensor([0.5, -2.0, 1.0])
    for zero_point in zero_points(bits):
        spec = spec_of(bits, zero_point, 5, channel_dim=-1)
        expected = reference.linear(
            codes_of(x, spec), weight.codes.int().numpy(), bias.numpy(), STEP, zero_point, STEP_W
        )
        np.testing.assert_array_equal(linear_on_codes(x, spec, weight, bias).numpy(), expected)


@BITS
def test_codes_and_values_are_the_references(bits: int) -> None:
    x = inputs(1, 3, 5, 4, bits=bits)
    for zero_point in zero_points(bits):
        spec = spec_of(bits, zero_point, 3)
        codes = codes_of(x[0], spec)
        less = activation_codes(x, spec.tau, spec.step, spec, torch.float32)[0]
        np.testing.assert_array_equal(less.numpy() + zero_point, codes)
        np.testing.assert_array_equal(fake_quantize_activation(x, spec)[0], STEP * (codes - zero_point))


@BITS
@pytest.mark.parametrize("method", ["MinMax", "Percentile"])
def test_codes_are_unsigned_and_values_those_of_the_formula(method: str, bits: int) -> None:
    torch.manual_seed(bits)
    x = torch.randn(2, 3, 8, 8) * 20 + 7
    q = get_quantizer(method).activation(bits=bits, channels=3, channel_dim=1)
    q.observe(x)
    spec, codes = q.spec(), q.codes(x)
    assert spec.range == IntRange.of(bits, signed=False)
    assert 0 < spec.zero_point < spec.range.qmax
    assert (codes.min(), codes.max()) == (0, spec.range.qmax)
    assert torch.equal((codes - spec.zero_point) * q.step, q(x))
    # The values of these quantizers before they had codes, bit for bit.
    z, n = spec.zero_point, spec.range.qmax
    assert torch.equal(q(x), (x / q.step).clamp(-z, n - z).round() * q.step)


@BITS
def test_gradients_on_codes_are_those_on_values(bits: int) -> None:
    torch.manual_seed(0)
    layer = QuantConv2d(3, 4, 3, padding=1, nbits_w=bits, nbits_a=bits, quantizer="MinMax")
    x = torch.randn(2, 3, 6, 5) * 3 + 1
    layer.input_quantizer.observe(x)
    layer.weight_quantizer.calibrate(layer.weight)
    assert layer.input_quantizer.spec().zero_point > 0
    grads = []
    for on_codes in (True, False):
        a = x.clone().requires_grad_()
        weight = layer.quantized_weight()
        out = (
            layer(a, weight)
            if on_codes
            else torch.nn.functional.conv2d(layer.input_quantizer(a), weight.values, layer.bias, padding=1)
        )
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        grads.append(torch.autograd.grad(out, [a, layer.weight, layer.bias], upstream))
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


# --- LSQ+: a real offset becomes a zero point and a remainder -------------------------------------


def lsq_plus(bits: int, step: float, beta: float):
    q = get_quantizer("LSQPlus").activation(bits=bits, channels=3, channel_dim=1)
    q.observe(torch.randn(1, 3, 8, 8))
    with torch.no_grad():
        q.step.fill_(step)
        q.beta.fill_(beta)
    return q


@BITS
def test_the_offset_is_a_zero_point_and_at_most_half_a_step(bits: int) -> None:
    n = 2**bits - 1
    rng = np.random.default_rng(bits)
    for _ in range(20):
        step = float(rng.uniform(0.01, 3))
        q = lsq_plus(bits, step, -float(rng.uniform(0, n)) * step)
        assert q.spec() is None  # training runs on values
        spec, offset = q.integers()
        assert abs(offset) <= 0.5 * step * (1 + 1e-6)
        assert spec.tau[0].item() == -offset
        assert offset - spec.zero_point * q.step.item() == pytest.approx(q.beta.item(), abs=1e-6 * n * step)
        x = torch.randn(1, 3, 16, 16) * n * step / 2
        codes = activation_codes(x, spec.tau, spec.step, spec, torch.float32) + spec.zero_point
        # Except values next to a tie, which float32 may round to either side.
        assert (codes.to(torch.int16) == q.codes(x)).float().mean() > 0.99
        values = fake_quantize_activation(x, spec) + offset
        same = codes.to(torch.int16) == q.codes(x)
        torch.testing.assert_close(values[same], q(x)[same], rtol=0, atol=1e-5 * n * step)


def test_an_offset_of_whole_steps_leaves_no_remainder() -> None:
    q = lsq_plus(4, 0.5, -3.0)
    spec, offset = q.integers()
    assert (spec.zero_point, offset) == (6, 0)
    x = inputs(1, 3, 5, 4, bits=4)
    assert torch.equal(fake_quantize_activation(x, spec), q(x))


@pytest.mark.parametrize("beta", [0.7, -9.0])
def test_an_offset_beyond_the_levels_keeps_0_among_them(beta: float) -> None:
    q = lsq_plus(4, 0.5, beta)
    spec, offset = q.integers()
    assert spec.zero_point == (0 if beta > 0 else 15)
    assert offset == pytest.approx(beta + 0.5 * spec.zero_point)


def test_loaded_integers_stay_in_a_checkpoint() -> None:
    spec, _ = lsq_plus(4, 0.5, -2.8).integers()
    q = lsq_plus(4, 1.0, 1.0)
    assert "zero_point" not in q.state_dict()  # as in earlier checkpoints
    q.load_integers(step=spec.step.detach(), tau=spec.tau.detach(), codes=spec.centred)
    x = inputs(1, 3, 5, 4, bits=4)
    expected = fake_quantize_activation(x, spec)
    other = lsq_plus(4, 2.0, 2.0)
    other.load_state_dict(q.state_dict())
    for quantizer in (q, other):
        assert torch.equal(quantizer(x), expected)
        assert quantizer.spec().centred == spec.centred
    loss = q(x.requires_grad_()).sum()
    loss.backward()
    assert q.beta.grad is not None
    other.load_state_dict(lsq_plus(4, 0.5, -2.8).state_dict())
    assert other.spec() is None


@pytest.mark.parametrize("method", ["RLQ", "RLQAsymmetric", "LSQ", "PAMS", "MinMax", "Percentile", "LSQPlus"])
def test_codes_that_a_method_does_not_have_are_refused(method: str) -> None:
    q = get_quantizer(method).activation(bits=4, channels=3, channel_dim=1)
    step, no_tau = torch.tensor([0.5]), torch.zeros(3)
    with pytest.raises(ValueError, match="of 4 bits has no codes from -3 to 3"):
        q.load_integers(step=step, tau=no_tau, codes=IntRange(-3, 3))
    if not method.startswith("RLQ"):
        with pytest.raises(ValueError, match="with tau"):
            q.load_integers(step=step, tau=torch.tensor([0.0, 1.0, 2.0]), codes=IntRange(0, 15))
    q.load_integers(step=step, tau=no_tau, codes=IntRange(0, 15))
    assert q.is_calibrated
    assert q.spec().centred == IntRange(0, 15)
