"""Linear layers that a network only takes the weights of are called as modules."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantsr.archs.called import call_layers
from quantsr.archs.prepared import prepared_copy


class Biased(nn.Module):
    """Swin2SR's bias of queries and values, beside a layer that is called."""

    def __init__(self, *, of_picture: bool = False) -> None:
        super().__init__()
        self.conv, self.qkv, self.other = nn.Conv2d(3, 4, 1), nn.Linear(4, 6, bias=False), nn.Linear(6, 3)
        self.q_bias = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.of_picture = of_picture

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).permute(0, 2, 3, 1)
        bias = torch.cat([self.q_bias, torch.zeros(2), 2 * self.q_bias])
        bias = bias * x.mean() if self.of_picture else bias
        return self.other(F.linear(input=y, weight=self.qkv.weight, bias=bias)).permute(0, 3, 1, 2)


X = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_layer_is_called_with_the_bias_that_the_network_adds() -> None:
    net = Biased().eval()
    found = prepared_copy(net)
    calls: list[str] = []
    for name, module in found.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    torch.testing.assert_close(found(X), net(X))
    assert calls == ["qkv", "other"]
    assert found.qkv.bias.tolist() == [1, -2, 0, 0, 2, -4]
    again = copy.deepcopy(found)
    again.qkv.weight.mul_(2)
    assert not torch.equal(again(X), found(X))


@pytest.mark.parametrize("make", [lambda: Biased(of_picture=True), lambda: nn.Sequential(nn.Conv2d(3, 3, 1))])
def test_other_networks_stay(make) -> None:
    net = make()
    assert type(call_layers(net)) is type(make())
