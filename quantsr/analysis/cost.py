"""`quantsr cost`: what a network costs to store and to run, with the formulas.

The papers' reductions in operations follow from no enumeration of layers and bit rules that we found, so these are plain counts,
not meant to reproduce theirs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantsr.deploy import architectures, packing
from quantsr.deploy.architectures import LayerCost
from quantsr.deploy.bench import STAND_INS, load, parse_size
from quantsr.deploy.model import PackedModel
from quantsr.deploy.upscaler import find_model

if TYPE_CHECKING:
    from torch import nn

FORMULAS = (
    "parameters   = weights and biases of all layers, shortcuts, steps and taus",
    "packed bytes = (sum over weights of bits_w) / 8 + 4 * (biases, shortcuts, steps, taus); of a packed file, its size beside it",
    "MACs         = multiplications of a conv (outputs * inputs * k * k * pixels), a linear layer or an attention product",
    "BitOPs       = sum over layers of MACs * bits_w * bits_a",
    "equivalent   = sum over layers of MACs * max(bits_w, bits_a) / 32",
)
_KINDS = {"convolution": "conv", "mm": "linear", "addmm": "linear"}
SIZES = ((180, 320), (256, 256))
"""(height, width) of low resolution counted where none is given."""


@dataclass(frozen=True)
class Storage:
    """What a network takes to store, by the formulas above."""

    parameters: int
    """Number of values: weights, biases, shortcuts, steps and taus."""
    packed_bytes: int
    """Of these values at their bits."""
    float_bytes: int
    """The same values as float32."""
    file_bytes: int | None = None
    """Of the packed file as it is; None where there is none."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `quantsr cost`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-opt", "--opt", metavar="FILE", help="option file of the network")
    source.add_argument(
        "-m", "--model", metavar="NAME_OR_FILE", help="packed network, 'random' or 'random_t'"
    )
    parser.add_argument(
        "--size", type=parse_size, metavar="HxW", help="input picture (default: 180x320 and 256x256)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the counts as JSON or as a table. Raises InputError for a network or an option file that cannot be read."""
    sizes = [args.size] if args.size else list(SIZES)
    record = cost_of_options(args.opt, sizes) if args.opt else cost_of_packed(load(args.model), sizes)
    if args.model and args.model not in STAND_INS:
        record["storage"]["file_bytes"] = find_model(args.model).stat().st_size
    print(json.dumps(record, indent=2) if args.json else _table(record))
    return 0


def cost_of_packed(model: PackedModel, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The counts of a packed network at each of its depths. Imports no torch."""
    depths = [
        {"depth": depth, "sizes": [_sums(packed_layers(model, depth, size), size) for size in sizes]}
        for depth in model.header.depths
    ]
    weights = sum(layer.weight.size for layer in model.layers.values())
    floats = sum(part.size for part in [*model.float_parts(), *model.half_parts()])
    storage = Storage(weights + floats, packing.counted_bytes(model), 4 * (weights + floats))
    return _record(str(model.header.arch.get("type")), storage, depths)


def packed_layers(model: PackedModel, depth: int | None, size: tuple[int, int]) -> list[LayerCost]:
    """What runs at `depth` on a (height, width) picture, in order."""
    return architectures.of(model.header).costs(model, model.depth_or_default(depth), size)


def cost_of_options(path: str, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The counts of the network an option file describes, at each of its depths."""
    from quantsr.config import registries
    from quantsr.config.load import load_options, read_options
    from quantsr.engine.build import build_network
    from quantsr.quant import manifest

    read = read_options(path)
    options = load_options(path, is_train="train" in read[0], check_paths=False, read=read)
    network = options.network_g
    net = build_network(network.type, network.kwargs)
    # The float twin of the same shape counts the operations: its layers need no calibration.
    known = registries.parameters(registries.networks()[network.type])
    wide = {key: 32 for key in known if key.startswith("nbits_")}
    twin = build_network(network.type, {**network.kwargs, **wide})
    if callable(rank := getattr(twin, "rank_blocks", None)):
        rank()  # whichever blocks are kept, the count is the same
    bits = {row["name"]: (int(row["bits_w"]), int(row["bits_a"])) for row in manifest(net)}
    depths = tuple(getattr(net, "depths", ())) or (None,)
    rows = []
    for depth in depths:
        rows.append(
            {
                "depth": depth,
                "sizes": [
                    _sums([_layer_cost(n, k, m, bits) for n, k, m in module_macs(twin, size, depth)], size)
                    for size in sizes
                ],
            }
        )
    return _record(network.type, module_storage(net, bits), rows)


def module_macs(
    net: nn.Module, size: tuple[int, int], depth: int | None = None
) -> list[tuple[str, str, int]]:
    """(module name, kind, MACs) of every conv, linear layer and attention product of a forward pass on (height, width).

    Runs the network on tensors without storage, so any size costs nothing.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from quantsr.archs.windows import shifted_window_mask
    from quantsr.quant.kernels import bounds_on

    counter = FlopCounterMode(display=False)
    options = {} if depth is None else {"depth": depth}
    # Not the meta device: it has no autocast, which quantized layers ask about.
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), counter, torch.no_grad():
            net.eval()(torch.empty(1, 3, *size), **options)
    finally:
        # Constants kept between calls were made without storage too.
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
    """Weights of layers named in `bits` at their width, every other parameter as float32."""
    parameters = {name: value.numel() for name, value in net.named_parameters()}
    weight_bits = {f"{name}.weight": bits_w for name, (bits_w, _) in bits.items()}
    total = sum(count * weight_bits.get(name, 32) for name, count in parameters.items())
    count = sum(parameters.values())
    return Storage(count, -(-total // 8), 4 * count)


def _layer_cost(name: str, kind: str, macs: int, bits: Mapping[str, tuple[int, int]]) -> LayerCost:
    bits_w, bits_a = bits.get(name, (32, 32))
    return LayerCost(name, kind, macs, bits_w, bits_a)


def _sums(layers: Sequence[LayerCost], size: tuple[int, int]) -> dict[str, Any]:
    kinds = sorted({layer.kind for layer in layers})
    return {
        "size": list(size),
        "macs": sum(layer.macs for layer in layers),
        "macs_by_kind": {kind: sum(layer.macs for layer in layers if layer.kind == kind) for kind in kinds},
        "bitops": sum(layer.macs * layer.bits_w * layer.bits_a for layer in layers),
        "equivalent_macs": round(sum(layer.macs * max(layer.bits_w, layer.bits_a) / 32 for layer in layers)),
    }


def _record(arch: str, storage: Storage, depths: list[dict[str, Any]]) -> dict[str, Any]:
    return {"arch": arch, "formulas": list(FORMULAS), "storage": dict(vars(storage)), "depths": depths}


def _table(record: Mapping[str, Any]) -> str:
    storage = record["storage"]
    smaller = storage["float_bytes"] / storage["packed_bytes"]
    lines = [
        f"{record['arch']}: {storage['parameters']:,} parameters, {storage['packed_bytes']:,} bytes packed "
        f"({smaller:.1f} x smaller than float32's {storage['float_bytes']:,})"
    ]
    if storage["file_bytes"] is not None:
        lines.append(f"file: {storage['file_bytes']:,} bytes")
    lines += ["", "| depth | picture | GMAC | equivalent GMAC (b/32) | GBitOP |", "|---|---|---|---|---|"]
    for row in record["depths"]:
        depth = "-" if row["depth"] is None else row["depth"]
        for cost in row["sizes"]:
            height, width = cost["size"]
            lines.append(
                f"| {depth} | {width}x{height} | {cost['macs'] / 1e9:.2f} | {cost['equivalent_macs'] / 1e9:.2f} "
                f"| {cost['bitops'] / 1e9:.1f} |"
            )
    return "\n".join([*lines, "", *record["formulas"]])
