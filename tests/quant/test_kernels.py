"""Fused kernels: compiled ones equal eager ones, and the switch between them."""

import pytest
import torch

from quantsr.archs import QuantSR_C
from quantsr.quant import calibrate, get_compile, kernels, set_compile, set_exact_fp32


@pytest.fixture(autouse=True)
def _restore_switches():
    before = get_compile()
    yield
    set_compile(before)
    set_exact_fp32(False)


def _step(compiled, *, precision=torch.bfloat16, depth=(4, 2, 1)):
    """Outputs and gradients of one training step."""
    torch.manual_seed(0)
    net = QuantSR_C(num_feat=8, num_block=4, upscale=2).to(memory_format=torch.channels_last)
    calibrate(net, [torch.rand(2, 3, 12, 12)])
    net.rank_blocks()
    set_compile(compiled)
    x = torch.rand(2, 3, 10, 14).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
        outputs = net(x, depth=depth)
    sum(out.float().square().mean() for out in outputs).backward()
    return [out.detach().float() for out in outputs], {n: p.grad for n, p in net.named_parameters()}


@pytest.mark.integration
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32], ids=str)
def test_compiled_training_step_equals_the_plain_one(precision):
    if not kernels.compiler_works("cpu"):
        pytest.skip("no C++ compiler here")
    plain_out, plain_grad = _step(False, precision=precision)
    fused_out, fused_grad = _step(True, precision=precision)
    # A fused kernel rounds to bf16 less often than its operations one by one, which may change a
    # code.
    loose = precision is torch.bfloat16
    for a, b in zip(plain_out, fused_out, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2 if loose else 1e-6)
    for name, grad in plain_grad.items():
        largest = grad.abs().max() + 1e-12
        assert (fused_grad[name] - grad).abs().max() / largest < (5e-2 if loose else 1e-4), name


def test_without_a_compiler_auto_runs_eager_kernels(monkeypatch):
    monkeypatch.setattr(kernels, "compiler_works", lambda device_type: False)
    set_compile("auto")
    assert kernels.kernel("scale_bias", "cpu") is kernels.scale_bias


def test_evaluation_runs_eager_kernels():
    set_compile(True)
    with torch.inference_mode():
        assert kernels.kernel("scale_bias", "cpu") is kernels.scale_bias


def test_a_compiler_that_fails_is_reported_at_most_once_and_not_fatal(monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("no such header: Python.h")

    monkeypatch.setattr(torch, "compile", broken)
    kernels.compiler_works.cache_clear()
    try:
        assert not kernels.compiler_works("cpu")
        assert kernels.kernel("relu_backward", "cpu") is kernels.relu_backward
        assert caplog.text.count("Python.h") <= 1
    finally:
        kernels.compiler_works.cache_clear()


def test_other_modes_are_refused():
    with pytest.raises(ValueError, match="auto, true or false"):
        set_compile("yes")


def test_exact_fp32_computes_on_values_under_autocast():
    torch.manual_seed(0)
    net = QuantSR_C(num_feat=8, num_block=2, upscale=2)
    calibrate(net, [torch.rand(1, 3, 12, 12)])
    conv, x = net.body[0].conv1, torch.randn(1, 8, 9, 9)
    expected = conv(x)
    set_exact_fp32(True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(x), expected)
    set_exact_fp32(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(conv(x).float(), expected)


def test_only_the_inputs_of_layers_are_saved_for_backward():
    """No other tensors of the size of a feature map."""
    net = QuantSR_C(num_feat=8, num_block=2, upscale=2)
    calibrate(net, [torch.rand(1, 3, 12, 12)])
    size = torch.rand(1, 8, 10, 13).numel() * 2
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    seen = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own and t.untyped_storage().nbytes() == size:
            seen[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        out = net(torch.rand(1, 3, 10, 13))
    # Two for each block, one each for conv_after_body and the upsampler.
    assert len(seen) == 2 * 2 + 2
    assert out.shape == (1, 3, 20, 26)
