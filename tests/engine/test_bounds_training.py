"""Training of bounds and rectifiers against the float network."""

import copy

import pytest
import torch
from torch import nn

from quantsr.archs.constructors import build_network
from quantsr.engine.bounds_training import LowRank, feature_distance, train_bounds
from quantsr.quant import Rule, calibrate, quantize_layers
from quantsr.quant.layers import quantized_layers
from tests.reference import post_training as reference

SHAPE = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}


def networks(**options) -> tuple[nn.Module, nn.Module, list[torch.Tensor]]:
    """A student of 2 bits, its teacher, and pictures."""
    torch.manual_seed(3)
    teacher = build_network("EDSR", SHAPE)
    section = {"type": "EDSR", **SHAPE}
    student = build_network(
        "Quantized",
        {"network": section, "rules": {"body.*": 2}, "quantizer": "Bounds", "equalized": False, **options},
    )
    student.load_state_dict(teacher.state_dict(), strict=False)
    small = [torch.rand(3, 5, 6) for _ in range(3)]
    pictures = [nn.functional.interpolate(x[None], scale_factor=3)[0] for x in small]
    calibrate(student, [torch.stack(pictures)])
    return student, teacher.eval(), pictures


def distance(a: nn.Module, b: nn.Module, pictures: list[torch.Tensor]) -> float:
    with torch.no_grad():
        x = torch.stack(pictures)
        return float((a.eval()(x) - b(x)).abs().mean())


def test_only_the_bounds_change_and_the_student_comes_nearer():
    student, teacher, pictures = networks()
    before, start = copy.deepcopy(student.state_dict()), distance(student, teacher, pictures)
    seen: list[int] = []
    train_bounds(student, teacher, pictures, iterations=12, progress=seen.append)
    assert seen == list(range(1, 13))
    assert distance(student, teacher, pictures) < start
    changed = {name for name, x in student.state_dict().items() if not torch.equal(x, before[name])}
    assert changed
    assert all(name.endswith((".lower", ".upper", ".step")) for name in changed)
    assert {name for name in changed if "body.0.conv1" in name} == {
        f"body.0.conv1.{name}"
        for name in (
            "weight_quantizer.step",
            "input_quantizer.lower",
            "input_quantizer.upper",
        )
    }
    for layer in quantized_layers(student).values():
        spec = layer.input_quantizer.integers().spec
        assert layer.input_quantizer.step.item() == spec.step.item()
    assert not any(m._forward_hooks for net in (student, teacher) for m in net.modules())
    assert all(p.requires_grad for net in (student, teacher) for p in net.parameters())


def test_a_rectifier_is_merged_and_brings_the_student_nearer_than_bounds_alone():
    found = {}
    for rank in (0, 2):
        student, teacher, pictures = networks()
        names = list(student.state_dict())
        weights = {n: layer.weight.clone() for n, layer in quantized_layers(student).items()}
        train_bounds(student, teacher, pictures, iterations=30, rectifier=rank)
        found[rank] = distance(student, teacher, pictures)
        assert sorted(student.state_dict()) == sorted(names)
        for name, layer in quantized_layers(student).items():
            assert type(layer).__name__ == "QuantConv2d"
            change = (layer.weight - weights[name]).flatten(1)
            assert torch.linalg.matrix_rank(change, tol=1e-5) == rank
    assert found[2] < found[0]


def test_a_rectifier_is_the_product_of_its_factors():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2, 1)
    low_rank = LowRank(weight, 2)
    assert torch.equal(low_rank(weight), weight)
    nn.init.normal_(low_rank.b)
    expected = reference.rectified(weight.flatten(1).tolist(), low_rank.b.tolist(), low_rank.a.tolist())
    torch.testing.assert_close(low_rank(weight), torch.tensor(expected).view(4, 3, 2, 1))


def test_features_are_compared_by_their_directions():
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert feature_distance(a, 7 * a).item() == pytest.approx(0, abs=1e-6)
    # Each picture by itself: (0.6, 0.8) to (0.8, 0.6), and (1, 0) to (0, 1).
    b = torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    assert feature_distance(a, b).item() == pytest.approx((0.2 * 2**0.5 + 2**0.5) / 2)


def test_networks_without_a_trunk_are_trained_by_their_outputs():
    torch.manual_seed(2)
    teacher = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1)).eval()
    student = copy.deepcopy(teacher)
    quantize_layers(student, [Rule("2", 2, 2, "Bounds")])
    pictures = [torch.rand(3, 9, 12)]
    calibrate(student, [pictures[0][None]])
    start = distance(student, teacher, pictures)
    train_bounds(student, teacher, pictures, iterations=20)
    assert distance(student, teacher, pictures) < start
