"""The contract of networks, for those of this package, of BasicSR and of users."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from quantsr.archs import QuantSR_C, QuantSR_T, contract
from quantsr.archs.released import QEDSR_Ours
from quantsr.engine import build


class Plain(nn.Module):
    """A network without any attribute of the contract."""

    def __init__(self, width: int = 4, *, scale: int = 2) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, width, 3)


def test_arguments_are_those_given_and_the_defaults_of_the_others() -> None:
    net = build.build_network("EDSR", {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "upscale": 2})
    found = contract.of(net)
    assert found.type == "EDSR"
    assert (found.arguments["num_feat"], found.arguments["num_block"]) == (8, 16)  # the latter by default
    assert found.arch == {"type": "EDSR", **found.arguments}
    assert (found.scale, found.window, found.depths, found.ranking) == (2, 1, (), None)
    assert found.depth_dynamic is None
    assert found.trunk is not None
    assert len(found.trunk) == 16


def test_a_network_is_rebuilt_from_its_contract() -> None:
    net = build.build_network("MSRResNet", {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2})
    arch = contract.of(net).arch
    again = build.build_network(arch.pop("type"), arch)
    again.load_state_dict(net.state_dict())
    assert contract.of(again).arch == contract.of(net).arch


def test_copies_keep_the_contract() -> None:
    net = contract.build("Plain", Plain, {"scale": 3})
    assert contract.of(copy.deepcopy(net)).arch == {"type": "Plain", "width": 4, "scale": 3}
    assert contract.of(net).scale == 3


def test_a_network_built_without_the_registry_has_no_arguments() -> None:
    found = contract.of(Plain())
    assert (found.type, found.arguments, found.scale, found.trunk) == ("Plain", {}, None, None)


def test_depth_dynamic_networks_have_depths_and_rankings() -> None:
    net = QuantSR_C(num_feat=8, num_block=4, upscale=2)
    found = contract.of(net)
    assert found.depth_dynamic is net
    assert (found.type, found.depths, found.ranking, found.protocol) == ("QuantSR_C", (4, 2, 1), None, None)
    net.rank_blocks()
    assert contract.of(net).ranking == (0, 1, 2, 3)
    assert contract.of(QEDSR_Ours(num_in_ch=3, num_out_ch=3, num_feat=8, num_block=2)).type == "QuantSR_C"


def test_windows_of_transformers() -> None:
    assert contract.of(QuantSR_T(embed_dim=12, num_block=1, layers_per_block=1, num_heads=2)).window == 8
    swin = build.build_network(
        "SwinIR",
        {
            "upscale": 2,
            "img_size": 16,
            "window_size": 4,
            "embed_dim": 12,
            "depths": [1],
            "num_heads": [2],
            "upsampler": "pixelshuffledirect",
        },
    )
    found = contract.of(swin)
    assert (found.window, found.type) == (4, "SwinIR")
    assert found.trunk is not None
    assert len(found.trunk) == 1


@pytest.mark.parametrize("scale", [2, 3])
def test_the_scale_is_the_constructors_argument(scale: int) -> None:
    net = build.build_network(
        "EDSR", {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": scale}
    )
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 5, 7)).shape == (1, 3, 5 * scale, 7 * scale)
    assert contract.of(net).scale == scale
