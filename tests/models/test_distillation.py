"""Distillation: the losses compared with their formulas, and the features that they use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quantsr import quant
from quantsr.basicsr_compat import EDSR, MSRResNet, SwinIR
from quantsr.engine import build
from quantsr.errors import InputError
from quantsr.models.distillation import (
    Distillation,
    FeatureTap,
    attention_loss,
    feature_loss,
    matched_points,
    plain_loss,
)
from tests.reference import features as reference


def student(num_block: int = 4, num_feat: int = 8) -> nn.Module:
    options = {"num_feat": num_feat, "num_block": num_block, "upscale": 2}
    net = build.build_network("QuantSR_C", options)
    quant.calibrate(net, [torch.rand(2, 3, 8, 8)])
    net.rank_blocks()
    return net


def reference_feature_loss(students: list[torch.Tensor], teachers: list[torch.Tensor]) -> float:
    total = 0.0
    for a, b in zip(students, teachers, strict=True):
        s, t = [v**2 for v in a.flatten().tolist()], [v**2 for v in b.flatten().tolist()]
        norm_s, norm_t = sum(v * v for v in s) ** 0.5, sum(v * v for v in t) ** 0.5
        total += sum((x / norm_s - y / norm_t) ** 2 for x, y in zip(s, t, strict=True)) ** 0.5
    return total / len(students)


def test_feature_loss_is_the_formula() -> None:
    ours = [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)]
    theirs = [torch.randn(2, 3, 4, 5) * 9, torch.randn(2, 3, 4, 5)]
    assert feature_loss(ours, theirs).item() == pytest.approx(reference_feature_loss(ours, theirs), rel=1e-5)


def test_feature_loss_does_not_depend_on_scale_or_sign() -> None:
    a = torch.randn(1, 2, 3, 3)
    assert feature_loss([a], [-7 * a]).item() == pytest.approx(0, abs=1e-6)


def test_feature_loss_of_equal_and_of_dead_features_has_finite_gradients() -> None:
    a = torch.randn(1, 2, 3, 3, requires_grad=True)
    feature_loss([a], [a.detach().clone()]).backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()
    dead = torch.zeros(1, 2, 3, 3, requires_grad=True)
    feature_loss([dead], [torch.randn(1, 2, 3, 3)]).backward()
    assert dead.grad is not None
    assert torch.isfinite(dead.grad).all()


def test_feature_loss_of_other_layouts_and_widths() -> None:
    """Teachers of other channels or of layout (B, L, C) are compared by channel means."""
    ours, wide = torch.randn(2, 4, 3, 5), torch.randn(2, 7, 3, 5)
    tokens = wide.flatten(2).transpose(1, 2)
    maps = [x.square().mean(1, keepdim=True).sqrt() for x in (ours, wide)]
    wanted = reference_feature_loss([maps[0]], [maps[1]])
    assert feature_loss([ours], [wide]).item() == pytest.approx(wanted, rel=1e-5)
    assert feature_loss([ours], [tokens]).item() == pytest.approx(wanted, rel=1e-5)


def test_feature_maps_of_other_sizes_are_named() -> None:
    with pytest.raises(InputError, match=r"train\.distill: features of 100 and 144 positions"):
        feature_loss([torch.rand(1, 4, 10, 10)], [torch.rand(1, 144, 4)])


def test_matched_points() -> None:
    assert matched_points(16, 4) == [3, 7, 11, 15]
    assert matched_points(32, 4) == [7, 15, 23, 31]
    assert matched_points(5, 2) == [2, 4]
    assert matched_points(3, 3) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"1\.\.3"):
        matched_points(3, 4)


def test_tap_keeps_the_full_networks_outputs() -> None:
    """Also where one forward pass runs several depths."""
    net = student()
    net.set_ranking([2, 0, 3, 1])
    x = torch.rand(1, 3, 8, 8)
    tap = FeatureTap(list(net.body), [1, 3])
    net(x)
    alone = tap.take()
    net(x, depth=(4, 2, 1))
    together = tap.take()
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(KeyError):
        tap.take()


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # BasicSR's SwinIR
@pytest.mark.parametrize(
    "teacher",
    [
        lambda: EDSR(3, 3, num_feat=8, num_block=2, upscale=2),
        lambda: MSRResNet(3, 3, num_feat=12, num_block=3, upscale=2),
        lambda: SwinIR(
            img_size=8, window_size=4, depths=[2, 2], num_heads=[2, 2], embed_dim=8, mlp_ratio=2, upscale=2,
            upsampler="pixelshuffledirect",
        ),
    ],
    ids=["EDSR", "MSRResNet", "SwinIR"],
)  # fmt: skip
def test_losses_with_any_teacher(teacher: object) -> None:
    net, big = student(), teacher()  # type: ignore[operator]
    distillation = Distillation(net, big, output_weight=0.5, feature_weight=1e-4, points=4)
    x = torch.rand(1, 3, 8, 8)
    target = distillation.teacher_output(x)
    assert not target.requires_grad
    outputs, weights = net(x, depth=(4, 2)), (0.75, 0.25)
    terms = distillation.losses(outputs, weights, target)
    wanted = 0.5 * sum(w * (o - target).abs().mean() for o, w in zip(outputs, weights, strict=True))
    torch.testing.assert_close(terms["l_teacher"], wanted)
    assert 0 < terms["l_feature"].item() <= 1e-4 * 2**0.5
    sum(terms.values()).backward()
    assert all(p.grad is None for p in big.parameters())
    assert net.body[0].conv1.weight.grad.abs().sum() > 0


def test_feature_term_is_the_formula_on_the_blocks() -> None:
    net, teacher = student(num_block=4), EDSR(3, 3, num_feat=8, num_block=2, upscale=2)
    distillation = Distillation(net, teacher, output_weight=0.0, feature_weight=2.0, points=2)
    seen: dict[str, torch.Tensor] = {}
    net.body[1].register_forward_hook(lambda m, a, o: seen.update(s0=o[0]))
    net.body[3].register_forward_hook(lambda m, a, o: seen.update(s1=o[0]))
    teacher.body[0].register_forward_hook(lambda m, a, o: seen.update(t0=o))
    teacher.body[1].register_forward_hook(lambda m, a, o: seen.update(t1=o))
    x = torch.rand(1, 3, 8, 8)
    target = distillation.teacher_output(x)
    terms = distillation.losses([net(x)], (1.0,), target)
    wanted = 2 * reference_feature_loss([seen["s0"], seen["s1"]], [seen["t0"], seen["t1"]])
    assert terms.keys() == {"l_feature"}
    assert terms["l_feature"].item() == pytest.approx(wanted, rel=1e-5)


def test_a_network_without_blocks_is_named() -> None:
    with pytest.raises(InputError, match=r"the teacher \(Conv2d\) keeps no blocks"):
        Distillation(student(), nn.Conv2d(3, 3, 1), output_weight=0, feature_weight=1, points=1)


def test_the_losses_of_pams_and_sfd_are_their_formulas() -> None:
    torch.manual_seed(4)
    pairs = [(torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5) * 9) for _ in range(2)]
    for loss, twin in ((attention_loss, reference.pams), (plain_loss, reference.sfd)):
        found = loss([a for a, _ in pairs], [b for _, b in pairs]).item()
        wanted = [twin(a.flatten(2).tolist(), b.flatten(2).tolist()) for a, b in pairs]
        assert found == pytest.approx(sum(wanted) / 2, rel=1e-5)


def test_pams_compares_other_layouts_and_widths() -> None:
    ours, wide = torch.randn(2, 4, 3, 5), torch.randn(2, 7, 3, 5)
    wanted = reference.pams(ours.flatten(2).tolist(), wide.flatten(2).tolist())
    for theirs in (wide, wide.flatten(2).transpose(1, 2)):
        assert attention_loss([ours], [theirs]).item() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(InputError, match="100 and 144 positions"):
        attention_loss([torch.rand(1, 4, 10, 10)], [torch.rand(1, 144, 4)])


def test_sfd_sees_the_blocks_that_run_and_do_not_follow_a_skipped_one() -> None:
    net, teacher = student(num_block=6), EDSR(3, 3, num_feat=8, num_block=6, upscale=2)
    net.set_ranking([0, 1, 3, 4, 5, 2])
    seen: dict[str, torch.Tensor] = {}
    for i in range(6):
        net.body[i].register_forward_hook(lambda m, a, o, i=i: seen.update({f"s{i}": o[0]}))
        teacher.body[i].register_forward_hook(lambda m, a, o, i=i: seen.update({f"t{i}": o}))
    distillation = Distillation(net, teacher, output_weight=0, feature_weight=2, points=1, loss="SFD")
    x = torch.rand(1, 3, 8, 8)
    target = distillation.teacher_output(x)
    terms = distillation.losses([net(x, depth=5)], (1.0,), target)
    wanted = [
        reference.sfd(seen[f"s{i}"].flatten(2).tolist(), seen[f"t{i}"].flatten(2).tolist())
        for i in (0, 1, 4, 5)  # not 2, which is skipped, nor 3 behind it
    ]
    assert terms["l_feature"].item() == pytest.approx(2 * sum(wanted) / 4, rel=1e-5)


def test_sfd_refuses_a_teacher_of_another_shape() -> None:
    arguments = {"output_weight": 0, "feature_weight": 1, "points": 1, "loss": "SFD"}
    with pytest.raises(InputError, match="4 and 2 blocks; feature_loss SFD"):
        Distillation(student(), EDSR(3, 3, num_feat=8, num_block=2, upscale=2), **arguments)
    with pytest.raises(InputError, match=r"shapes \(1, 4, 3, 3\) and \(1, 5, 3, 3\)"):
        plain_loss([torch.rand(1, 4, 3, 3)], [torch.rand(1, 5, 3, 3)])
