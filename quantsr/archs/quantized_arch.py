"""Any registered network with its layers quantized by rules, as ``network_g`` of option files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from quantsr.archs import contract
from quantsr.archs.constructors import build_network
from quantsr.archs.dqa_trunk import add_depths
from quantsr.archs.modes import eval_mode
from quantsr.archs.prepared import prepare
from quantsr.archs.trial import trial_picture
from quantsr.archs.trunk import Trunk, find_trunk
from quantsr.basicsr_compat import ARCH_REGISTRY
from quantsr.errors import InputError
from quantsr.quant.layer_rules import Rule, quantize_layers
from quantsr.quant.products import quantize_products
from quantsr.quant.quantizers import Granularity
from quantsr.ranges import Bits


def Quantized(
    network: dict[str, Any],
    rules: dict[str, str | int],
    quantizer: str = "RLQ",
    granularity: Granularity = "channel",
    equalized: bool = True,
    depths: Sequence[int] | None = None,
    trunk: str | None = None,
    attention: int | None = None,
) -> nn.Module:
    """A float network with its convolutions and linear layers quantized, once prepared
    (`quantsr.archs.prepared`).

    Args:
        network: ``type`` and arguments of the float network, as ``network_g`` has them.
        rules: bits by patterns of layer names: ``{"body.*": W4A4, conv_last: float}``; 4 is W4A4.
            The first pattern that matches decides; layers that none matches stay in float.
        quantizer: a name in ``QUANTIZER_REGISTRY``.
        granularity: one weight step per ``tensor`` or per output ``channel``.
        equalized: whether the channels of a layer's input are scaled before they are quantized,
            which costs nothing at inference; `quantsr quantize` chooses the factors.
        depths: numbers of residual units of sub-networks that are trained and evaluated, the number
            of all among them; default: the network has one depth.
        trunk: the container of these units, such as ``body``, or a pattern of their names, where
            they are not found (`quantsr.archs.trunk`).
        attention: bits of both operands of products of activations, as attention has them;
            default: these stay in float.

    Raises:
        InputError: the float network cannot be built, has no such trunk, or no such products.
        ValueError: bits of a rule are none, or a rule decides for no layer.
    """
    arguments = {name: value for name, value in network.items() if name != "type"}
    if "type" not in network:
        raise InputError("network_g.network.type: missing; name the float network")
    parsed = {pattern: Bits.parse(str(bits)) for pattern, bits in rules.items()}
    net = prepare(build_network(str(network["type"]), arguments))
    units = None if depths is None else trunk_of(net, trunk, "network_g.trunk")
    if attention is not None:
        quantize_attention(net, attention, quantizer, "network_g.attention")
    quantize_layers(
        net,
        [
            Rule(pattern, bits.weights, bits.activations, quantizer, granularity, equalized)
            for pattern, bits in parsed.items()
            if not bits.is_float
        ],
    )
    options = {
        "type": "Quantized",
        "network": network,
        "rules": rules,
        "quantizer": quantizer,
        "granularity": granularity,
        "equalized": equalized,
        **({} if attention is None else {"attention": attention}),
    }
    return net if depths is None or units is None else add_depths(net, units, depths, options)


def quantize_attention(net: nn.Module, nbits: int, quantizer: str, key: str) -> None:
    """Quantize the operands of a network's products of activations, see `quantize_products`.

    Raises:
        InputError: it has none; names `key`, the option.
    """
    picture = trial_picture(net, contract.of(net).window)
    try:
        with eval_mode(net):
            quantize_products(net, picture, nbits=nbits, quantizer=quantizer)
    except ValueError as error:
        raise InputError(f"{key}: {contract.of(net).type} {error}") from error


def trunk_of(net: nn.Module, name: str | None, key: str) -> Trunk:
    """The trunk of a float network, see `find_trunk`.

    Raises:
        InputError: there is none; names `key`, the option.
    """
    network = contract.of(net)
    if network.depth_dynamic is not None:
        raise InputError(f"{key}: {network.type} has depths of its own; leave depths out")
    try:
        return find_trunk(net, name, window=network.window)
    except ValueError as error:
        raise InputError(f"{key}: {error}") from error


ARCH_REGISTRY.register(Quantized)
