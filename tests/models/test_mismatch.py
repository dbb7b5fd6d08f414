"""ODM's mismatch loss: the distance, the weight of its gradient, and its part in a step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from quantsr.errors import InputError
from quantsr.models.mismatch import Mismatch, cooperation, distance
from quantsr.quant import quantized_layers, quantizer_names
from tests.models.test_quantsr_model import batch, make_model
from tests.reference import mismatch as reference

NO_RANGE = {"DoReFa", "PACT"}


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_distance_is_that_of_the_formula(channel_dim: int, channels: int) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 4, 3) * 3
    low, high = -torch.rand(channels), torch.rand(channels) * 2
    shape = [1] * 4
    shape[channel_dim] = -1
    wanted = reference.distance(
        x.flatten().tolist(),
        low.view(shape).expand_as(x).flatten().tolist(),
        high.view(shape).expand_as(x).flatten().tolist(),
    )
    assert distance(x, low, high, channel_dim).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["random", "same", "opposite", "zero"])
def test_the_gradient_is_weighed_by_the_angle(kind: str) -> None:
    torch.manual_seed(2)
    task = [torch.randn(3, 2), torch.randn(4)]
    other = {
        "random": [torch.randn(3, 2), torch.randn(4)],
        "same": [3 * t for t in task],
        "opposite": [-2 * t for t in task],
        "zero": [0 * t for t in task],
    }[kind]
    factor = cooperation(task, other)
    if kind in ("same", "opposite"):
        assert factor.item() == pytest.approx(float(kind == "same"), abs=1e-6)
    flat, flat_other = (torch.cat([t.flatten() for t in each]) for each in (task, other))
    wanted = reference.weighed(flat.tolist(), flat_other.tolist())
    torch.testing.assert_close(flat + factor * flat_other, torch.tensor(wanted))


def expected_step(model: Any, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Gradients by parameter: those of the two losses by two networks, weighed by the reference."""
    parts = []
    for kind in ("task", "mismatch"):
        net = copy.deepcopy(model.net)
        for data in batches:
            found = []

            def record(layer: Any, x: torch.Tensor, found: list[torch.Tensor] = found) -> None:
                low, high = layer.input_quantizer.clipping_range()
                found.append((x - x.clamp(low, high)).square().mean())

            for layer in quantized_layers(net).values():
                layer.watch = record
            loss = (net(data["lq"]) - data["gt"]).abs().mean()
            ((loss if kind == "task" else 0.01 * sum(found)) / len(batches)).backward()
        parts.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in net.named_parameters()
            }
        )
    flat = [torch.cat([g.flatten() for g in part.values()]).double().tolist() for part in parts]
    combined = torch.tensor(reference.weighed(*flat))
    sizes = [g.numel() for g in parts[0].values()]
    return {
        name: values.view_as(parts[0][name]).float()
        for name, values in zip(parts[0], combined.split(sizes), strict=True)
    }


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_takes_both_gradients(make_options: Any, count: int) -> None:
    changes = {"network_g.quantizer": "ODM", "train.mismatch_weight": 0.01, "train.accumulate": count}
    model = make_model(make_options(**changes))
    for layer in quantized_layers(model.net).values():
        layer.input_quantizer.upper.data.mul_(0.5)  # so that features lie beyond
    batches = [batch(seed) for seed in range(count)]
    wanted = expected_step(model, batches)
    model.feed_data(batches)
    model.optimize_parameters(1)
    for name, parameter in model.net.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-7, msg=name)
    assert model.get_current_log()["l_mismatch"] > 0
    assert all(layer.watch is None for layer in quantized_layers(model.net).values())


@pytest.mark.parametrize("method", quantizer_names())
def test_every_quantizer_has_a_range_or_says_so(make_options: Any, method: str) -> None:
    model = make_model(make_options(**{"network_g.quantizer": method, "train.mismatch_weight": 1e-5}))
    model.feed_data(batch())
    if method in NO_RANGE:
        with pytest.raises(InputError, match=f"mismatch_weight: .*quantizer {method} have no range"):
            model.optimize_parameters(1)
        return
    model.optimize_parameters(1)
    for layer in quantized_layers(model.net).values():
        low, high = (bound.view(-1, 1, 1) for bound in layer.input_quantizer.clipping_range())
        channels = layer.in_channels
        inside = torch.linspace(0.01, 0.99, 9).view(3, 3) * (high - low) + low
        x = inside.expand(1, channels, 3, 3).clone().requires_grad_()
        layer.input_quantizer(x).sum().backward()
        assert (x.grad > 0).all()
        for beyond in (low - 0.1 * (high - low), high + 0.1 * (high - low)):
            x = beyond.expand(1, channels, 3, 3).clone().requires_grad_()
            layer.input_quantizer(x).sum().backward()
            assert not x.grad.any()


def test_a_float_network_is_refused_in_one_line(make_options: Any) -> None:
    changes = {"network_g.nbits_a": 32, "network_g.nbits_w": 32, "train.mismatch_weight": 1e-5}
    with pytest.raises(InputError, match=r"train.mismatch_weight: no input of network_g is quantized"):
        Mismatch(make_model(make_options(**changes | {"train.mismatch_weight": 0})).net, 1e-5)
