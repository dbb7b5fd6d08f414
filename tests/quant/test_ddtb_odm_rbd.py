"""DDTB, ODM and RBD, compared with references one number at a time."""

import pytest
import torch

from quantsr.quant import IntRange, get_quantizer, quantizers
from quantsr.quant.functional import step_gradient_scale
from quantsr.quant.quantizers import step_magnitudes
from tests.quant.test_baselines import activation, assert_close, columns, features, run
from tests.reference import baselines as reference

BITS = pytest.mark.parametrize("bits", [2, 3, 4, 8])
SIGNED = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
GRANULARITY = pytest.mark.parametrize("granularity", ["tensor", "channel"])


def bounded(bits: int, x: torch.Tensor, low: float | None = None, high: float | None = None):
    """DDTB's quantizer of activations, calibrated on ``x``, or with these bounds."""
    q = activation("DDTB", bits, x)
    if low is not None:
        q.lower.data.fill_(low / q.intervals)
        q.upper.data.fill_(high / q.intervals)
    return q


# --- learned bounds -------------------------------------------------------------------------------


@BITS
@SIGNED
def test_bounds_start_at_percentiles(bits, signed):
    x = features(signed).float().double()
    q = bounded(bits, x)
    low, high = (reference.percentile(x.flatten().tolist(), share) for share in (0.01, 0.99))
    n = 2**bits - 1
    assert q.lower.item() * n == pytest.approx(min(low, 0.0), rel=1e-6)
    assert q.upper.item() * n == pytest.approx(high, rel=1e-6)
    assert bool(q.signed) is signed
    assert (q.zero_point().item() > 0) is signed


@BITS
@pytest.mark.parametrize(
    "bounds", [(-40.0, 60.0), (-3.0, 100.0), (0.0, 50.0), (5.0, 50.0), (-80.0, -7.0), (-0.1, 90.0)]
)
def test_values_and_gradients_are_those_of_the_formula(bits, bounds):
    x = features(True)
    q = bounded(bits, x, *bounds)
    n = 2**bits - 1
    low, high = q.lower.item() * n, q.upper.item() * n
    out, upstream, grad = run(q, x)
    value, slope, by_low, by_high = columns(reference.learned_bounds_activation, x, low, high, bits)
    assert_close(out, value)
    assert_close(grad, upstream * slope)
    g = step_gradient_scale(x.numel(), n)
    assert_close(q.lower.grad, (upstream * by_low).sum().reshape(1) * n * g)
    assert_close(q.upper.grad, (upstream * by_high).sum().reshape(1) * n * g)
    assert (by_low == 1).any()
    assert (by_high == 1).any()


@BITS
@pytest.mark.parametrize("bounds", [(-40.0, 60.0), (-3.0, 100.0), (0.0, 50.0), (5.0, 50.0), (-80.0, -7.0)])
def test_codes_give_the_values_of_training_to_the_last_bit(bits, bounds):
    x = features(True).float()
    q = bounded(bits, x, *bounds).float()
    trained = q(x)
    assert trained.requires_grad
    with torch.no_grad():
        spec = q.spec()
        assert torch.equal((q.codes(x) - spec.zero_point) * q.step, trained)
        assert torch.equal(q(x), trained)
    assert spec.centred.qmin <= 0 <= spec.centred.qmax
    assert q.integers().spec.centred == spec.centred
    assert q.integers().offset == 0
    assert q.clipping_range()[0] == spec.centred.qmin * q.step
    assert q.clipping_range()[1] == spec.centred.qmax * q.step
    assert trained.unique().numel() <= 2**bits


@BITS
def test_bounds_of_a_packed_file_give_its_step_and_codes(bits):
    torch.manual_seed(bits)
    q = get_quantizer("DDTB").activation(bits=bits, channels=3, channel_dim=1)
    for zero in {0, 1, 2 ** (bits - 1), 2**bits - 1}:
        for step in 10 ** torch.empty(50).uniform_(-7, 6):
            codes = IntRange(-zero, 2**bits - 1 - zero)
            q.load_integers(step=step.reshape(1), tau=torch.zeros(3), codes=codes)
            assert torch.equal(q.step, step.reshape(1))
            assert q.integers().spec.centred == codes
            assert bool(q.signed) is (zero > 0)
    with pytest.raises(ValueError, match="has no codes from -1 to 7"):
        q.load_integers(step=torch.ones(1), tau=torch.zeros(3), codes=IntRange(-1, 7))
    with pytest.raises(ValueError, match="with tau"):
        q.load_integers(step=torch.ones(1), tau=torch.ones(3), codes=IntRange(0, 2**bits - 1))


def test_crossed_bounds_can_recover():
    x = torch.randn(1, 2, 4, 4)
    q = bounded(4, x, 1.0, -1.0).float()
    out = q(x)
    assert out.isfinite().all()
    out.backward(x.sign())
    assert q.upper.grad.abs().item() > 0


# --- weights --------------------------------------------------------------------------------------


def weights(method: str, bits: int, granularity: str):
    """A quantizer and a weight, calibrated."""
    torch.manual_seed(bits)
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64) * torch.tensor([0.1, 1, 3, 0.5]).view(4, 1, 1, 1)
    q = get_quantizer(method).weight(bits=bits, out_channels=4, granularity=granularity).double()
    q.calibrate(w)
    return q, w, list(range(4)) if granularity == "channel" else [slice(None)]


def run_weight(q, w: torch.Tensor):
    """Values, upstream gradient, and gradient of ``w``."""
    a, upstream = w.clone().requires_grad_(), torch.randn_like(w)
    result = q.quantize(a, torch.float64)
    result.values.backward(upstream)
    assert torch.equal(result.values, result.codes * result.step)
    assert torch.equal(result.step.flatten(), q.step)
    return result.values.detach(), upstream, a.grad


@BITS
@GRANULARITY
def test_odm_weight(bits, granularity):
    q, w, groups = weights("ODM", bits, granularity)
    q.gamma.data.mul_(torch.linspace(0.6, 0.9, q.gamma.numel(), dtype=torch.float64))
    values, upstream, grad = run_weight(q, w)
    for i, group in enumerate(groups):
        part, gamma = w[group], q.gamma[i].item()
        p99 = reference.percentile(part.abs().flatten().tolist(), 0.99)
        value, slope, by_gamma = columns(reference.odm_weight, part, p99, gamma, bits)
        assert_close(values[group], value)
        assert_close(grad[group], upstream[group] * slope)
        g = step_gradient_scale(part.numel(), 2 ** (bits - 1) - 1)
        assert_close(q.gamma.grad[i], (upstream[group] * by_gamma).sum() * g)
        assert (slope == 0).any()


@BITS
@GRANULARITY
def test_rbd_weight(bits, granularity):
    q, w, groups = weights("RBD", bits, granularity)
    q.bit_scale.data.add_(0.2 * torch.randn(bits))
    q.bit_offset.data.add_(0.2 * torch.randn(bits))
    values, upstream, grad = run_weight(q, w)
    scales, offsets = q.bit_scale.tolist(), q.bit_offset.tolist()
    by_scale, by_offset = torch.zeros(bits, dtype=torch.float64), torch.zeros(bits, dtype=torch.float64)
    top = 2 ** (bits - 1) - 1
    for i, group in enumerate(groups):
        part, up = w[group], upstream[group]
        value, slope, by_alpha, *others = columns(
            reference.rbd_weight, part, q.step[i].item(), scales, offsets
        )
        assert_close(values[group], value)
        assert_close(grad[group], up * slope)
        assert_close(q.step.grad[i], (up * by_alpha).sum() * step_gradient_scale(part.numel(), top))
        by_scale += torch.stack([(up * slope).sum() for slope in others[:bits]])
        by_offset += torch.stack([(up * slope).sum() for slope in others[bits:]])
    assert_close(q.bit_scale.grad, by_scale * step_gradient_scale(w.numel(), top))
    assert_close(q.bit_offset.grad, by_offset * step_gradient_scale(w.numel(), top))


@BITS
def test_rbd_starts_as_rlq(bits):
    """Bit by bit is the nearest level, where neither scales nor offsets have moved."""
    rbd, w, _ = weights("RBD", bits, "channel")
    rlq, _, _ = weights("RLQ", bits, "channel")
    assert torch.equal(rbd.codes(w), rlq.codes(w))
    assert torch.equal(rbd(w), rlq(w))


@BITS
@pytest.mark.parametrize("method", ["ODM", "RBD", "DDTB"])
def test_codes_fit_their_bits_wherever_training_goes(method, bits):
    q, w, _ = weights(method, bits, "tensor")
    for parameter in q.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.5)
    codes = q.codes(10 * w)
    held = IntRange.of(bits, signed=True)
    assert codes.dtype == torch.int8
    assert held.qmin <= codes.min() < 0 < codes.max() <= held.qmax


def test_factors_have_the_unit_1_and_bounds_that_of_the_step():
    """Of a learning rate relative to the calibrated step."""
    odm, rbd = (weights(method, 4, "tensor")[0] for method in ("ODM", "RBD"))
    assert step_magnitudes(odm) == {"gamma": 1.0}
    assert step_magnitudes(rbd) == {"step": rbd.step.item(), "bit_scale": 1.0, "bit_offset": 1.0}
    q = bounded(4, features(True), -3.0, 12.0)
    assert step_magnitudes(q) == {"lower": pytest.approx(1.0), "upper": pytest.approx(1.0)}
    assert set(quantizers.step_parameters(q)) == {"lower", "upper"}


def test_rbd_activations_are_those_of_rlq_with_a_straight_through_round():
    x = features(True).float()
    rlq, rbd = (get_quantizer(m).activation(bits=4, channels=5, channel_dim=1) for m in ("RLQ", "RBD"))
    for q in (rlq, rbd):
        q.observe(x)
        q.tau.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    a = x.clone().requires_grad_()
    out = rbd(a)
    assert torch.equal(out, rlq(x))
    out.sum().backward()
    assert set(a.grad.unique().tolist()) == {0.0, 1.0}
