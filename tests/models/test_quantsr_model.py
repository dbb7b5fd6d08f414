"""One training step: losses, parameter groups, rates, accumulation, clipping, EMA."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from quantsr import cpu, quant
from quantsr.basicsr_compat import EDSR, MODEL_REGISTRY
from quantsr.engine import build
from quantsr.engine.evaluate import evaluating
from quantsr.errors import WorkError
from quantsr.models.ema import Ema
from quantsr.models.quantsr_model import QuantSRModel

CPU = torch.device("cpu")


def make_model(options: Any, teacher: nn.Module | None = None, device: torch.device = CPU) -> QuantSRModel:
    torch.manual_seed(3)
    net = build.build_for_options(options)
    if hasattr(net, "rank_blocks"):
        quant.calibrate(net, [torch.rand(2, 3, 8, 8)])
    return MODEL_REGISTRY.get("QuantSRModel")(options, net=net, device=device, teacher=teacher)


def batch(seed: int = 0, size: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "lq": torch.rand(size, 3, 8, 8, generator=generator),
        "gt": torch.rand(size, 3, 16, 16, generator=generator),
    }


def parameters(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def test_stage1_is_the_loss_of_the_full_depth(make_options: Any) -> None:
    model = make_model(make_options())
    data = batch()
    wanted = (model.net(data["lq"]) - data["gt"]).abs().mean()
    model.feed_data(data)
    model.optimize_parameters(1)
    assert model.get_current_log() == {
        "loss": pytest.approx(wanted.item()),
        "l_pix": pytest.approx(wanted.item()),
    }


def test_soft_targets_add_their_weighted_distance_at_every_depth(make_options: Any, tmp_path: Any) -> None:
    soft_folder = {"datasets.train.dataroot_soft": str(tmp_path), "train.distill": {"soft_weight": 0.25}}
    model = make_model(make_options(**soft_folder))
    model.start_stage2()
    data = batch()
    data["soft"] = data["gt"].flip(-1)
    outputs = model.net(data["lq"], depth=model.depths)
    wanted = torch.stack([(out - data["soft"]).abs().mean() for out in outputs]).mean() * 0.25
    model.feed_data(data)
    model.optimize_parameters(1)
    assert model.get_current_log()["l_soft"] == pytest.approx(wanted.item())


@pytest.mark.parametrize("weights", [None, [0.5, 0.3, 0.2]])
def test_stage2_is_the_weighted_sum_over_depths(make_options: Any, weights: list[float] | None) -> None:
    model = make_model(make_options(**{"train.depth_weights": weights}))
    model.start_stage2()
    data = batch()
    model.feed_data(data)
    other = copy.deepcopy(model.net)
    losses = [(other(data["lq"], depth=d) - data["gt"]).abs().mean() for d in (4, 2, 1)]
    total = sum(w * x for w, x in zip(weights or [1 / 3] * 3, losses, strict=True))
    total.backward()
    losses_here = model._losses(model.batches[0])
    sum(losses_here.values()).backward()
    assert sum(v.item() for v in losses_here.values()) == pytest.approx(total.item(), rel=1e-6)
    assert list(losses_here) == ["l_pix", "l_pix_depth2", "l_pix_depth1"]
    for (name, a), (_, b) in zip(model.net.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_ranking_is_by_shortcut_and_reaches_the_ema(make_options: Any) -> None:
    model = make_model(make_options())
    with torch.no_grad():
        for block, value in zip(model.net.body, [1.3, 0.2, 0.9, 0.4], strict=True):
            block.shortcut.fill_(value)
    assert model.start_stage2() == (1, 3, 2, 0)
    assert model.stage == 2
    assert model.ema is not None
    assert model.net.ranking == model.ema.net.ranking == (1, 3, 2, 0)


def test_ranking_by_loss_drops_the_block_with_the_least_increase_first(make_options: Any) -> None:
    """Compared with copies of the network, each ranked to keep the blocks of one sub-network."""
    distill = {"output_weight": 0.0, "feature_weight": 1.0}
    options = make_options(**{"train.distill": distill, "train.ranking": "loss", "train.ranking_batches": 2})
    model = make_model(options, teacher=EDSR(3, 3, num_feat=8, num_block=4, upscale=2))
    with pytest.raises(ValueError, match="ranked on 2 batches, got 0"):
        model.start_stage2()
    with torch.no_grad():
        for block, size in zip(model.net.body, [0.1, 3.0, 0.01, 1.0], strict=True):
            block.conv2.weight.mul_(size)
    data = [batch(1), batch(2)]

    def loss_of(kept: set[int]) -> float:
        other = copy.deepcopy(model.net)
        other.set_ranking([*sorted(kept), *(i for i in range(4) if i not in kept)])
        with torch.no_grad():
            return sum((other(b["lq"], depth=len(kept)) - b["gt"]).abs().mean().item() for b in data)

    kept, wanted = {0, 1, 2, 3}, []
    while kept:
        wanted.append(min(kept, key=lambda i: loss_of(kept - {i})) if len(kept) > 1 else kept.pop())
        kept -= {wanted[-1]}
    assert model.start_stage2(data) == tuple(reversed(wanted))
    assert wanted != sorted(wanted)
    assert model.ema is not None
    assert model.net.ranking == model.ema.net.ranking
    model.feed_data(batch())
    model.optimize_parameters(1)  # with the features of this step, not those of the ranking
    assert model.get_current_log()["l_feature"] > 0


def test_the_ranking_of_the_checkpoint_is_kept_without_stage1(make_options: Any) -> None:
    for fraction, wanted in ((0.0, (3, 2, 1, 0)), (0.5, (0, 1, 2, 3))):
        model = make_model(make_options(**{"train.stage1_fraction": fraction}))
        model.net.set_ranking([3, 2, 1, 0])
        assert model.start_stage2() == wanted


def test_quantizer_parameters_have_their_own_rate_and_no_decay(make_options: Any) -> None:
    options = make_options(
        **{"train.step_lr_mult": 0.1, "train.optim_g": {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.3}}
    )
    model = make_model(options)
    weights, steps = model.optimizers[0].param_groups
    assert (weights["lr"], weights["weight_decay"]) == (1e-2, 0.3)
    assert (steps["lr"], steps["weight_decay"]) == (pytest.approx(1e-3), 0.0)
    names = {id(p): name for name, p in model.net.named_parameters()}
    of_steps = {names[id(p)] for p in steps["params"]}
    assert of_steps == {n for n in names.values() if "quantizer" in n}
    assert len(of_steps) == 4 * 2 * 3
    assert len(weights["params"]) + len(steps["params"]) == len(names)


def test_relative_rates_change_all_steps_by_the_same_ratio(make_options: Any) -> None:
    """Adam's first update is as large as the rate."""
    model = make_model(make_options(**{"train.step_lr": "relative", "train.step_lr_mult": 0.5}))
    rate = model.train_options.optim_g.lr
    before = parameters(model.net)
    model.feed_data(batch())
    model.optimize_parameters(1)
    moved = 0
    for name, parameter in model.net.named_parameters():
        if "quantizer" in name and parameter.grad is not None:
            unit = before[name.replace(".tau", ".step")]
            share = (parameter.detach() - before[name]).abs().max() / unit
            if share > 0:
                moved += 1
                assert share.item() == pytest.approx(0.5 * rate, rel=1e-2), name
    assert moved >= 16


def test_accumulating_equals_one_large_batch(make_options: Any) -> None:
    whole = batch(size=4)
    halves = [{k: v[:2] for k, v in whole.items()}, {k: v[2:] for k, v in whole.items()}]
    one, two = make_model(make_options()), make_model(make_options())
    one.feed_data(whole)
    two.feed_data(halves)
    for model in (one, two):
        model.optimize_parameters(1)
    for (name, a), (_, b) in zip(one.net.named_parameters(), two.net.named_parameters(), strict=True):
        if "quantizer" not in name:  # LSQ's step-gradient scale counts the elements of a batch
            torch.testing.assert_close(a.grad, b.grad, rtol=2e-3, atol=1e-6, msg=name)
    assert one.get_current_log()["loss"] == pytest.approx(two.get_current_log()["loss"], rel=1e-5)


def test_clipping_bounds_the_gradient(make_options: Any) -> None:
    model = make_model(make_options(**{"train.grad_clip_norm": 1e-3}))
    model.feed_data(batch())
    model.optimize_parameters(1)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.net.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def rates(model: QuantSRModel, count: int, warmup: int) -> list[float]:
    found = []
    for iteration in range(1, count + 1):
        model.update_learning_rate(iteration, warmup)
        found.append(model.get_current_learning_rate()[0])
        model.optimizers[0].step()
    return found


def test_warm_up_ends_at_the_full_rate(make_options: Any) -> None:
    model = make_model(make_options())
    assert rates(model, 8, 4) == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3, 5e-4, 5e-4])


def test_the_cosine_schedule_is_the_formula(make_options: Any) -> None:
    scheduler = {"type": "CosineAnnealingRestartLR", "eta_min": 1e-7, "periods": [8]}
    found = rates(make_model(make_options(**{"train.scheduler": scheduler})), 8, -1)
    wanted = [1e-7 + 0.5 * (1e-3 - 1e-7) * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert found == pytest.approx(wanted)


def test_ema_is_the_recursion() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ema = Ema(net, 0.25)
    shadow = {k: v.clone() for k, v in net.state_dict().items()}
    for step, decay in enumerate((2 / 11, 0.25, 0.25)):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(step + 1.0)
            net[1].running_mean.add_(1.0)
        ema.update(net, step + 1)
        for name, p in net.named_parameters():
            shadow[name] = decay * shadow[name] + (1 - decay) * p.detach()
    for name, p in ema.net.named_parameters():
        torch.testing.assert_close(p, shadow[name])
        assert not p.requires_grad
    assert torch.equal(ema.net[1].running_mean, net[1].running_mean)
    assert not ema.net.training


def test_without_ema_the_network_itself_is_evaluated(make_options: Any) -> None:
    model = make_model(make_options(**{"train.ema_decay": 0.0}))
    assert model.ema is None
    assert model.evaluated_net is model.net
    assert make_model(make_options()).evaluated_net is not model.net


def test_a_float_network_trains_in_one_stage(make_options: Any) -> None:
    options = make_options(
        network_g={
            "type": "EDSR",
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": 4,
            "num_block": 1,
            "upscale": 2,
        }
    )
    model = make_model(options)
    assert model.depths == ()
    before = parameters(model.net)
    model.feed_data(batch())
    model.optimize_parameters(1)
    assert any(not torch.equal(v, before[k]) for k, v in parameters(model.net).items())


def test_teacher_terms_are_in_the_loss(make_options: Any) -> None:
    teacher = EDSR(3, 3, num_feat=8, num_block=2, upscale=2)
    options = make_options(
        **{
            "train.distill": {"output_weight": 1.0, "feature_weight": 1e-4, "points": 2},
            "train.precision": "bf16",
        }
    )
    model = make_model(options, teacher)
    for stage in (1, 2):
        if stage == 2:
            model.start_stage2()
        model.feed_data(batch())
        model.optimize_parameters(stage)
        assert {"l_teacher", "l_feature"} < model.get_current_log().keys()
    assert not teacher.training


def test_a_validation_between_steps_does_not_change_the_teachers_terms(make_options: Any) -> None:
    """Without a moving average, the validated network is also the one with feature hooks."""
    teacher, logs = EDSR(3, 3, num_feat=8, num_block=2, upscale=2), []
    options = make_options(**{"train.distill": {"feature_weight": 1.0, "points": 2}, "train.ema_decay": 0.0})
    for validates in (False, True):
        model = make_model(options, copy.deepcopy(teacher))
        for iteration in (1, 2):
            model.feed_data(batch(iteration))
            model.optimize_parameters(iteration)
            if validates:
                with evaluating(model.evaluated_net):
                    model.evaluated_net(torch.rand(1, 3, 9, 11))
        logs.append(model.get_current_log())
    assert logs[0] == logs[1]


def test_the_bf16_loss_is_near_the_fp32_loss(make_options: Any) -> None:
    logs = []
    for precision in ("fp32", "bf16"):
        model = make_model(make_options(**{"train.precision": precision}))
        model.feed_data(batch())
        model.optimize_parameters(1)
        assert all(p.dtype == torch.float32 for p in model.net.parameters())
        logs.append(model.get_current_log()["loss"])
    assert logs[0] == pytest.approx(logs[1], rel=2e-2)


@pytest.mark.parametrize(
    ("flags", "precision"), [({"avx2"}, "fp32"), ({"avx512f", "avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16")]
)
def test_auto_takes_bf16_where_the_processor_computes_in_it(
    make_options: Any, monkeypatch: pytest.MonkeyPatch, flags: set[str], precision: str
) -> None:
    monkeypatch.setattr(cpu, "describe", lambda: ("a processor", frozenset(flags)))
    assert make_model(make_options(**{"train.precision": "auto"})).precision == precision


def test_the_first_iteration_with_a_loss_that_is_not_finite_is_named(make_options: Any) -> None:
    model = make_model(make_options())
    for iteration, factor in ((1, 1.0), (2, math.inf), (3, math.nan)):
        data = batch()
        data["gt"] = data["gt"] * factor
        model.feed_data(data)
        model.optimize_parameters(iteration)
    with pytest.raises(WorkError, match="iteration 2: the loss is not finite"):
        model.check_finite()
