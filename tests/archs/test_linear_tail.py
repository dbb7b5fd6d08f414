"""The composed tail equals the tail run layer by layer, in pictures and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quantsr.archs import QuantSR_C, linear_tail
from quantsr.basicsr_compat import Upsample
from quantsr.quant import calibrate

SCALES = [2, 3, 4, 8]


def tail(scale: int, channels: int = 6) -> tuple[nn.Sequential, nn.Conv2d]:
    torch.manual_seed(scale)
    return Upsample(scale, channels).double(), nn.Conv2d(channels, 3, 3, padding=1).double()


@pytest.mark.parametrize("size", [(3, 3), (3, 9), (7, 4)], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_pictures_and_gradients_are_those_of_the_layers(scale: int, size: tuple[int, int]) -> None:
    upsample, conv_last = tail(scale)
    stages = linear_tail.stages([*upsample, conv_last])
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    tensors = [x, *upsample.parameters(), *conv_last.parameters()]

    layers = conv_last(upsample(x))
    composed = linear_tail.run(stages, linear_tail.compose(stages), x)
    weights = torch.randn_like(layers)
    wanted = torch.autograd.grad((layers * weights).sum(), tensors)
    found = torch.autograd.grad((composed * weights).sum(), tensors)

    torch.testing.assert_close(composed, layers, rtol=0, atol=1e-12)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", SCALES)
def test_the_composed_kernel_has_its_documented_size(scale: int) -> None:
    upsample, conv_last = tail(scale)
    composed = linear_tail.compose(linear_tail.stages([*upsample, conv_last]))
    assert composed.factor == scale
    assert composed.weight.shape == (3 * scale**2, 6, linear_tail.SIDE, linear_tail.SIDE)
    assert composed.bias.shape == (3 * scale**2,)
    # (3 r r, 5): each phase uses the outermost row of its own side only
    rows = composed.weight.abs().amax((1, 3)) > 0
    assert rows[0, 0]
    assert not rows[0, -1] or scale > 2
    assert rows[:, 1:-1].all()


def test_it_runs_only_in_training_and_where_it_is_less_work(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = QuantSR_C(num_feat=4, num_block=4, upscale=2).double()
    x = torch.rand(2, 3, 24, 24, dtype=torch.float64)
    calibrate(net, [x])
    net.rank_blocks()
    calls: list[int] = []
    original = linear_tail.run
    monkeypatch.setattr(linear_tail, "run", lambda *args: calls.append(1) or original(*args))

    wanted = net.eval()(x, depth=(4, 2, 1))
    assert not calls
    found = net.train()(x, depth=(4, 2, 1))
    assert len(calls) == 3
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)

    calls.clear()
    net(x[..., :5, :5])  # too small
    net(x[:1, :, :8, :8])  # composing would cost more than it saves
    assert not calls


def test_a_network_without_upsampling_has_no_tail_to_compose() -> None:
    net = QuantSR_C(num_feat=4, num_block=1, upscale=1, nbits_w=32, nbits_a=32).train()
    assert net(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)
