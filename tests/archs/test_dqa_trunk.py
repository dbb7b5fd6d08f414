"""Depths of any network with a trunk of residual units."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantsr.archs import contract
from quantsr.archs.constructors import build_network
from quantsr.archs.dqa_trunk import DepthTrunk
from quantsr.archs.trunk import find_trunk
from quantsr.errors import InputError
from quantsr.quant import calibrate
from tests.reference import trunk as reference

COLOURS = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8}
SWIN = {
    "upscale": 2,
    "window_size": 4,
    "img_size": 8,
    "embed_dim": 12,
    "mlp_ratio": 2,
    "upsampler": "pixelshuffledirect",
}
NETWORKS: dict[str, dict[str, Any]] = {
    "EDSR": {"type": "EDSR", **COLOURS, "num_block": 4, "upscale": 2},
    "MSRResNet": {"type": "MSRResNet", **COLOURS, "num_block": 4, "upscale": 3},
    "RRDBNet": {"type": "RRDBNet", **COLOURS, "num_block": 3, "num_grow_ch": 4},
    "RCAN": {"type": "RCAN", **COLOURS, "num_group": 3, "num_block": 2, "squeeze_factor": 4, "upscale": 2},
    "SwinIR": {"type": "SwinIR", **SWIN, "depths": [2, 2, 2], "num_heads": [3, 3, 3]},
}
UNITS = {"EDSR": 4, "MSRResNet": 4, "RRDBNet": 3, "RCAN": 3, "SwinIR": 3}


def rules(kind: str) -> dict[str, Any]:
    return {"layers.*" if kind == "SwinIR" else "body.*": "W4A4"}


def build(kind: str, *, depths: list[int] | None = None, seed: int = 3, **changes: Any) -> Any:
    """Calibrated, with shortcuts as training leaves them."""
    torch.manual_seed(seed)
    depths = depths or [UNITS[kind], 2, 1]
    options = {"network": NETWORKS[kind], "rules": rules(kind), "depths": depths, **changes}
    net = build_network("Quantized", options)
    with torch.no_grad():
        for parameter in net.parameters():
            if kind == "MSRResNet" and parameter.dim() == 4:  # at first its layers add next to nothing
                parameter.mul_(4)
        for unit in net.units():
            unit.shortcut.add_(0.1 * torch.randn(1))
    calibrate(net, [torch.rand(2, 3, 16, 16)])
    net.rank_blocks()
    return net.eval()


def without_depths(net: Any, kind: str) -> nn.Module:
    """The same network with one depth."""
    plain = build_network("Quantized", {"network": NETWORKS[kind], "rules": rules(kind)})
    plain.load_state_dict({n: v for n, v in net.state_dict().items() if not n.endswith(".shortcut")})
    return plain.eval()


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_trunk_is_found(kind: str) -> None:
    name = "layers" if kind == "SwinIR" else "body"
    arguments = {key: value for key, value in NETWORKS[kind].items() if key != "type"}
    net = build_network(kind, arguments)
    found = find_trunk(net, window=contract.of(net).window)
    assert found.name == name
    assert found.units == tuple(f"{name}.{i}" for i in range(UNITS[kind]))


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_depth_is_the_network_of_those_units(kind: str) -> None:
    net = build(kind)
    plain, x = without_depths(net, kind), torch.rand(2, 3, 9, 10)
    names = find_trunk(build_network(kind, _arguments(kind)), window=contract.of(net).window).units
    shortcuts = [float(unit.shortcut.detach()) for unit in net.units()]
    together = reference.run(_at(net, tuple(range(len(names), 0, -1))), x)
    for depth, picture in zip(range(len(names), 0, -1), together, strict=True):
        kept = net.blocks_kept(depth)
        assert len(kept) == depth
        expected = reference.run(reference.sub_network(plain, names, shortcuts, kept), x)
        assert expected.std() > 0
        assert torch.equal(picture, expected)
        assert torch.equal(reference.run(_at(net, depth), x), expected)


def _arguments(kind: str) -> dict[str, Any]:
    return {key: value for key, value in NETWORKS[kind].items() if key != "type"}


def _at(net: Any, depth: Any) -> nn.Module:
    class At(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return net(x, depth=depth)

    return At()


def test_a_depth_is_the_smaller_network_where_shortcuts_are_1() -> None:
    torch.manual_seed(1)
    net = build_network("Quantized", {"network": NETWORKS["EDSR"], "rules": rules("EDSR"), "depths": [4, 2]})
    calibrate(net, [torch.rand(2, 3, 16, 16)])
    net.set_ranking([2, 0, 3, 1])
    small = build_network(
        "Quantized", {"network": {**NETWORKS["EDSR"], "num_block": 2}, "rules": rules("EDSR")}
    )
    state = {}
    for name, value in net.state_dict().items():
        for old, new in (("body.0.", "body.0."), ("body.2.", "body.1.")):
            if name.startswith(old):
                state[name.replace(old, new)] = value
        if not name.startswith("body."):
            state[name] = value
    small.load_state_dict({n: v for n, v in state.items() if not n.endswith(".shortcut")})
    x = torch.rand(1, 3, 8, 9)
    assert torch.equal(reference.run(_at(net.eval(), 2), x), reference.run(small, x))


def test_units_that_sub_networks_share_run_once() -> None:
    net = build("EDSR", depths=[4, 2])
    net.set_ranking([0, 1, 2, 3])
    runs = {name: 0 for name, m in net.named_modules() if name.endswith(".conv1")}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            runs[name] += 1

        return hook

    for name in runs:
        net.get_submodule(name).register_forward_hook(count(name))
    with torch.inference_mode():
        net(torch.rand(1, 3, 8, 8), depth=(4, 2))
    assert runs == {f"body.{i}.conv1": 1 for i in range(4)}
    with torch.inference_mode():
        net.run_units(torch.rand(1, 3, 8, 8), [frozenset({0, 1, 2}), frozenset({1, 2, 3})])
    assert runs == {"body.0.conv1": 2, "body.1.conv1": 3, "body.2.conv1": 3, "body.3.conv1": 2}


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_of_all_depths_are_the_sum_of_those_of_each(kind: str) -> None:
    net, x = build(kind), torch.rand(1, 3, 8, 8)
    depths = net.depths

    def gradients(*wanted: tuple[int, ...]) -> dict[str, Tensor]:
        net.zero_grad()
        for group in wanted:
            sum(out.square().mean() for out in net(x, depth=group)).backward()
        return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}

    together, apart = gradients(depths), gradients(*((d,) for d in depths))
    assert together.keys() == apart.keys()
    assert any(name.endswith(".shortcut") for name in together)
    for name, value in together.items():
        scale = float(apart[name].abs().max())
        torch.testing.assert_close(value, apart[name], rtol=1e-3, atol=1e-5 * scale + 1e-12, msg=name)


def test_layers_keep_their_names_and_copies_are_independent() -> None:
    net = build("EDSR")
    plain = without_depths(net, "EDSR")
    names = {n for n in net.state_dict() if not n.endswith(".shortcut")}
    assert names == set(plain.state_dict())
    again = copy.deepcopy(net)
    with torch.no_grad():
        again.units()[0].shortcut.fill_(7)
    assert float(net.units()[0].shortcut.detach()) < 2
    x = torch.rand(1, 3, 7, 8)
    assert not torch.equal(reference.run(net, x), reference.run(again, x))


def test_the_contract_builds_the_network_again() -> None:
    net = build("EDSR")
    found = contract.of(net)
    assert (found.type, found.depths, found.scale) == ("Quantized", (4, 2, 1), 2)
    assert found.arguments["trunk"] == "body"
    assert found.trunk is not None
    assert list(found.trunk) == list(net.body)
    arch = found.arch
    again = build_network(arch.pop("type"), arch)
    assert isinstance(again, DepthTrunk)
    again.load_state_dict(net.state_dict())
    again.set_ranking(net.ranking)
    x = torch.rand(1, 3, 7, 8)
    assert torch.equal(reference.run(_at(again.eval(), 2), x), reference.run(_at(net, 2), x))


def test_a_float_network_starts_all_its_layers_or_those_outside_the_trunk() -> None:
    float_net = build_network("MSRResNet", _arguments("MSRResNet"))
    state = float_net.state_dict()
    for which in ("all", "head_tail"):
        net = build("MSRResNet", seed=9)
        before = net.body[0].conv1.weight.clone()
        report = net.load_float(state, which)
        assert not report.unmatched
        assert torch.equal(net.upconv1.weight, float_net.upconv1.weight)
        assert torch.equal(
            net.body[0].conv1.weight, float_net.body[0].conv1.weight if which == "all" else before
        )
    with pytest.raises(ValueError, match="deepen is for QuantSR_C"):
        net.load_float(state, "deepen")


class Two(nn.Module):
    """Two runs of residual units, and one of units that are not."""

    def __init__(self, upscale: int = 1) -> None:
        super().__init__()
        block = build_network("EDSR", _arguments("EDSR")).body[0]
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Sequential(*(copy.deepcopy(block) for _ in range(2)))
        self.right = nn.ModuleList(copy.deepcopy(block) for _ in range(3))
        self.plain = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)))
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) to the same."""
        x = self.left(self.first(x))
        for block in self.right:
            x = block(x)
        return self.last(self.plain(x))


def test_of_several_runs_one_must_be_named() -> None:
    with pytest.raises(ValueError, match=r"2 runs of residual units, left, right; .* trunk: left"):
        find_trunk(Two())
    assert find_trunk(Two(), "right").units == ("right.0", "right.1", "right.2")
    assert find_trunk(Two(), "*t.[01]").units == ("left.0", "left.1", "right.0", "right.1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rigth", "names no run .* did you mean 'right'"),
        ("plain", "plain.0 is not residual"),
        ("*.0", "of several classes"),
        ("right.0", "names no run"),
    ],
)
def test_a_name_that_holds_no_trunk_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        find_trunk(Two(), name)
    assert "\n" not in str(error.value)


def test_finding_leaves_the_network_as_it_was() -> None:
    net = Two().train()
    net.left.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.random.get_rng_state()
    find_trunk(net, "left")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert (net.training, net.left.training, net.right.training) == (True, False, True)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


class Own(Two):
    """With an attribute of a name that depths need."""

    ranking = None


WRONG = {
    "no trunk": (
        {"network": {"type": "SRVGGNetCompact", **COLOURS, "num_conv": 3, "upscale": 2}},
        "network_g.trunk: no run of residual units",
    ),
    "not all": ({"depths": [3, 2]}, "must contain the full depth 4"),
    "twice": ({"depths": [4, 2, 2]}, "must be different numbers"),
    "own depths": (
        {"network": {"type": "QuantSR_C", "num_feat": 8, "num_block": 4, "upscale": 2}},
        "QuantSR_C has depths of its own",
    ),
    "name": ({"trunk": "bodies"}, "network_g.trunk: 'bodies' names no run"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_one_line(changes: dict[str, Any], message: str) -> None:
    options = {"network": NETWORKS["EDSR"], "rules": rules("EDSR"), "depths": [4, 2], **changes}
    with pytest.raises(InputError, match=message) as error:
        build_network("Quantized", options)
    assert "\n" not in str(error.value)


def test_an_attribute_that_depths_need_is_named() -> None:
    from quantsr.archs.dqa_trunk import add_depths

    net = Own()
    with pytest.raises(ValueError, match="Own has an attribute 'ranking'"):
        add_depths(net, find_trunk(net, "left"), [2, 1], {})


def test_a_unit_alone_says_that_its_network_runs_it() -> None:
    with pytest.raises(RuntimeError, match="call the network"):
        build("EDSR").body[0](torch.rand(1, 8, 4, 4))
