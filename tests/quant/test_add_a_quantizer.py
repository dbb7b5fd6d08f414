"""The example of docs/add_a_quantizer.md works as printed."""

import re
from pathlib import Path

import torch

from quantsr.archs import QuantSR_C
from quantsr.quant import QUANTIZER_REGISTRY, calibrate, manifest

PAGE = Path(__file__).parents[2] / "docs" / "add_a_quantizer.md"


def test_the_example_trains_in_a_network():
    source = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    if "MaxAbs" not in QUANTIZER_REGISTRY:
        exec(compile(source, str(PAGE), "exec"), {"__name__": "example"})  # noqa: S102 - our own page
    net = QuantSR_C(num_feat=4, num_block=2, upscale=2, nbits_w=3, nbits_a=4, quantizer="MaxAbs")
    calibrate(net, [torch.rand(1, 3, 8, 8)])
    for amp in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            net(torch.rand(1, 3, 8, 8)).float().square().mean().backward()
    assert net.body[0].conv1.weight.grad.abs().sum() > 0
    assert net.body[1].conv2.weight_codes().unique().numel() <= 2**3
    assert {r["quantizer"] for r in manifest(net) if r["bits_w"] == 3} == {"MaxAbs"}
    QUANTIZER_REGISTRY._obj_map.pop("MaxAbs")  # other tests list what is registered
