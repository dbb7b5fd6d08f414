"""Post-training quantization: a trained float network with few bits, from some pictures and without
training."""

from __future__ import annotations

import copy
import fnmatch
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantsr.archs import contract
from quantsr.archs.constructors import build_network
from quantsr.archs.dqa import DepthDynamic
from quantsr.archs.dqa_trunk import DepthTrunk, add_depths
from quantsr.archs.prepared import prepared_copy
from quantsr.archs.quantized_arch import quantize_attention, trunk_of
from quantsr.deploy.lower import lower
from quantsr.deploy.post_training_methods import FIT, QUANTIZERS, Method, layers_of, quantizes, set_layers
from quantsr.deploy.roles import roles
from quantsr.depth import rank_by_loss
from quantsr.engine.bounds_training import train_bounds
from quantsr.errors import InputError
from quantsr.quant import Rule, quantize_layers
from quantsr.quant.bit_gradients import bit_gradients, mixed_bits
from quantsr.quant.importance import output_importance
from quantsr.quant.layers import quantized_layers
from quantsr.quant.quantizers import Granularity
from quantsr.ranges import Bits

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]

DEPTHWISE = Bits(8, 8)
"""Of depthwise convolutions that no rule matches."""

_COLOURS = 3

CROPS, CROP_SIDE = 16, 48
"""How many crops of low resolution quantization reads, and their height and width in pixels."""

RANKING_CROPS, RANKING_SIDE = 8, 24
"""The same of the ranking of units, for which n units take about n * n / 2 sub-networks."""

IMPORTANCE_CROPS = 4
"""How many crops of that size the importance of channels is found on."""


@dataclass(frozen=True)
class LayerBits:
    """Bits of the layers whose names match, in place of those by role."""

    pattern: str
    """As the shell's: ``body.*.conv[12]``."""
    bits: Bits


def quantize(
    net: nn.Module,
    bits: Bits,
    pictures: Sequence[Picture],
    *,
    rules: Sequence[LayerBits] = (),
    method: Method = FIT,
    granularity: Granularity = "channel",
    depths: Sequence[int] | None = None,
    trunk: str | None = None,
    attention: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> nn.Module:
    """A copy of a float network whose body has few bits, in eval mode.

    The first layer and those at or behind the enlargement stay float; conversion gives them 8-bit
    weights. A network with arguments for its bits (QuantSR-C and -T) is quantized as these say.
    Each layer reads what the quantized layers before it give of crops of the pictures. Layers of
    QuantSR-C and -T are not fitted but calibrated, their biases stay.

    Args:
        net: a float network that can be lowered.
        bits: of the body's layers.
        pictures: uint8 (h, w, 3) of low resolution.
        rules: the first that matches a layer decides, before its role.
        method: how; default: `quantsr.quant.fit`.
        granularity: one weight step per ``tensor`` or per output ``channel``; of QuantSR-C and -T
            their own argument decides.
        depths: numbers of residual units of sub-networks, that of all among them. The units are
            ranked (`rank_units`), but for a network that has depths and a ranking of its own.
        trunk: the container of these units, or a pattern of their names, where they are not found
            (`quantsr.archs.trunk`).
        attention: bits of both operands of products of activations; default: these stay in float.
        progress: called with the number of steps that are done, and of all: layers, then iterations
            of a training of the bounds, then sub-networks to rank units by.

    Raises:
        InputError: the network cannot be lowered or is quantized, a rule matches no layer, nothing
            is left to quantize, or the network has no such trunk or depths.
    """
    if any(quantizes(layer) for layer in quantized_layers(net).values()):
        raise InputError("network: is quantized already; give a float one")
    net = prepared_copy(net)
    device = next(net.parameters()).device
    batch = crops(pictures).to(device)
    chosen = _chosen(net, bits, rules)
    if chosen is not None and method.mixed:
        chosen = _mixed(net, chosen, method.mixed, batch)
    elif method.mixed:
        raise InputError(
            f"--mixed: {contract.of(net).type} has one number of bits for all of its blocks; omit it"
        )
    found = _with_bits(net, bits, chosen, method, granularity, depths, trunk, attention)
    found.to(device).eval()
    dynamic = contract.of(found).depth_dynamic
    ranks = dynamic is not None and len(dynamic.depths) > 1 and dynamic.ranking is None and chosen is not None
    count = len(dynamic.units()) if dynamic is not None and ranks else 0
    layers = len(layers_of(found))
    trained = method.iterations if method.name == "2dquant" else 0
    total = layers + trained + _sub_networks(count)
    importance = None
    if chosen is not None and method.name == "fit":
        importance = output_importance(net.eval(), _middles(batch, IMPORTANCE_CROPS), list(chosen))
    set_layers(
        found,
        batch,
        method,
        fits=chosen is not None,
        importance=importance,
        progress=lambda done: progress(done, total),
    )
    if trained:
        train_bounds(
            found,
            net,
            [torch.from_numpy(picture).permute(2, 0, 1).float() / 255 for picture in pictures],
            iterations=trained,
            rectifier=method.rectifier,
            progress=lambda done: progress(layers + done, total),
        )
    if dynamic is not None and ranks:
        logger.info("ranking %d units by the loss without them", count)
        before = layers + trained
        order = rank_units(dynamic, net, batch, progress=lambda done: progress(before + done, total))
        dynamic.set_ranking(order)
    return found


def _chosen(net: nn.Module, bits: Bits, rules: Sequence[LayerBits]) -> dict[str, Bits] | None:
    """`choose_bits`; None where the network's own arguments say what is quantized, as QuantSR-C's
    and -T's do."""
    network = contract.of(net)
    if not {"nbits_w", "nbits_a", "quantizer"} <= network.arguments.keys():
        return choose_bits(net, bits, rules)
    if rules:
        raise InputError(f"--rule: {network.type} has its own rule, all convolutions of its blocks; omit it")
    return None


def _mixed(net: nn.Module, chosen: Mapping[str, Bits], share: float, batch: Tensor) -> dict[str, Bits]:
    """`mixed_bits` by the distance of the outputs from the float network's, bounds searched."""
    method = Method("2dquant", iterations=0)
    trial = _with_bits(net, Bits(8, 8), chosen, method, "channel").eval()
    set_layers(trial, batch, method, fits=False)
    with torch.no_grad():
        wanted = net.eval()(batch)
    gradients = bit_gradients(trial, lambda: (trial(batch) - wanted).abs().mean())
    try:
        found = mixed_bits(chosen, gradients, share)
    except ValueError as error:
        raise InputError(f"--mixed: {error}; choose other --bits") from error
    for name in sorted(chosen, key=lambda name: gradients[name]):
        logger.info("%s: %s, dL/ds %.3g", name, found[name], gradients[name])
    return found


def _with_bits(
    net: nn.Module,
    bits: Bits,
    chosen: Mapping[str, Bits] | None,
    method: Method,
    granularity: Granularity,
    depths: Sequence[int] | None = None,
    trunk: str | None = None,
    attention: int | None = None,
) -> nn.Module:
    """The copy with uncalibrated quantizers, of the bits in `chosen` or else of its arguments."""
    network = contract.of(net)
    if depths is None and trunk is not None:
        raise InputError("--trunk: is for a network with depths; give --depths, or omit it")
    units = None if depths is None else trunk_of(net, trunk, "--depths" if trunk is None else "--trunk")
    if chosen is None:
        own: dict[str, Any] = {"nbits_w": bits.weights, "nbits_a": bits.activations}
        if method.quantizer is not None or method.name != "fit":
            own["quantizer"] = method.quantizer or QUANTIZERS[method.name]
        if attention is not None:
            if "quantize_attention" not in network.arguments or attention != bits.activations:
                raise InputError(
                    f"--attention: {network.type} has "
                    + (
                        f"the bits of its activations there, {bits.activations}; give these"
                        if "quantize_attention" in network.arguments
                        else "no attention; omit it"
                    )
                )
            own["quantize_attention"] = True
        found = build_network(network.type, {**network.arguments, **own})
        found.load_state_dict(net.state_dict(), strict=False)  # the quantizers have no state yet
        dynamic = contract.of(found).depth_dynamic
        if dynamic is not None and network.ranking is not None:
            dynamic.set_ranking(network.ranking)
        return found
    quantizer, equalized = method.quantizer or QUANTIZERS[method.name], method.name == "fit"
    layers = [
        Rule(_literal(name), b.weights, b.activations, quantizer, granularity, equalized)
        for name, b in chosen.items()
    ]
    found = copy.deepcopy(net)
    if attention is not None:
        quantize_attention(found, attention, quantizer, "--attention")
    try:
        quantize_layers(found, layers)
    except ValueError as error:
        raise InputError(f"network: {error}") from error
    arguments = {
        "network": network.arguments["network"] if isinstance(net, DepthTrunk) else network.arch,
        "rules": {_literal(name): str(layer_bits) for name, layer_bits in chosen.items()},
        "quantizer": quantizer,
        "granularity": granularity,
        "equalized": equalized,
        **({} if attention is None else {"attention": attention}),
    }
    if isinstance(found, DepthTrunk):
        found.describe({"type": "Quantized", **arguments})
        return found
    if depths is None or units is None:
        contract.record(found, "Quantized", arguments)
        return found
    try:
        return add_depths(found, units, depths, {"type": "Quantized", **arguments})
    except ValueError as error:
        raise InputError(f"--depths: {error}") from error


@torch.no_grad()
def rank_units(
    net: DepthDynamic,
    target: nn.Module,
    batch: Tensor,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[int, ...]:
    """The units in the order in which sub-networks keep them.

    Removed is, one after the other, the unit without which the output is nearest to that of
    ``target``, in L1 distance, on the middles of a batch (B, 3, h, w).

    Args:
        progress: called with the number of sub-networks so far.
    """
    x = _middles(batch, RANKING_CROPS)
    wanted = target.eval()(x)
    done = 0

    def losses(candidates: Sequence[frozenset[int]]) -> list[float]:
        nonlocal done
        found = [float((output - wanted).abs().mean()) for output in net.run_units(x, candidates)]
        done += len(candidates)
        progress(done)
        return found

    return rank_by_loss(len(net.units()), losses)


def _middles(batch: Tensor, count: int) -> Tensor:
    """The middles of the first pictures of a batch (B, 3, h, w)."""
    top, left = ((size - min(size, RANKING_SIDE)) // 2 for size in batch.shape[2:])
    return batch[:count, :, top : top + RANKING_SIDE, left : left + RANKING_SIDE]


def _sub_networks(units: int) -> int:
    """How many sub-networks a ranking of so many units runs."""
    return max(0, units * (units + 1) // 2 - 1)


def choose_bits(net: nn.Module, bits: Bits, rules: Sequence[LayerBits]) -> dict[str, Bits]:
    """The bits of each layer that is to be quantized, in the order of the network."""
    found, used = {}, set()
    convs = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    depthwise = [name for name, conv in convs.items() if 1 < conv.groups == conv.in_channels]
    colours = [name for name, conv in convs.items() if conv.out_channels <= _COLOURS]
    by_role = {"body": bits, "depthwise": bits if bits.is_float else DEPTHWISE}
    for name, role in roles(lower(net), depthwise, colours).items():
        rule = next((rule for rule in rules if fnmatch.fnmatchcase(name, rule.pattern)), None)
        if rule is not None:
            used.add(rule.pattern)
        chosen = rule.bits if rule is not None else by_role.get(role)
        if chosen is not None and not chosen.is_float:
            found[name] = chosen
    if unused := [rule.pattern for rule in rules if rule.pattern not in used]:
        raise InputError(f"--rule: {unused[0]!r} matches no layer that no rule before it does")
    if not found:
        raise InputError("network: no layer is left to quantize; choose layers by --rule PATTERN=W4A4")
    return found


def crops(pictures: Sequence[Picture]) -> Tensor:
    """(B, 3, side, side) in [0, 1]: the middle of each picture, at most `CROPS` of them.

    The side is `CROP_SIDE`, or that of the smallest picture. Raises InputError without pictures.
    """
    if not pictures:
        raise InputError("--data: has no pictures; name a folder with some")
    chosen = pictures[:: max(1, len(pictures) // CROPS)][:CROPS]
    side = min(CROP_SIDE, *(size for picture in chosen for size in picture.shape[:2]))
    middles = []
    for picture in chosen:
        top, left = ((size - side) // 2 for size in picture.shape[:2])
        middles.append(picture[top : top + side, left : left + side])
    return torch.from_numpy(np.stack(middles)).permute(0, 3, 1, 2).float() / 255


def _literal(name: str) -> str:
    """A pattern that matches this name only."""
    return name.replace("[", "[[]")
