"""Networks of spandrel are called as it calls them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spandrel")

from quantsr.archs.spandrel_arch import _as_called


class Several(nn.Module):
    """Gives a picture, beside what it was made with."""

    noise = 0.25

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        return self.conv(x), self.noise


def call(net: Several, x: Tensor) -> Tensor:
    return net(torch.cat([x, torch.full((1, 1, *x.shape[2:]), net.noise)], 1))[0] + 0.5


@torch.no_grad()
def test_a_network_gives_what_its_call_makes_of_it() -> None:
    plain = Several()
    net = Several()
    net.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 5, 4)
    found = _as_called(net, 3, call)(x)
    torch.testing.assert_close(found, torch.cat([call(plain, one) for one in x.split(1)]))


def test_a_network_that_is_called_plainly_keeps_its_class() -> None:
    net = nn.Conv2d(3, 3, 1)
    assert type(_as_called(net, 3, lambda net, x: net(x))) is nn.Conv2d
    assert type(_as_called(net, 3, None)) is nn.Conv2d


@torch.no_grad()
def test_a_call_may_go_through_a_module_that_holds_the_network() -> None:
    net = nn.Conv2d(3, 3, 1)
    wanted = 2 * net(torch.ones(1, 3, 2, 2))
    found = _as_called(net, 3, lambda _, x: 2 * net(x))
    torch.testing.assert_close(found(torch.ones(1, 3, 2, 2)), wanted)
