"""Networks with a trunk at every depth: from post-training quantization to engines and files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from quantsr.archs import contract
from quantsr.archs.constructors import build_network
from quantsr.deploy.convert import convert
from quantsr.deploy.engines import reference, select
from quantsr.deploy.export import write
from quantsr.deploy.lower import lower
from quantsr.deploy.module import to_module
from quantsr.deploy.operations import UNITS as UNIT_KINDS
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.post_training import crops, quantize, rank_units
from quantsr.errors import InputError
from quantsr.ranges import Bits
from tests.archs.test_dqa_trunk import NETWORKS, UNITS, build
from tests.deploy.codes import (
    assert_equal_codes,
    codes_of_module,
    codes_of_onnx,
    codes_of_openvino,
    codes_of_reference,
)
from tests.deploy.native import needs_kernels

KINDS = ("MSRResNet", "RRDBNet", "SwinIR")


def pictures(count: int = 3, size: tuple[int, int] = (24, 20)) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    small = [rng.integers(0, 256, (size[0] // 4, size[1] // 4, 3), np.uint8) for _ in range(count)]
    return [np.kron(picture, np.ones((4, 4, 1), np.uint8)) for picture in small]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The networks of each kind, with odd shortcuts, as read from their files."""
    folder = tmp_path_factory.mktemp("packed")
    found: dict[str, tuple[nn.Module, PackedModel]] = {}
    for kind in KINDS:
        net = build(kind)
        packing.save(convert(net, calib=pictures(), head_tail_bits=32), folder / f"{kind}.safetensors")
        found[kind] = net, packing.load(folder / f"{kind}.safetensors")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_programs_are_sums_with_their_input(kind: str) -> None:
    operations = [op for op in lower(build(kind)).operations if op.kind in UNIT_KINDS]
    assert [(op.kind, op.attributes["unit"]) for op in operations] == [
        ("shortcut", i) for i in range(UNITS[kind])
    ]
    for before, op in itertools.pairwise(operations):
        assert op.inputs[0] == before.output


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_has_all_depths(packed: Any, kind: str) -> None:
    net, model = packed[kind]
    assert (model.header.depths, model.header.ranking) == (net.depths, net.ranking)
    assert model.header.num_block == UNITS[kind]
    shortcuts = [float(unit.shortcut.detach()) for unit in net.units()]
    assert list(model.header.shortcuts) == shortcuts


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_the_network_at_every_depth(packed: Any, kind: str) -> None:
    net, model = packed[kind]
    again = to_module(model)
    x = torch.rand(1, 3, 10, 9)
    with torch.inference_mode():
        for depth in net.depths:
            assert torch.equal(again(x, depth=depth), net(x, depth=depth))


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_near_the_network_at_every_depth(packed: Any, kind: str) -> None:
    net, model = packed[kind]
    image = pictures(1)[0]
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    for depth in net.depths:
        with torch.inference_mode():
            wanted = (net(x, depth=depth)[0].permute(1, 2, 0) * 255).round().clamp(0, 255).numpy()
        got = reference.run(model, image, depth)
        assert (np.abs(got - wanted) <= 1).mean() > 0.99
    assert len({reference.run(model, image, depth).tobytes() for depth in net.depths}) == len(net.depths)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "engine", ["onnxruntime", "openvino", "torch", pytest.param("native", marks=needs_kernels)]
)
def test_engines_give_the_references_pictures_at_every_depth(packed: Any, kind: str, engine: str) -> None:
    _, model = packed[kind]
    image = pictures(1, (16, 28))[0]
    for depth in model.header.depths:
        wanted = reference.run(model, image, depth)
        assert wanted.std() > 1
        (got,) = select.create(engine, model, depth, threads=1).run(image[None])
        difference = np.abs(got.astype(int) - wanted)
        assert difference.max() <= 1
        assert (difference == 0).mean() > 0.99


@pytest.mark.parametrize("codes_of", [codes_of_onnx, codes_of_openvino])
@pytest.mark.parametrize("kind", ["MSRResNet", "RRDBNet"])
def test_codes_of_engines_are_those_of_the_reference_at_every_depth(
    packed: Any, kind: str, codes_of: Any
) -> None:
    _, model = packed[kind]
    image = pictures(1)[0]
    for depth in model.header.depths:
        expected, _ = codes_of_reference(model, image, depth)
        got, _ = codes_of(model, image, depth)
        assert_equal_codes(got, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_exported_at_a_depth(packed: Any, kind: str, tmp_path: Path) -> None:
    _, model = packed[kind]
    image = pictures(1)[0]
    (file,), cut = write(model, tmp_path / "net.safetensors", depth=2)
    assert (cut.header.depths, cut.header.num_block) == ((2, 1), 2)
    for depth in (2, 1):
        np.testing.assert_array_equal(reference.run(cut, image, depth), reference.run(model, image, depth))
    whole = tmp_path / "whole.safetensors"
    packing.save(model, whole)
    assert file.stat().st_size < whole.stat().st_size
    with pytest.raises(InputError, match="2 of its network's"):
        to_module(cut, file)
    write(model, tmp_path / "net.onnx", depth=2)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image[None]})
    wanted = reference.run(model, image, 2)
    assert np.abs(found[0].astype(int) - wanted).max() <= 1


def test_swin_layers_are_units_where_a_pattern_names_them(tmp_path: Path) -> None:
    options = {"depths": [6, 3], "trunk": "layers.*.residual_group.blocks.*"}
    net = build("SwinIR", **options)
    assert [op.kind for op in lower(net).operations if op.kind in UNIT_KINDS] == ["around"] * 6
    packing.save(convert(net, calib=pictures(), head_tail_bits=32), tmp_path / "net.safetensors")
    model, image = packing.load(tmp_path / "net.safetensors"), pictures(1)[0]
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    for depth in (6, 3):
        wanted = reference.run(model, image, depth)
        with torch.inference_mode():
            (found,) = (net(x, depth=depth) * 255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
        assert (np.abs(found - wanted) <= 1).mean() > 0.98
        (got,) = select.create("onnxruntime", model, depth, threads=1).run(image[None])
        assert np.abs(got.astype(int) - wanted).max() <= 1


def test_quantizing_ranks_the_units_and_takes_a_named_trunk() -> None:
    torch.manual_seed(5)
    network = NETWORKS["MSRResNet"]
    net = build_network("MSRResNet", {k: v for k, v in network.items() if k != "type"}).eval()
    with torch.no_grad():
        for unit, gain in zip(net.body, (8.0, 0.0, 30.0, 3.0), strict=True):
            unit.conv2.weight.mul_(gain)
    seen: list[tuple[int, int]] = []
    note = {"progress": lambda done, total: seen.append((done, total))}
    found = quantize(net, Bits(8, 8), pictures(), depths=[4, 2], trunk="body.?", **note)
    layers = 8  # two of each unit
    assert seen == [(n, layers + 9) for n in [*range(1, layers + 1), layers + 4, layers + 7, layers + 9]]
    ranking = contract.of(found).ranking
    assert ranking is not None
    assert ranking[-1] == 1  # it adds its bias alone
    assert ranking[0] == 2
    assert contract.of(found).arguments["trunk"] == "body.?"
    x = crops(pictures())
    with torch.inference_mode():
        torch.testing.assert_close(found(x, depth=4), net(x), atol=0.02, rtol=0)


def test_the_ranking_is_that_of_removing_units_one_by_one() -> None:
    net = build("EDSR")
    x = torch.rand(2, 3, 12, 12)
    target = nn.Upsample(scale_factor=2)
    with torch.inference_mode():
        wanted = target(x)
        kept, removed = [0, 1, 2, 3], []
        while len(kept) > 1:
            losses = {}
            for unit in kept:
                (out,) = net.run_units(x, [frozenset(kept) - {unit}])
                losses[unit] = float((out - wanted).abs().mean())
            removed.append(min(kept, key=lambda unit: losses[unit]))
            kept.remove(removed[-1])
    assert rank_units(net, target, x) == (*kept, *reversed(removed))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [3, 2]}, "--depths: depths must contain the full depth 4"),
        ({"depths": [4, 2], "trunk": "tail"}, "--trunk: 'tail' names no run"),
        ({"trunk": "body"}, "--trunk: is for a network with depths"),
    ],
)
def test_wrong_depths_are_one_line(changes: dict[str, Any], message: str) -> None:
    network = NETWORKS["EDSR"]
    net = build_network("EDSR", {k: v for k, v in network.items() if k != "type"})
    with pytest.raises(InputError) as error:
        quantize(net, Bits(4, 4), pictures(), **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_ranked_float_network_of_ours_keeps_its_ranking() -> None:
    shape = {"num_feat": 8, "num_block": 4, "upscale": 2, "nbits_w": 32, "nbits_a": 32}
    net = build_network("QuantSR_C", shape)
    net.set_ranking([3, 1, 0, 2])
    assert contract.of(quantize(net, Bits(4, 4), pictures())).ranking == (3, 1, 0, 2)
    with pytest.raises(InputError, match="QuantSR_C has depths of its own"):
        quantize(net, Bits(4, 4), pictures(), depths=[4, 2])


def test_a_float_network_with_depths_keeps_them_and_its_ranking(tmp_path: Path) -> None:
    torch.manual_seed(3)
    options = {"network": NETWORKS["EDSR"], "rules": {}, "depths": [4, 2]}
    net = build_network("Quantized", options).eval()
    net.set_ranking([3, 1, 0, 2])
    found = quantize(net, Bits(4, 4), pictures())
    network = contract.of(found)
    assert (network.ranking, network.depths) == ((3, 1, 0, 2), (4, 2))
    assert network.arguments["rules"]["body.0.conv1"] == "W4A4"
    again = to_module(convert(found, head_tail_bits=32))
    x = torch.rand(1, 3, 9, 8)
    with torch.inference_mode():
        for depth in (4, 2):
            torch.testing.assert_close(again(x, depth=depth), found(x, depth=depth), atol=2e-5, rtol=0)
    with pytest.raises(InputError, match="Quantized has depths of its own"):
        quantize(net, Bits(4, 4), pictures(), depths=[4, 2])


def test_the_module_of_a_file_has_the_references_codes(packed: Any) -> None:
    _, model = packed["MSRResNet"]
    image = pictures(1)[0]
    for depth in model.header.depths:
        got, _ = codes_of_module(model, image, depth)
        expected, _ = codes_of_reference(model, image, depth)
        assert got.keys() == expected.keys()
        for name, codes in expected.items():
            assert (got[name] == codes).mean() > 0.999
