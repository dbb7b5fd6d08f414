"""The optimizer of each parameter, and Muon on kernels compared with the formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from quantsr.models.optimizers import KernelMuon, hidden_weights
from quantsr.models.quantsr_model import QuantSRModel
from tests.models.test_quantsr_model import batch, make_model, parameters
from tests.reference.muon import muon_step


def layers() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 5, 1), nn.Linear(5, 6), nn.Linear(6, 3)
    )


def test_hidden_weights_are_all_but_the_first_and_the_last() -> None:
    net = layers()
    assert [id(w) for w in hidden_weights(net)] == [id(net[i].weight) for i in (1, 2, 3)]
    net[1].weight.requires_grad_(False)
    assert [id(w) for w in hidden_weights(net)] == [id(net[i].weight) for i in (2, 3)]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernel_muon_is_the_formula(layout: torch.memory_format, together: bool) -> None:
    """Three steps with decay equal the reference, for both memory formats of a kernel."""
    net = layers().to(memory_format=layout)  # type: ignore[call-overload]
    weights = hidden_weights(net)
    optimizer = KernelMuon(weights, lr=0.02, weight_decay=0.1, together=together)
    wanted = [w.detach().clone().flatten(1) for w in weights]
    momenta = [torch.zeros_like(w) for w in wanted]
    for step in range(3):
        torch.manual_seed(step)
        for i, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape)
            if weight.ndim == 4 and step != 1:  # else another memory format than the weight's
                weight.grad = weight.grad.to(memory_format=layout)
            wanted[i], momenta[i] = muon_step(
                wanted[i], weight.grad.flatten(1), momenta[i], lr=0.02, weight_decay=0.1
            )
        optimizer.step()
        optimizer.zero_grad()
        assert all(weight.grad is None for weight in weights)
    for weight, matrix in zip(weights, wanted, strict=True):
        # bf16 in the Newton-Schulz iteration: sums in another order differ by some units of
        # 2 ** -8.
        torch.testing.assert_close(weight.detach().flatten(1), matrix, rtol=0, atol=0.0005)


def test_batched_updates_equal_updates_one_by_one() -> None:
    """Five matrices of one shape, one of another shape and one without a gradient."""
    generator = torch.Generator().manual_seed(2)
    starts = [torch.randn(16, 8, 3, 3, generator=generator) for _ in range(6)]
    starts.append(torch.randn(20, 12, generator=generator))
    nets = [[nn.Parameter(start.clone()) for start in starts] for _ in range(2)]
    optimizers = [
        KernelMuon(net, lr=1e-2, together=batched) for net, batched in zip(nets, (False, True), strict=True)
    ]
    for _ in range(5):
        for number, start in enumerate(starts[1:], 1):
            grad = torch.randn(start.shape, generator=generator)
            for net in nets:
                net[number].grad = grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, start in zip(*nets, starts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-2 * (one - start).abs().max().item() + 1e-9)
    assert torch.equal(nets[1][0], starts[0])
    assert not torch.equal(nets[1][-1], starts[-1])


def test_weights_of_other_memory_formats_are_an_error() -> None:
    weight = nn.Parameter(torch.randn(6, 4, 3, 4)[..., :3])
    with pytest.raises(ValueError, match="contiguous or channels-last"):
        KernelMuon([weight], lr=1e-3)


def test_every_parameter_has_one_optimizer(make_options: Any) -> None:
    model = make_model(make_options(**{"train.optim_g": {"type": "Muon", "lr": 1e-3, "weight_decay": 0.5}}))
    adam, muon = model.optimizers
    (group,) = muon.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.5)
    assert len(group["params"]) == 4 * 2 + 2  # blocks, conv_after_body, upsample
    in_adam = [p for g in adam.param_groups for p in g["params"]]
    assert len(in_adam) + len(group["params"]) == len(list(model.net.parameters()))
    before = parameters(model.net)
    model.feed_data(batch())
    model.optimize_parameters(1)
    still = {n for n, p in model.net.named_parameters() if torch.equal(p, before[n])}
    assert not any(n.endswith("weight") for n in still)
    model.update_learning_rate(1, 4)
    assert [g["lr"] for o in model.optimizers for g in o.param_groups] == pytest.approx([2.5e-4] * 3)


def test_resuming_from_a_state_gives_the_same_weights(make_options: Any) -> None:
    options = make_options(**{"train.optim_g": {"type": "Muon", "lr": 1e-3}})
    whole = make_model(options)
    for iteration in (1, 2):
        whole.feed_data(batch(iteration))
        whole.optimize_parameters(iteration)
    saved = copy.deepcopy(whole.state())
    other = make_model(options)
    other.load_state(saved)
    for model in (whole, other):
        model.feed_data(batch(3))
        model.optimize_parameters(3)
    for (name, a), (_, b) in zip(whole.net.named_parameters(), other.net.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "scheduler",
    [
        {"type": "CosineAnnealingRestartLR", "periods": [8], "eta_min": 0.0},
        {"type": "MultiStepRestartLR", "milestones": [1, 4], "gamma": 0.5},
    ],
    ids=["cosine", "milestones"],
)
def test_a_resumed_run_has_the_rates_and_settings_of_its_current_options(
    make_options: Any, scheduler: dict[str, Any]
) -> None:
    """The remedy for a loss that is not finite: another rate, and --auto-resume."""

    def make(**optim: Any) -> QuantSRModel:
        return make_model(
            make_options(
                **{
                    "train.optim_g": {"type": "Muon", "lr": 1e-3, **optim},
                    "train.scheduler": scheduler,
                    "train.step_lr": "relative",
                }
            )
        )

    def step(model: QuantSRModel, iteration: int) -> None:
        model.update_learning_rate(iteration)
        model.feed_data(batch(iteration))
        model.optimize_parameters(iteration)

    before = make()
    for iteration in (1, 2):
        step(before, iteration)
    after = make(lr=1e-5, betas=[0.5, 0.5], weight_decay=0.1)
    after.load_state(copy.deepcopy(before.state()))
    for iteration in (3, 4, 5):
        step(before, iteration)
        step(after, iteration)
        rates = [
            [group["lr"] for optimizer in model.optimizers for group in optimizer.param_groups]
            for model in (before, after)
        ]
        assert [rate / 100 for rate in rates[0]] == pytest.approx(rates[1])
    adam, muon = after.optimizers
    assert all(tuple(group["betas"]) == (0.5, 0.5) for group in adam.param_groups)
    assert [adam.param_groups[0]["weight_decay"], muon.param_groups[0]["weight_decay"]] == [0.1, 0.1]
