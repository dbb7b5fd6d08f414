"""Networks that take multiples of a number, for pictures of any size."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from quantsr.archs import contract
from quantsr.archs.sizes import take_any_size


class Fours(nn.Module):
    """x2, on sides of multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(48, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.conv(nn.functional.pixel_unshuffle(x, 4)), 8)


class Cropping(nn.Module):
    """Leaves out what reaches beyond a multiple of 4."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : x.shape[-2] // 4 * 4, : x.shape[-1] // 4 * 4]


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 12), (9, 14), (7, 5)])
def test_a_picture_is_continued_by_reflection_and_the_result_cropped(size) -> None:
    torch.manual_seed(0)
    plain = Fours().eval()
    net = take_any_size(copy.deepcopy(plain), multiple=4, scale=2, channels=3)
    height, width = size
    x = torch.rand(2, 3, height, width)
    rows, columns = ([*range(side), *range(side - 2, -1, -1)][: -(-side // 4) * 4] for side in size)
    wanted = plain(x[:, :, rows][..., columns])[..., : 2 * height, : 2 * width]
    assert torch.equal(net(x), wanted)
    assert torch.equal(copy.deepcopy(net)(x), wanted)
    assert list(net.state_dict()) == list(plain.state_dict())


@torch.no_grad()
def test_a_network_that_gives_another_size_gives_the_whole_picture() -> None:
    net = take_any_size(Cropping(), multiple=4, scale=1, channels=1)
    x = torch.rand(1, 1, 6, 7)
    assert torch.equal(net(x), x)


def test_a_network_that_takes_any_size_keeps_its_class() -> None:
    net = nn.Conv2d(3, 3, 1).eval()
    assert type(take_any_size(net, multiple=8, scale=1, channels=3)) is nn.Conv2d
    assert type(take_any_size(Fours(), multiple=1, scale=2, channels=3)) is Fours


class Logarithm(nn.Module):
    """Of a third of the picture's height: takes pictures of 3 pixels and more."""

    def forward(self, x: Tensor) -> Tensor:
        return x * math.log(x.shape[-2] // 3) ** 0


@torch.no_grad()
@pytest.mark.parametrize(("multiple", "wanted"), [(1, 3), (2, 4)])
def test_a_network_that_fails_at_small_pictures_reads_multiples_of_its_least_side(multiple, wanted) -> None:
    net = take_any_size(Logarithm(), multiple=multiple, scale=1, channels=1, least=3)
    assert contract.of(net).window == wanted
    x = torch.rand(1, 1, 1, 2)
    assert torch.equal(net(x), x)
    assert type(take_any_size(nn.Identity(), multiple=1, scale=1, channels=1, least=3)) is nn.Identity


def test_another_error_than_of_sizes_is_not_hidden() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("weights")

    with pytest.raises(KeyError, match="weights"):
        take_any_size(Broken(), multiple=4, scale=1, channels=3)


class Continuing(nn.Module):
    """Of eighths, to whose multiples it continues pictures by itself."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = nn.functional.pad(x, (0, -width % 8, 0, -height % 8), self.mode)
        return nn.functional.pixel_shuffle(nn.functional.pixel_unshuffle(x, 8), 8)[..., :height, :width]


@pytest.mark.parametrize("mode", ["constant", "replicate", "reflect"])
def test_a_network_that_continues_pictures_otherwise_gets_reflected_ones(mode: str) -> None:
    net = take_any_size(Continuing(mode), multiple=1, scale=1, channels=3)
    assert contract.of(net).window == 8
    for size in ((3, 18), (1, 1), (1, 9)):  # some smaller than what is reflected
        x = torch.rand(1, 3, *size)
        assert torch.equal(net(x), x)


def test_a_network_of_windows_that_reflects_pictures_keeps_its_class() -> None:
    net = Continuing("reflect")
    net.window_size = 8
    assert type(take_any_size(net, multiple=1, scale=1, channels=3)) is Continuing
