"""Quantize a float network by rules; the manifest of its layers' bits."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from quantsr.quant.attention import QuantMatmul
from quantsr.quant.layers import QuantConv2d, QuantizedLayer, QuantLinear
from quantsr.quant.quantizers import Granularity
from quantsr.ranges import FLOAT_BITS


@dataclass(frozen=True)
class Rule:
    """Which layers to quantize, and how.

    Attributes:
        pattern: of module names, as the shell's: ``body.*.conv[12]``.
        nbits_w, nbits_a: 2..8, or 32 for float.
        quantizer: a name in ``QUANTIZER_REGISTRY``.
        weight_granularity: ``tensor`` or ``channel``.
        equalized: see `quantsr.quant.layers.QuantizedLayer`.
    """

    pattern: str
    nbits_w: int
    nbits_a: int
    quantizer: str = "RLQ"
    weight_granularity: Granularity = "tensor"
    equalized: bool = False


def quantize_layers(net: nn.Module, rules: Sequence[Rule]) -> nn.Module:
    """Replace each ``nn.Conv2d`` and ``nn.Linear`` that a rule matches by its quantized form.

    Parameters are kept.

    The first rule that matches a layer decides.

    Returns:
        ``net``, changed in place.

    Raises:
        ValueError: if a rule decides for no layer: its pattern is misspelt, or others come before
            it.
    """
    layers = {n: m for n, m in net.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}
    used: set[str] = set()
    for name, layer in layers.items():
        for rule in rules:
            if fnmatch.fnmatchcase(name, rule.pattern):
                used.add(rule.pattern)
                parent, _, child = name.rpartition(".")
                setattr(net.get_submodule(parent), child, _quantized(layer, rule))
                break
    for rule in rules:
        if rule.pattern not in used:
            raise ValueError(
                f"rule {rule.pattern!r} matches no layer that no rule before it does; layers are {', '.join(layers) or 'none'}"
            )
    return net


def _quantized(layer: nn.Module, rule: Rule) -> nn.Module:
    how: dict[str, Any] = {
        "bias": layer.bias is not None,
        "nbits_w": rule.nbits_w,
        "nbits_a": rule.nbits_a,
        "quantizer": rule.quantizer,
        "weight_granularity": rule.weight_granularity,
        # of a layer with groups no input is shared by all outputs
        "equalized": rule.equalized and getattr(layer, "groups", 1) == 1,
    }
    new: QuantConv2d | QuantLinear
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise ValueError(
                f"a quantized convolution pads with zeros, got padding_mode={layer.padding_mode!r}"
            )
        new = QuantConv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            **how,
        )
    else:
        assert isinstance(layer, nn.Linear)
        new = QuantLinear(layer.in_features, layer.out_features, **how)
    # The float layer's own parameters, not copies: references to them (an optimizer, tied weights)
    # stay valid.
    new.weight = layer.weight  # type: ignore[assignment]
    new.bias = layer.bias
    return new


def manifest(net: nn.Module, protocol: str | None = None) -> list[dict[str, Any]]:
    """Convolutions, linear layers and attention products with their bits, in network order.

    Returns:
        records with ``name``, ``kind``, ``shape`` of the weight, ``bits_w``, ``bits_a`` (32 =
        float), ``signed`` (None where the input is float), ``granularity`` and ``quantizer`` (None
        where nothing is quantized). For a product of attention (``kind`` is ``matmul``) ``bits_a``
        and ``signed`` are the left operand's, ``bits_w`` the right's, and ``shape`` is (heads,
        rows, inner size, columns) of one window. With ``protocol``, the name of the published
        protocol that the network follows, every record has it.
    """
    records = []
    for name, module in net.named_modules():
        record = _record(module)
        if record is not None:
            records.append({"name": name, **record})
    return records if protocol is None else [{**record, "protocol": protocol} for record in records]


def _record(module: nn.Module) -> dict[str, Any] | None:
    method = None
    if isinstance(module, QuantMatmul):
        method = module.left.quantizer
        kind, shape = "matmul", list(module.shape)
        bits_w, bits_a = module.right.nbits_a, module.left.nbits_a
        weight_quantizer, input_quantizer = None, module.left.input_quantizer
    elif isinstance(module, (nn.Conv2d, nn.Linear)):
        kind = "conv" if isinstance(module, nn.Conv2d) else "linear"
        shape = list(module.weight.shape)
        bits_w = bits_a = FLOAT_BITS
        weight_quantizer = input_quantizer = None
        if isinstance(module, QuantizedLayer):
            method = module.quantizer
            bits_w, bits_a = module.nbits_w, module.nbits_a
            weight_quantizer, input_quantizer = module.weight_quantizer, module.input_quantizer
    else:
        return None
    return {
        "kind": kind,
        "shape": shape,
        "bits_w": bits_w,
        "bits_a": bits_a,
        "signed": None if input_quantizer is None else bool(input_quantizer.signed),
        "granularity": None if weight_quantizer is None else weight_quantizer.granularity,
        "quantizer": method if min(bits_w, bits_a) < FLOAT_BITS else None,
    }


def manifest_table(net: nn.Module, protocol: str | None = None) -> str:
    """:func:`manifest` as a text table, one line per layer; a named protocol comes first."""
    rows = [("layer", "weight", "bits_w", "bits_a", "input", "quantizer")]
    for r in manifest(net):
        sign = {None: "float", True: "signed", False: "unsigned"}[r["signed"]]
        how = "/".join(word for word in (r["quantizer"], r["granularity"]) if word) or "-"
        shape = "x".join(map(str, r["shape"]))
        rows.append((r["name"], shape, str(r["bits_w"]), str(r["bits_a"]), sign, how))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"protocol: {protocol}", *lines] if protocol is not None else lines)
