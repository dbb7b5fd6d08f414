"""Small QuantSR-Ts for the tests of deployment: trained ones' likenesses as modules, and packed
ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from quantsr.archs import QuantSR_T
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.stand_ins.transformer import random_model
from quantsr.quant import calibrate

SMALL = {"embed_dim": 12, "layers_per_block": 2, "num_heads": 3, "window_size": 4}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "QuantSR": {},
    "2DQuant": {"quantize_attention": True},
    "QuantSR+": {"quantize_attention": True, "quantize_conv": True},
}


def trained(**options: Any) -> QuantSR_T:
    """A calibrated network of which everything that training moves has left its start, and every
    part shows in the picture."""
    torch.manual_seed(3)
    net = QuantSR_T(**{**SMALL, "num_block": 4, "upscale": 2, "nbits_w": 4, "nbits_a": 4, **options})
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".blocks." in name and name.endswith(".weight") and parameter.dim() == 2:
                parameter.mul_(4)
            if name.endswith("bias_table") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    calibrate(net, [torch.rand(2, 3, 16, 16)])
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith((".tau", ".shortcut")) or (".blocks." in name and name.endswith(".bias")):
                parameter.add_(torch.randn_like(parameter) * 0.05)
    net.rank_blocks()
    return net.eval()


def small_model(**options: Any) -> PackedModel:
    """A packed network of a few thousand weights."""
    return random_model(**{**SMALL, "num_block": 2, "scale": 2, **options})


def with_eight_bit_inputs(model: PackedModel) -> PackedModel:
    """The network as older files have it: 8-bit inputs of the convs outside the blocks."""
    layers = dict(model.layers)
    for name, layer in layers.items():
        if layer.bits_a == 16:
            layers[name] = replace(layer, bits_a=8, act_step=layer.act_step * 32)
    return replace(model, layers=layers)


def upscaled(net: torch.nn.Module, picture: np.ndarray, depth: int) -> np.ndarray:
    x = torch.tensor(picture).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        y = net(x, depth=depth)[0].clamp(0, 1).permute(1, 2, 0)
    return (y * 255).round().to(torch.uint8).numpy()
