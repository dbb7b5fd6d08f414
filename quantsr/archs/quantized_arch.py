"""Any registered network with its layers quantized by rules, as ``network_g`` of option files."""

from __future__ import annotations

from typing import Any

from torch import nn

from quantsr.archs.constructors import build_network
from quantsr.basicsr_compat import ARCH_REGISTRY
from quantsr.errors import InputError
from quantsr.quant.layer_rules import Rule, quantize_layers
from quantsr.quant.quantizers import Granularity
from quantsr.ranges import Bits


def Quantized(
    network: dict[str, Any],
    rules: dict[str, str | int],
    quantizer: str = "RLQ",
    granularity: Granularity = "channel",
    equalized: bool = True,
) -> nn.Module:
    """A float network with its convolutions and linear layers quantized.

    Args:
        network: ``type`` and arguments of the float network, as ``network_g`` has them.
        rules: bits by patterns of layer names: ``{"body.*": W4A4, conv_last: float}``; 4 is W4A4.
            The first pattern that matches decides; layers that none matches stay in float.
        quantizer: a name in ``QUANTIZER_REGISTRY``.
        granularity: one weight step per ``tensor`` or per output ``channel``.
        equalized: whether the channels of a layer's input are scaled before they are quantized,
            which costs nothing at inference; `quantsr quantize` chooses the factors.

    Raises:
        InputError: the float network cannot be built.
        ValueError: bits of a rule are none, or a rule decides for no layer.
    """
    arguments = {name: value for name, value in network.items() if name != "type"}
    if "type" not in network:
        raise InputError("network_g.network.type: missing; name the float network")
    parsed = {pattern: Bits.parse(str(bits)) for pattern, bits in rules.items()}
    return quantize_layers(
        build_network(str(network["type"]), arguments),
        [
            Rule(pattern, bits.weights, bits.activations, quantizer, granularity, equalized)
            for pattern, bits in parsed.items()
            if not bits.is_float
        ],
    )


ARCH_REGISTRY.register(Quantized)
