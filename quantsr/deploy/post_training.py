"""Post-training quantization: a trained float network with few bits, from some pictures and without
training."""

from __future__ import annotations

import copy
import fnmatch
import logging
from collections.abc import Callable, Sequence
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
from quantsr.archs.quantized_arch import trunk_of
from quantsr.deploy.lower import lower
from quantsr.deploy.roles import roles
from quantsr.depth import rank_by_loss
from quantsr.errors import InputError
from quantsr.quant import Rule, calibrate, quantize_layers
from quantsr.quant.fit import fit
from quantsr.quant.layers import QuantizedLayer, quantized_layers
from quantsr.quant.quantizers import Granularity
from quantsr.ranges import Bits

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]

QUANTIZER = "RLQAsymmetric"

CROPS, CROP_SIDE = 16, 48
"""How many crops of low resolution quantization reads, and their height and width in pixels."""

RANKING_CROPS, RANKING_SIDE = 8, 24
"""The same of the ranking of units, for which n units take about n * n / 2 sub-networks."""


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
    quantizer: str | None = None,
    granularity: Granularity = "channel",
    correct_bias: bool = True,
    depths: Sequence[int] | None = None,
    trunk: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> nn.Module:
    """A copy of a float network whose body has few bits, in eval mode.

    The first layer and those at or behind the enlargement stay float; conversion gives them 8-bit
    weights. A network with arguments for its bits (QuantSR-C and -T) is quantized as these say.
    Each layer is fitted (`quantsr.quant.fit`) to what the fitted layers before it give of crops of
    the pictures; those of QuantSR-C and -T are calibrated, their biases stay.

    Args:
        net: a float network that can be lowered.
        bits: of the body's layers.
        pictures: uint8 (h, w, 3) of low resolution.
        rules: the first that matches a layer decides, before its role.
        quantizer: a name in ``QUANTIZER_REGISTRY`` whose codes are integers; default:
            `QUANTIZER`, of QuantSR-C and -T their own argument.
        granularity: one weight step per ``tensor`` or per output ``channel``; of QuantSR-C and -T
            their own argument decides.
        correct_bias: whether biases are changed.
        depths: numbers of residual units of sub-networks, that of all among them. The units are
            ranked (`rank_units`), but for a network that has depths and a ranking of its own.
        trunk: the container of these units, or a pattern of their names, where they are not found
            (`quantsr.archs.trunk`).
        progress: called with the number of steps that are done, and of all: layers to fit, then
            sub-networks to rank units by.

    Raises:
        InputError: the network cannot be lowered or is quantized, a rule matches no layer, nothing
            is left to quantize, or the network has no such trunk or depths.
    """
    if any(_quantizes(layer) for layer in quantized_layers(net).values()):
        raise InputError("network: is quantized already; give a float one")
    device = next(net.parameters()).device
    batch = crops(pictures).to(device)
    found = _with_bits(net, bits, rules, quantizer, granularity, depths, trunk).to(device).eval()
    if _says_its_layers(contract.of(net)):
        return calibrate(found, [batch], "mse")
    dynamic = contract.of(found).depth_dynamic
    ranks = dynamic is not None and len(dynamic.depths) > 1 and dynamic.ranking is None
    count = len(dynamic.units()) if dynamic is not None and ranks else 0
    layers = sum(map(_quantizes, quantized_layers(found).values()))
    total = layers + _sub_networks(count)
    fit_layers(found, batch, correct_bias=correct_bias, progress=lambda done, _: progress(done, total))
    if dynamic is not None and ranks:
        logger.info("ranking %d units by the loss without them", count)
        order = rank_units(dynamic, net, batch, progress=lambda done: progress(layers + done, total))
        dynamic.set_ranking(order)
    return found


def _quantizes(layer: QuantizedLayer) -> bool:
    return layer.weight_quantizer is not None or layer.input_quantizer is not None


def _says_its_layers(network: contract.Contract) -> bool:
    """Whether the network's own arguments say what is quantized, as QuantSR-C's and -T's do."""
    return {"nbits_w", "nbits_a", "quantizer"} <= network.arguments.keys()


def _with_bits(
    net: nn.Module,
    bits: Bits,
    rules: Sequence[LayerBits],
    quantizer: str | None,
    granularity: Granularity,
    depths: Sequence[int] | None,
    trunk: str | None,
) -> nn.Module:
    """The copy with uncalibrated quantizers."""
    network = contract.of(net)
    if depths is None and trunk is not None:
        raise InputError("--trunk: is for a network with depths; give --depths, or omit it")
    units = None if depths is None else trunk_of(net, trunk, "--depths" if trunk is None else "--trunk")
    if _says_its_layers(network):
        if rules:
            raise InputError(
                f"--rule: {network.type} has its own rule, all convolutions of its blocks; omit it"
            )
        own: dict[str, Any] = {"nbits_w": bits.weights, "nbits_a": bits.activations}
        own |= {} if quantizer is None else {"quantizer": quantizer}
        found = build_network(network.type, {**network.arguments, **own})
        found.load_state_dict(net.state_dict(), strict=False)  # the quantizers have no state yet
        dynamic = contract.of(found).depth_dynamic
        if dynamic is not None and network.ranking is not None:
            dynamic.set_ranking(network.ranking)
        return found
    chosen, quantizer = choose_bits(net, bits, rules), quantizer or QUANTIZER
    layers = [
        Rule(_literal(name), b.weights, b.activations, quantizer, granularity, equalized=True)
        for name, b in chosen.items()
    ]
    try:
        found = quantize_layers(copy.deepcopy(net), layers)
    except ValueError as error:
        raise InputError(f"network: {error}") from error
    arguments = {
        "network": network.arguments["network"] if isinstance(net, DepthTrunk) else network.arch,
        "rules": {_literal(name): str(layer_bits) for name, layer_bits in chosen.items()},
        "quantizer": quantizer,
        "granularity": granularity,
        "equalized": True,
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
    top, left = ((size - min(size, RANKING_SIDE)) // 2 for size in batch.shape[2:])
    x = batch[:RANKING_CROPS, :, top : top + RANKING_SIDE, left : left + RANKING_SIDE]
    wanted = target.eval()(x)
    done = 0

    def losses(candidates: Sequence[frozenset[int]]) -> list[float]:
        nonlocal done
        found = [float((output - wanted).abs().mean()) for output in net.run_units(x, candidates)]
        done += len(candidates)
        progress(done)
        return found

    return rank_by_loss(len(net.units()), losses)


def _sub_networks(units: int) -> int:
    """How many sub-networks a ranking of so many units runs."""
    return max(0, units * (units + 1) // 2 - 1)


def choose_bits(net: nn.Module, bits: Bits, rules: Sequence[LayerBits]) -> dict[str, Bits]:
    """The bits of each layer that is to be quantized, in the order of the network."""
    found, used = {}, set()
    for name, role in roles(lower(net)).items():
        rule = next((rule for rule in rules if fnmatch.fnmatchcase(name, rule.pattern)), None)
        if rule is not None:
            used.add(rule.pattern)
        chosen = rule.bits if rule is not None else bits if role == "body" else None
        if chosen is not None and not chosen.is_float:
            found[name] = chosen
    if unused := [rule.pattern for rule in rules if rule.pattern not in used]:
        raise InputError(f"--rule: {unused[0]!r} matches no layer that no rule before it does")
    if not found:
        raise InputError("network: no layer is left to quantize; choose layers by --rule PATTERN=W4A4")
    return found


@torch.no_grad()
def fit_layers(
    net: nn.Module,
    batch: Tensor,
    *,
    correct_bias: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fit each quantized layer (`quantsr.quant.fit`) to what the fitted layers before it give of a
    batch (B, 3, h, w)."""
    layers = [layer for layer in quantized_layers(net).values() if _quantizes(layer)]
    fitted = set()

    def hook(layer: QuantizedLayer, inputs: tuple[Tensor, ...]) -> None:
        if layer not in fitted:
            fitted.add(layer)
            fit(layer, inputs[0], correct_bias=correct_bias)
            progress(len(fitted), len(layers))

    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        net(batch)
    finally:
        for handle in handles:
            handle.remove()


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
