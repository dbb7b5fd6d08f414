"""The damping of oscillating weights: its loss, its gradient, and its part in a step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from quantsr.errors import InputError
from quantsr.models.damping import Damping
from quantsr.quant import quantized_layers, quantizer_names
from tests.models.test_quantsr_model import batch, make_model
from tests.reference import damping as reference

NO_CODES = {"DoReFa", "PACT"}  # PACT has the weights of DoReFa


def test_loss_and_gradient_are_those_of_the_formula(make_options: Any) -> None:
    model = make_model(make_options())
    damping = Damping(model.net, 0.5, 10)
    damping.set_iteration(4)
    factor = reference.factor(0.5, 4, 10)
    assert float(damping.factor) == pytest.approx(factor)
    loss, wanted = 0.0, {}
    for name, layer in quantized_layers(model.net).items():
        layer.weight.grad = torch.ones_like(layer.weight)
        layer.weight.data[0] *= 10  # beyond the range
        step, codes = float(layer.weight_quantizer.step.detach()), layer.weight_quantizer.range
        part, gradients = reference.damping(
            layer.weight.flatten().tolist(), step, codes.qmin, codes.qmax, factor
        )
        loss += part
        wanted[name] = torch.tensor(gradients).view_as(layer.weight)
        assert not wanted[name][0].all()
    assert float(damping.add_gradients()) == pytest.approx(loss, rel=1e-4)
    for name, layer in quantized_layers(model.net).items():
        torch.testing.assert_close(layer.weight.grad - 1, wanted[name], rtol=1e-3, atol=1e-6, msg=name)


def test_a_step_adds_it_to_the_gradients_of_the_losses(make_options: Any) -> None:
    plain = make_model(make_options())
    damped = make_model(make_options(**{"train.damping_weight": 0.1}))
    damped.net.load_state_dict(copy.deepcopy(plain.net.state_dict()))
    before = {name: p.detach().clone() for name, p in plain.net.named_parameters()}
    for model in (plain, damped):
        model.feed_data(batch())
        model.optimize_parameters(1)
    assert damped.damping is not None
    for net in (plain.net, damped.net):
        for name, parameter in net.named_parameters():
            parameter.data.copy_(before[name])
    damped.damping.set_iteration(1)
    assert damped.get_current_log()["l_damping"] > 0
    Damping.add_gradients(_of(plain.net, damped.damping))
    for (name, own), other in zip(damped.net.named_parameters(), plain.net.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, msg=name)


def _of(net: Any, damping: Damping) -> Damping:
    """The same damping of another network."""
    other = Damping(net, damping.weight, damping.iterations)
    other.factor = damping.factor
    return other


def test_weights_come_to_rest_in_the_middle_of_their_steps(make_options: Any) -> None:
    model = make_model(make_options())
    damping = Damping(model.net, 1.0, 1)
    damping.set_iteration(1)
    losses = []
    for _ in range(20):
        for layer in damping.layers:
            layer.weight.grad = torch.zeros_like(layer.weight)
        losses.append(float(damping.add_gradients()))
        for layer in damping.layers:
            layer.weight.data -= 0.25 * layer.weight.grad
    assert losses[-1] < 1e-6 * losses[0]


@pytest.mark.parametrize("method", quantizer_names())
def test_every_quantizer_has_codes_or_says_so(make_options: Any, method: str) -> None:
    options = make_options(**{"network_g.quantizer": method, "train.damping_weight": 1e-3})
    if method in NO_CODES:
        with pytest.raises(InputError, match="damping_weight: DoReFaWeight has no integer codes"):
            make_model(options)
        return
    model = make_model(options)
    model.feed_data(batch())
    model.optimize_parameters(model.train_options.total_iter)
    assert model.get_current_log()["l_damping"] > 0


def test_a_float_network_is_refused_in_one_line(make_options: Any) -> None:
    changes = {"network_g.nbits_a": 32, "network_g.nbits_w": 32}
    with pytest.raises(InputError, match=r"train.damping_weight: no weight of network_g is quantized"):
        Damping(make_model(make_options(**changes)).net, 1e-3, 10)
