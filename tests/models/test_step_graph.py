"""Training steps recorded as a CUDA graph and replayed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quantsr.models.quantsr_model import QuantSRModel
from quantsr.models.step_graph import WARM_UP, StepGraph
from tests.models.test_quantsr_model import batch, make_model, parameters


def test_on_the_cpu_steps_are_not_recorded(make_options: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert make_model(make_options())._graph is None
    assert not caplog.records
    model = make_model(make_options(**{"train.cuda_graph": True}))
    assert model._graph is None
    assert "steps are recorded on one CUDA device only" in caplog.text
    model.feed_data(batch())
    model.optimize_parameters(1)


def train(options: Any, steps: int) -> tuple[QuantSRModel, list[float]]:
    """Trains both stages on the GPU, with rates that change in every step."""
    model = make_model(options, device=torch.device("cuda", 0))
    losses = []
    for iteration in range(1, steps + 1):
        if iteration == steps // 2:
            model.start_stage2()
        model.update_learning_rate(iteration, 4)
        model.feed_data(batch(iteration))
        model.optimize_parameters(iteration)
        losses.append(float(sum(model.loss_terms.values())))
    model.check_finite(weights=True)
    return model, losses


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["Adam", "Muon"])
def test_replayed_steps_equal_plain_steps(
    make_options: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    steps = 4 * WARM_UP
    common = {"train.optim_g": {"type": kind, "lr": 1e-3}, "train.step_lr": "relative"}
    plain, wanted = train(make_options(**common, **{"train.cuda_graph": False}), steps)
    replayed, losses = train(make_options(**common), steps)
    assert plain._graph is None
    assert replayed._graph is not None
    assert replayed._graph.works
    assert replayed._graph._graph is not None
    assert losses == pytest.approx(wanted, rel=1e-4)
    others = parameters(plain.evaluated_net)
    for name, value in parameters(replayed.evaluated_net).items():
        torch.testing.assert_close(value, others[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.gpu
def test_steps_that_cannot_be_recorded_run_without_a_graph(caplog: pytest.LogCaptureFixture) -> None:
    device = torch.device("cuda", 0)
    weight = torch.ones(4, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def step(batches: Any) -> dict[str, torch.Tensor]:
        optimizer.zero_grad()
        loss = (weight * batches[0]["x"]).sum()
        float(loss.detach())  # waits for the device
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    graph = StepGraph(step, [optimizer], device)
    for _ in range(WARM_UP + 3):
        graph([{"x": torch.ones(4, device=device)}])
    assert not graph.works
    assert "cannot be recorded as a CUDA graph" in caplog.text
    assert weight.tolist() == pytest.approx([1 - 0.1 * (WARM_UP + 3)] * 4)
