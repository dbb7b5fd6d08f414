"""The average gradients of processes that share a batch equal those of one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quantsr import quant
from quantsr.quant import QuantConv2d


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    yield
    quant.set_processes(1)


@pytest.mark.parametrize("quantizer", ["RLQ", "LSQ", "LSQPlus", "PAMS", "PACT", "DoReFa"])
@pytest.mark.parametrize("exact", [False, True])
def test_gradients_of_parts_average_to_those_of_the_batch(quantizer: str, exact: bool) -> None:
    quant.set_exact_fp32(exact)
    conv = QuantConv2d(3, 4, 3, nbits_w=3, nbits_a=3, quantizer=quantizer)
    batch = torch.randn(4, 3, 8, 8)
    quant.calibrate(conv, [batch])

    def gradients(parts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        quant.set_processes(len(parts))
        total: dict[str, torch.Tensor] = {}
        for part in parts:
            conv.zero_grad()
            conv(part).square().mean().backward()
            for name, parameter in conv.named_parameters():
                assert parameter.grad is not None
                total[name] = total.get(name, torch.zeros(())) + parameter.grad / len(parts)
        return total

    whole = gradients([batch])
    for count in (2, 4):
        for name, value in gradients(list(batch.chunk(count))).items():
            torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6, msg=name)
    quant.set_exact_fp32(False)
