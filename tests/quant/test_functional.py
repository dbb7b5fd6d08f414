"""Integer ranges and the pure functions of quantization."""

import math

import pytest
import torch

from quantsr.quant import IntRange, functional, kernels
from quantsr.ranges import check_bits
from tests.reference import rlq


@pytest.mark.parametrize(
    ("bits", "signed", "bounds"),
    [
        (2, True, (-2, 1)),
        (4, True, (-8, 7)),
        (8, True, (-128, 127)),
        (2, False, (0, 3)),
        (8, False, (0, 255)),
    ],
)
def test_int_range(bits, signed, bounds):
    r = IntRange.of(bits, signed)
    assert (r.qmin, r.qmax) == bounds
    assert r.levels == 2**bits


@pytest.mark.parametrize("bits", [0, 1, 9, 32])
def test_int_range_refuses_other_bits(bits):
    with pytest.raises(ValueError, match=r"bits must be 2\.\.8"):
        IntRange.of(bits, signed=True)


def test_sixteen_bits_are_for_wide_ranges():
    assert IntRange.of(16, signed=True, wide=True).bounds == (-32768, 32767)
    assert IntRange.of(16, signed=False, wide=True).bounds == (0, 65535)
    assert IntRange.of(8, signed=True, wide=True) == IntRange.of(8, signed=True)
    for bits, wide in ((16, False), (9, True), (17, True), (1, True)):
        with pytest.raises(ValueError, match=r"bits must be 2\.\.8"):
            IntRange.of(bits, signed=True, wide=wide)


def test_check_bits_names_the_option():
    assert check_bits(32) == 32
    with pytest.raises(ValueError, match="nbits_w must be"):
        check_bits(16, "nbits_w")


def test_quantize_rounds_half_to_even_and_clips():
    x = torch.tensor([-9.0, -2.5, -1.5, 0.5, 1.5, 2.4, 9.0])
    assert functional.quantize(x, torch.tensor(1.0), -2, 3).tolist() == [-2, -2, -2, 0, 2, 2, 3]


def test_fake_quantize_is_dequantized_codes_to_the_last_bit():
    x, step = torch.randn(1000) * 10, torch.tensor(0.37)
    codes = functional.quantize(x, step, -8, 7)
    assert torch.equal(functional.fake_quantize(x, step, -8, 7), functional.dequantize(codes, step))


def test_soft_round_equals_its_input_at_multiples_of_one_half():
    u = torch.arange(-8, 8, 0.5, dtype=torch.float64)
    torch.testing.assert_close(functional.soft_round(u), u, rtol=0, atol=1e-15)


def test_soft_round_gradient_is_its_derivative():
    u = torch.linspace(-7.9, 7.9, 997, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(rlq.phi(u).sum(), u)
    torch.testing.assert_close(functional.soft_round_grad(u.detach()), expected, rtol=1e-12, atol=0)


def test_soft_round_gradient_has_mean_one_and_the_stated_ends():
    u = (torch.arange(100000, dtype=torch.float64) + 0.5) / 100000
    assert functional.soft_round_grad(u).mean().item() == pytest.approx(1.0, abs=1e-9)
    ends = functional.soft_round_grad(torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([0.851, 1.082], abs=5e-4)


def test_polynomial_slope_is_the_formula_to_fp32_rounding():
    u = torch.linspace(-40, 40, 200001)
    exact = functional.soft_round_grad(u.double())
    torch.testing.assert_close(kernels.soft_round_slope(u).double(), exact, rtol=3e-7, atol=0)
    assert torch.equal(kernels.soft_round_slope(u.double()), exact)


def test_initial_step_and_gradient_scale():
    assert functional.initial_step(torch.tensor(3.0), 7).item() == pytest.approx(6 / math.sqrt(7))
    assert functional.step_gradient_scale(100, 7) == pytest.approx(1 / math.sqrt(700))


def test_the_searched_step_is_the_candidate_of_least_squared_error():
    torch.manual_seed(0)
    x = torch.relu(torch.randn(3, 4000)) * torch.tensor([[1.0], [5.0], [0.1]])
    x[:, ::2] = 0
    step = functional.initial_step(x.mean(1), 15)
    found = functional.least_error_step(functional.step_errors(x, step, 0, 15), step)
    for row, first, best in zip(x.double(), step.double(), found.double(), strict=True):
        errors = []
        for factor in functional.STEP_FACTORS:
            v = first * factor
            codes = [min(max(round(float(value / v)), 0), 15) for value in row]
            errors.append(float((torch.tensor(codes) * v - row).square().mean()))
        k = min(range(len(errors)), key=errors.__getitem__)
        assert float(best) == pytest.approx(float(first) * functional.STEP_FACTORS[k], rel=1e-5)
        assert errors[k] < 0.5 * errors[functional.STEP_FACTORS.index(1.0)]
