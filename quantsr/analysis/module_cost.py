"""The costs of a network that an option file describes, counted on a torch module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from quantsr.analysis.cost import Storage, record, sums
from quantsr.archs import contract
from quantsr.archs.constructors import build_network
from quantsr.archs.windows import shifted_window_mask
from quantsr.config import registries
from quantsr.config.binding import parameters
from quantsr.config.load import load_options, read_options
from quantsr.deploy.costs import LayerCost
from quantsr.quant import manifest
from quantsr.quant.kernels import bounds_on

_KINDS = {"convolution": "conv", "mm": "linear", "addmm": "linear"}


def cost_of_options(path: str, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The counts of the network an option file describes, at each of its depths."""
    read = read_options(path)
    options = load_options(path, is_train="train" in read[0], check_paths=False, read=read)
    return cost_of_network(options.network_g.type, options.network_g.kwargs, sizes)


def cost_of_network(
    arch: str, arguments: Mapping[str, Any], sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """The counts of the network of type ``arch`` with these constructor arguments, at each of its
    depths."""
    net = build_network(arch, arguments)
    # Operations are counted on a float network of the same shape, which needs no calibration.
    known = parameters(registries.networks()[arch])
    float_bits: dict[str, Any] = {key: 32 for key in known if key.startswith("nbits_")}
    float_bits |= {"rules": {}} if "rules" in known else {}
    float_net = build_network(arch, {**arguments, **float_bits})
    dynamic = contract.of(float_net).depth_dynamic
    if dynamic is not None:
        dynamic.rank_blocks()  # the count does not depend on which blocks are kept
    bits = {row["name"]: (int(row["bits_w"]), int(row["bits_a"])) for row in manifest(net)}
    depths: tuple[int | None, ...] = contract.of(net).depths or (None,)
    rows = []
    for depth in depths:
        rows.append(
            {
                "depth": depth,
                "sizes": [
                    sums(
                        [_layer_cost(n, k, m, bits) for n, k, m in module_macs(float_net, size, depth)], size
                    )
                    for size in sizes
                ],
            }
        )
    return record(arch, module_storage(net, bits), rows)


def module_macs(
    net: nn.Module, size: tuple[int, int], depth: int | None = None
) -> list[tuple[str, str, int]]:
    """(module name, kind, MACs) of every conv, linear layer and attention product of a forward pass
    on (height, width).

    Runs the network on fake tensors, which have no storage, so that any size is fast.
    """
    counter = FlopCounterMode(display=False)
    options = {} if depth is None else {"depth": depth}
    # Not the meta device: it has no autocast, whose state quantized layers read.
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), counter, torch.no_grad():
            net.eval()(torch.empty(1, 3, *size), **options)
    finally:
        # Cached constants were made as fake tensors too.
        bounds_on.cache_clear()
        shifted_window_mask.cache_clear()
    counts = {name: dict(flops) for name, flops in counter.get_flop_counts().items() if name != "Global"}
    own = {label: dict(operations) for label, operations in counts.items()}
    for label, operations in counts.items():
        parent = label.rpartition(".")[0]
        while parent and parent not in counts:  # containers are not called
            parent = parent.rpartition(".")[0]
        for operation, flops in operations.items() if parent else ():
            own[parent][operation] -= flops
    return [
        (label.partition(".")[2], _KINDS.get(str(operation).rpartition(".")[2], "product"), int(flops) // 2)
        for label, operations in own.items()
        for operation, flops in operations.items()
        if flops
    ]


def module_storage(net: nn.Module, bits: Mapping[str, tuple[int, int]]) -> Storage:
    """Weights of layers named in `bits` at their bit-width, all other parameters as float32."""
    parameters = {name: value.numel() for name, value in net.named_parameters()}
    weight_bits = {f"{name}.weight": bits_w for name, (bits_w, _) in bits.items()}
    total = sum(count * weight_bits.get(name, 32) for name, count in parameters.items())
    count = sum(parameters.values())
    return Storage(count, -(-total // 8), 4 * count)


def _layer_cost(name: str, kind: str, macs: int, bits: Mapping[str, tuple[int, int]]) -> LayerCost:
    bits_w, bits_a = bits.get(name, (32, 32))
    return LayerCost(name, kind, macs, bits_w, bits_a)
