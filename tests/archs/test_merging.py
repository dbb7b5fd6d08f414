"""Weight norm, batch norm and re-parameterized blocks become one layer each."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from quantsr.archs.merging import MOST_CHANGE, as_convolution, merge
from quantsr.archs.prepared import prepared_copy
from quantsr.basicsr_compat import EDSR, RRDBNet
from quantsr.errors import InputError

X = torch.rand(2, 3, 12, 18, generator=torch.Generator().manual_seed(3))


class Branches(nn.Module):
    """A 3x3 and a 1x1 convolution and the identity, each with a batch norm, as RepVGG has them."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.narrow = nn.Conv2d(channels, channels, 1, groups=groups)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[0](self.wide(x)) + self.norms[1](self.narrow(x)) + self.norms[2](x)


class Expanded(nn.Module):
    """1x1, 3x3 and 1x1 in a row on a padded input, and a 1x1 beside them, as SPAN has them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.row = nn.Sequential(
            nn.Conv2d(inputs, 2 * inputs, 1), nn.Conv2d(2 * inputs, 8, 3), nn.Conv2d(8, outputs, 1)
        )
        self.beside = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.row(nn.functional.pad(x, (1, 1, 1, 1))) + self.beside(x)


class Scaled(nn.Module):
    """A convolution and a linear layer, times a factor of each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(channels, channels, 1), nn.Linear(channels, channels)
        self.factor = nn.Parameter(torch.linspace(-1, 2, channels).view(1, -1, 1, 1))
        self.other = nn.Parameter(torch.linspace(1, 3, channels).view(1, -1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x + self.conv(x) * self.factor)
        return x + (self.other * self.linear(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def network(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(*layers, nn.PixelShuffle(2))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2),
                (module.weight, 0.5, 2),
                (module.bias, -1, 1),
            ):
                nn.init.uniform_(values, low, high)
    return net.eval()


def conv(inputs: int, outputs: int, **more: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **more)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: network(parametrizations.weight_norm(conv(3, 12))),
    "older weight norm": lambda: network(weight_norm(conv(3, 8)), nn.ReLU(), weight_norm(conv(8, 12))),
    "older spectral norm": lambda: network(spectral_norm(conv(3, 12))),
    "batch norm": lambda: network(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True), conv(8, 12)),
    "batch norm, no bias": lambda: network(conv(3, 12, bias=False), nn.BatchNorm2d(12)),
    "weight norm and batch norm": lambda: network(weight_norm(conv(3, 12)), nn.BatchNorm2d(12)),
    "branches": lambda: network(conv(3, 8), Branches(8), nn.ReLU(), Branches(8), conv(8, 12)),
    "branches in groups": lambda: network(conv(3, 8), Branches(8, 8), conv(8, 12)),
    "strides": lambda: network(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, 2)),
    "batch norm behind a stride": lambda: network(
        nn.Conv2d(3, 8, 3, 3, 0), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 12, 5, 3, 1)
    ),
    "oblong": lambda: network(
        nn.Conv2d(3, 6, (1, 5), padding=(0, 2)), nn.Conv2d(6, 12, (7, 3), padding="same", groups=3)
    ),
    "dilated": lambda: network(nn.Conv2d(3, 12, 3, padding=3, dilation=3)),
    "expanded": lambda: network(Expanded(3, 6), nn.SiLU(), Expanded(6, 12)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_merged_network_has_plain_convolutions_and_gives_the_same(kind) -> None:
    net = NETWORKS[kind]()
    with torch.no_grad():
        expected = net(X)
        found = prepared_copy(net)
        assert found is not net
        change = (found(X) - expected).abs().max() / expected.abs().max()
        torch.testing.assert_close(net(X), expected, rtol=0, atol=0)  # which is left as it was
    assert change <= MOST_CHANGE
    leaves = [module for module in found.modules() if not list(module.children())]
    assert {type(leaf) for leaf in leaves} <= {
        nn.Conv2d,
        nn.Identity,
        nn.ReLU,
        nn.SiLU,
        nn.PixelShuffle,
        nn.PixelUnshuffle,
    }
    convs = [leaf for leaf in leaves if isinstance(leaf, nn.Conv2d)]
    assert all(leaf.stride == leaf.dilation == (1, 1) for leaf in convs)
    assert all(not leaf._forward_pre_hooks for leaf in leaves)
    assert sum(isinstance(leaf, nn.Conv2d) for leaf in leaves) <= 4


def test_groups_of_a_block_stay_groups_whatever_its_weights() -> None:
    block = Branches(8, 8).eval()
    with torch.no_grad():
        block.wide.weight.zero_()
    found = as_convolution(block, 8)
    assert found is not None
    assert found.groups == 8
    assert found.kernel_size == (3, 3)


def test_a_batch_norm_whose_input_something_else_reads_too_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(3, 3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + self.norm(y)

    net = network(Net(), nn.ReLU(), conv(3, 12))
    with torch.no_grad():
        expected = net(X)
        assert isinstance(merge(net)[0].norm, nn.BatchNorm2d)
        torch.testing.assert_close(net(X), expected, rtol=0, atol=0)


def test_a_network_that_merging_changes_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Expanded(3, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x).sigmoid() * (2 if isinstance(self.block, Expanded) else 1)

    reason = (
        r"network: with 0\.block merged its output changes by 0\.5 of its largest value, more than 0\.0001"
    )
    with pytest.raises(InputError, match=reason):
        merge(network(Net()))


def test_a_batch_norm_behind_an_activation_in_place_stays() -> None:
    net = network(conv(3, 12), nn.ReLU(inplace=True), nn.BatchNorm2d(12))
    with torch.no_grad():
        expected = net(X)
        assert isinstance(merge(net)[2], nn.BatchNorm2d)
        torch.testing.assert_close(net(X), expected, rtol=0, atol=0)


def test_a_block_whose_parts_the_network_reads_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Expanded(3, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x).sigmoid() + self.block.beside.bias.sum()

    with pytest.raises(InputError, match=r"network: cannot be run with 0\.block merged"):
        merge(network(Net()))


class LeaksBias(nn.Module):
    """Equal to a convolution but at the border, where the second one pads with 0."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(4, 16, 1), conv(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


@pytest.mark.parametrize(
    "block",
    [
        LeaksBias(),
        nn.Sequential(nn.Conv2d(4, 16, 1), nn.Hardtanh(), conv(16, 4)),
        nn.Sequential(nn.Conv2d(4, 1, 1), nn.Conv2d(1, 4, 1)),  # as one it has more weights
        nn.Sequential(conv(4, 16), nn.PixelShuffle(2), conv(4, 16)),
    ],
    ids=["border", "not linear", "low rank", "enlarges"],
)
def test_what_is_no_convolution_of_fewer_weights_stays(block) -> None:
    assert as_convolution(copy.deepcopy(block).eval(), 4) is None


@pytest.mark.parametrize(
    "make", [lambda: EDSR(3, 3, num_feat=4, num_block=2), lambda: RRDBNet(3, 3, 4, num_feat=4, num_block=1)]
)
def test_a_network_with_nothing_to_merge_is_not_even_run(make) -> None:
    net = make()
    net.register_forward_pre_hook(lambda *_: pytest.fail("was run"))
    state = {name: values.clone() for name, values in net.state_dict().items()}
    assert prepared_copy(net) is net
    assert merge(net) is net
    assert net.training
    assert all(torch.equal(values, state[name]) for name, values in net.state_dict().items())


def test_factors_of_channels_go_into_the_layer_before() -> None:
    net = network(conv(3, 8), Scaled(8), conv(8, 12))
    with torch.no_grad():
        expected, found = net(X), prepared_copy(net)
        torch.testing.assert_close(found(X), expected, rtol=1e-4, atol=1e-5)
    assert bool((found[1].factor == 1).all())
    assert bool((found[1].other == 1).all())


def test_a_factor_of_something_else_too_stays() -> None:
    block = Scaled(8)
    forward = block.forward
    block.forward = lambda x: forward(x) * block.factor  # type: ignore[method-assign]
    net = merge(network(conv(3, 8), block, conv(8, 12)))
    assert not bool((net[1].factor == 1).all())
    assert bool((net[1].other == 1).all())
