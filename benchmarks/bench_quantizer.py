"""The quantizer alone, compared with a copy of the same bytes: the lower bound of an elementwise
operation.

    python -m benchmarks.bench_quantizer

Forward reads and writes the activation once (2 memory accesses per element), backward reads two
tensors and writes one (3): the lower bounds of their ratios to a copy are 1 and 1.5.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import timing
from quantsr.quant import get_quantizer, set_compile
from quantsr.timing import interleaved, machine
from tests.reference import rlq


def _rows(x: Tensor, bits: int) -> dict[str, Callable[[], object]]:
    channels = x.shape[1]
    quantizer = get_quantizer("RLQ").activation(bits=bits, channels=channels, channel_dim=1).to(x.device)
    quantizer.observe(x)
    upstream, target = torch.randn_like(x), torch.empty_like(x)
    leaf = x.clone().requires_grad_()

    def ours(mode: bool, backward: bool) -> Callable[[], object]:
        def run() -> None:
            set_compile(mode)
            if not backward:
                with torch.no_grad():
                    quantizer(leaf)
                return
            out = quantizer(leaf)
            torch.autograd.grad(out, [leaf, quantizer.tau, quantizer.step], upstream)

        return run

    tau = quantizer.tau.detach().view(1, -1, 1, 1).requires_grad_()
    step = quantizer.step.detach().clone().requires_grad_()
    bounds = quantizer.range

    def autograd(backward: bool) -> Callable[[], object]:
        def run() -> None:
            with torch.set_grad_enabled(backward):
                out = rlq.fake_quantize(
                    leaf.float(), tau, step, bounds.qmin, bounds.qmax, soft=True, numel=leaf.numel()
                )
            if backward:
                torch.autograd.grad(out, [leaf, tau, step], upstream.float())

        return run

    return {
        "copy": lambda: target.copy_(x),
        "ours, forward": ours(True, False),
        "ours, forward + backward": ours(True, True),
        "ours eager, forward": ours(False, False),
        "ours eager, forward + backward": ours(False, True),
        "plain autograd, forward": autograd(False),
        "plain autograd, forward + backward": autograd(True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=4, default=[16, 64, 48, 48], metavar=("B", "C", "H", "W"))
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=31)
    args = parser.parse_args()
    print(machine())
    records: list[dict[str, Any]] = []
    for dtype in (torch.bfloat16, torch.float32):
        x = (
            torch.randn(args.shape, device=args.device)
            .to(dtype)
            .contiguous(memory_format=torch.channels_last)
        )
        sync = torch.cuda.synchronize if args.device == "cuda" else None
        timings = interleaved(_rows(x, args.bits), args.repeats, warm_up=2, sync=sync)
        copy = timings[0].median
        for found in timings:
            ratio = round(found.median / copy, 2)
            kind = str(dtype).removeprefix("torch.")
            records.append({"row": found.name, "type": kind, **found.row(), "x_copy": ratio})
    print(timing.table(records))
    print(f"written to {timing.write_csv(f'quantizer_{args.device}.csv', records)}")


if __name__ == "__main__":
    main()
