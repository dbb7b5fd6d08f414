"""How much a channel's error changes the network's output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantsr.quant.importance import output_importance


def test_importance_is_the_mean_squared_gradient_of_a_signed_sum_of_the_output() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
    x = torch.rand(2, 3, 6, 5)
    found = output_importance(net, x, ["0", "1"])
    signs = torch.randint(2, (2, 2, 6, 5), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    by_hand = torch.einsum("oc,bohw->bchw", net[1].weight.detach()[..., 0, 0], signs)
    torch.testing.assert_close(found["0"], by_hand.square().mean((0, 2, 3)))
    assert torch.equal(found["1"], torch.ones(2))


def test_importance_is_found_in_inference_mode_and_without_gradients_of_parameters() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)).requires_grad_(False)
    with torch.inference_mode():
        found = output_importance(net, torch.rand(1, 3, 4, 4), ["0"])
    assert found["0"].shape == (4,)
    assert not net._forward_hooks


class InPlace(nn.Module):
    """Doubles its input, and half of a layer's output, in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.last, self.in_place = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), in_place

    def forward(self, x: Tensor) -> Tensor:
        x = x.mul_(2) if self.in_place else 2 * x
        y = self.first(x).sigmoid()
        if self.in_place:
            y[:, :2] = 2 * y[:, :2]
        else:
            y = torch.cat([2 * y[:, :2], y[:, 2:]], 1)
        return self.last(y)


def test_operations_in_place_change_no_importance() -> None:
    nets = InPlace(True), InPlace(False)
    nets[1].load_state_dict(nets[0].state_dict())
    found = [output_importance(net, torch.ones(1, 3, 4, 4), ["first", "last"]) for net in nets]
    torch.testing.assert_close(found[0], found[1])


def test_a_channel_that_nothing_reads_has_no_importance() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight[:, 1] = 0
    found = output_importance(net, torch.rand(5, 3), ["0"])["0"]
    assert float(found[1]) == 0
    assert bool((found[[0, 2, 3]] > 0).all())
