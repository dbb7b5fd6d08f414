"""Networks that the native engine runs in sweeps: of BasicSR and of tests/networks, with random
weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from quantsr.basicsr_compat import ARCH_REGISTRY, EDSR, importable
from quantsr.deploy import post_training
from quantsr.deploy.convert import convert
from quantsr.deploy.packed.model import PackedModel
from quantsr.discovery import import_named
from quantsr.quant import calibrate
from tests.conftest import ROOT
from tests.deploy.native import picture
from tests.networks.span_arch import SmallSpan

with importable():
    from basicsr.archs.rcan_arch import RCAN
    from basicsr.archs.rrdbnet_arch import RRDBNet
    from basicsr.archs.srresnet_arch import MSRResNet
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "Compact": lambda: SRVGGNetCompact(3, 3, 16, 4, 4, "prelu"),
    "Compact of one block": lambda: SRVGGNetCompact(3, 3, 16, 2, 2, "prelu"),
    "Compact of 24 channels": lambda: SRVGGNetCompact(3, 3, 24, 2, 3, "relu"),
    "EDSR": lambda: EDSR(3, 3, num_feat=16, num_block=2, upscale=2),
    "MSRResNet": lambda: MSRResNet(3, 3, 16, 2, 4),
    "RRDBNet": lambda: RRDBNet(3, 3, 4, num_feat=16, num_block=1, num_grow_ch=8),
    "RCAN": lambda: RCAN(3, 3, num_feat=16, num_group=1, num_block=2, squeeze_factor=4, upscale=2),
    "SPAN": SmallSpan,
}


@cache
def quantized(name: str, bits: int = 4, head_tail_bits: int = 8, bits_a: int | None = None) -> PackedModel:
    """A network of random weights, quantized after training, or with its own quantizers; `bits_a`
    are of activations, if not as many as of weights."""
    torch.manual_seed(0)
    pictures = [picture(24, 20)]
    if name == "distillation":
        import_named(str(ROOT / "tests" / "networks" / "distillation_arch.py"))  # registered once
        kind = ARCH_REGISTRY.get("SmallDistillation")
        net: nn.Module = kind(nbits_w=bits, nbits_a=bits).eval()
        calibrate(net, [torch.from_numpy(pictures[0]).permute(2, 0, 1)[None] / 255])
    else:
        net = NETWORKS[name]().eval()
        if bits < 32:
            net = post_training.quantize(net, post_training.Bits(bits, bits_a or bits), pictures)
    return convert(net, head_tail_bits=head_tail_bits, calib=pictures)
