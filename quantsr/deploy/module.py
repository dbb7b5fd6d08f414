"""A converted network as a PyTorch module: the inverse of `convert`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quantsr.archs import contract
from quantsr.archs.constructors import build_network
from quantsr.config import registries
from quantsr.config.networks import check_network
from quantsr.config.problems import Problems
from quantsr.deploy.convert_layers import operand_form
from quantsr.deploy.lower import lowered
from quantsr.deploy.packed.model import Float, PackedLayer, PackedModel
from quantsr.errors import InputError
from quantsr.quant import Rule, quantize_layers
from quantsr.quant.attention import QuantOperand
from quantsr.quant.layers import QuantizedLayer
from quantsr.ranges import IntRange

_HALF = 2.0**-10
"""What float16 rounds, at most, relative to the value."""


def to_module(model: PackedModel, source: str | Path = "model") -> nn.Module:
    """A network in eval mode that computes what `model` does, with fake quantization in float32;
    for training on and for PyTorch engines.

    Layers outside the blocks stay plain convs, whose weights are the dequantized codes: 16-bit
    inputs are left in float. Those with 8-bit inputs (older files) become `QuantConv2d`; the one
    whose input codes are the pixels does not. A network with an 8-bit head
    and tail cannot be converted again: convert its checkpoint.

    Raises:
        InputError: its type is not registered, or its header describes another network than its
            program and its layers are of; names `source`, the file.
    """
    kind = model.header.arch.get("type")
    if kind not in registries.networks():
        raise InputError(
            f"{source}: its network {kind!r} is not registered, so no torch module can be made of it; name its "
            "Python file by --import FILE, from Python import it first"
        )
    try:
        return _module(model)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{source}: its header does not describe its network ({reason}); fetch or export it again"
        ) from error


def _module(model: PackedModel) -> nn.Module:
    header = model.header
    problems = Problems("arch")
    check_network("arch", dict(header.arch), None, problems)
    if problems.lines:
        raise ValueError(next(iter(problems.lines)))
    net = build_network(header.arch["type"], {k: v for k, v in header.arch.items() if k != "type"})
    plain = [
        name
        for name, layer in model.layers.items()
        if layer.integer
        and layer.bits_a <= 8
        and layer.act_zero_point is None
        and not isinstance(net.get_submodule(name), QuantizedLayer)
    ]
    if plain:  # which the constructor leaves in float
        layers = [model.layers[name] for name in plain]
        quantize_layers(net, [Rule(x.name, x.bits_w, x.bits_a, "RLQ", "channel") for x in layers])
    with torch.no_grad():
        if (dynamic := contract.of(net).depth_dynamic) is not None:
            if header.num_block < len(dynamic.units()):
                raise InputError(
                    f"holds {header.num_block} of its network's {len(dynamic.units())} units; for a torch module export all "
                    "depths, and run it at one"
                )
            if header.ranking is not None:
                dynamic.set_ranking(header.ranking)
            for unit, shortcut in zip(dynamic.units(), header.shortcuts, strict=True):
                unit.shortcut.fill_(shortcut)
        for name, operand in model.operands.items():
            module = net.get_submodule(name)
            assert isinstance(module, QuantOperand)
            assert module.input_quantizer is not None
            channels, factor = module.input_quantizer.channels, np.float32(operand_form(net, name).factor)
            tau = np.zeros(channels, np.float32) if operand.tau is None else operand.tau[:channels]
            _load_input_quantizer(module, operand.step * factor, tau * factor, operand.range)
        # codes of pixels go into a shift that no program has
        late = {name for name, layer in model.layers.items() if layer.act_zero_point is not None}
        for name in model.layers.keys() - late:
            _load_layer(net.get_submodule(name), model.layers[name])
        found = None if model.written is None else lowered(net)
        for name, tensor in model.floats.items():
            if found is None or name not in found.constants:
                net.get_parameter(name).copy_(torch.from_numpy(tensor.values))
            elif not np.allclose(found.constants[name], tensor.values, rtol=_HALF, atol=_HALF):
                raise ValueError(f"{name} is not what its network computes from its parameters")
        if found is not None and found.program != model.program.renumbered():
            raise ValueError(
                "its program is not that of the network of this name: the network was changed, or has parameters that the "
                "program holds as numbers"
            )
        for name in late:
            _load_layer(net.get_submodule(name), model.layers[name])
    net.head_tail_converted = header.head_tail_bits == 8  # type: ignore[assignment]
    return net.eval()


def _load_layer(module: nn.Module, layer: PackedLayer) -> None:
    assert isinstance(module, nn.Conv2d | nn.Linear)
    if layer.act_zero_point is not None:
        # Its codes are the pixels, so quantization is the identity, and only their zero point is
        # left to apply.
        assert layer.act_step is not None
        _prepend(module, layer.tau() - layer.act_step * layer.zero_point())
    elif layer.act_equal is not None and layer.bits_a <= 8:
        assert isinstance(module, QuantizedLayer)
        module.input_equal = torch.from_numpy(layer.act_equal.copy())
        # of the equalized input and weight
        layer = replace(layer, act_tau=layer.tau() / layer.act_equal, act_equal=None)
    module.weight.copy_(torch.from_numpy(layer.float_weight()))
    if module.bias is not None:
        module.bias.copy_(torch.from_numpy(layer.bias))
    elif layer.bias.any():  # what an offset of the input's codes adds
        module.bias = nn.Parameter(torch.from_numpy(layer.bias).to(module.weight.device))
    if not isinstance(module, QuantizedLayer):
        return
    if module.weight_quantizer is not None:
        assert layer.weight_step is not None
        module.weight_quantizer.step.copy_(torch.from_numpy(layer.weight_step))
        _set_calibrated(module.weight_quantizer)
        if not np.array_equal(module.weight_codes().numpy(), layer.weight):
            raise ValueError(f"{layer.name}: quantizer {module.quantizer} does not give its weight codes")
    if module.input_quantizer is not None:
        assert layer.act_step is not None
        _load_input_quantizer(module, layer.act_step, layer.tau(), layer.act_range)


def _load_input_quantizer(module: QuantizedLayer, step: Float, tau: Float, limits: tuple[int, int]) -> None:
    assert module.input_quantizer is not None
    step_and_tau = {"step": torch.from_numpy(step), "tau": torch.from_numpy(tau)}
    module.input_quantizer.load_integers(**step_and_tau, codes=IntRange(*limits))


def _prepend(module: nn.Module, shift: NDArray[np.float32]) -> None:
    """Let `module` read `x + shift[c]`."""
    values = torch.tensor(shift, dtype=torch.float32).view(1, -1, 1, 1)
    module.register_buffer("input_shift", values, persistent=False)
    module.register_forward_pre_hook(_shift)


def _shift(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0] + module.input_shift, *inputs[1:])


def _set_calibrated(quantizer: nn.Module) -> None:
    """Mark as calibrated by loading the state, which also refreshes what the quantizer derives from
    it."""
    state = quantizer.state_dict()
    quantizer.load_state_dict({**state, "calibrated": torch.tensor(True)})
