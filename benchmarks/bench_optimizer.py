"""A training step of QuantSR-C with Adam and with Muon, and what of it the optimizer takes.

python -m benchmarks.bench_optimizer              # x4 W4A4, 16 blocks, batch 8, LR 48x48; results/optimizer.csv
python -m benchmarks.bench_optimizer --device cuda --blocks 32 --batch 32
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import timing
from quantsr.analysis.timing import interleaved, machine
from quantsr.archs import QuantSR_C
from quantsr.config.training import OptimizerOptions, TrainOptions
from quantsr.engine.device import computes_in_bf16
from quantsr.models.optimizers import build_optimizers
from quantsr.quant import calibrate


def contenders(kind: str, args: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], object]]:
    """A whole step and the optimizer's part of it, on a network of their own."""
    torch.manual_seed(0)
    net: Any = QuantSR_C(num_block=args.blocks, upscale=4).to(device, memory_format=torch.channels_last)
    lq = torch.rand(args.batch, 3, 48, 48, device=device)
    gt = torch.rand(args.batch, 3, 192, 192, device=device)
    calibrate(net, [lq])
    net.train()
    scheduler: Any = {"type": "MultiStepLR", "milestones": []}
    train = TrainOptions(
        total_iter=1, optim_g=OptimizerOptions.model_validate({"type": kind, "lr": 1e-6}), scheduler=scheduler
    )
    optimizers = build_optimizers(net, train)

    def update() -> None:
        for optimizer in optimizers:
            optimizer.step()

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(device)):
            output = net(lq)
        (output.float() - gt).abs().mean().backward()
        update()

    return {f"{kind}, step": step, f"{kind}, optimizer": update}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    device = torch.device(args.device)
    calls = {**contenders("Adam", args, device), **contenders("Muon", args, device)}
    sync = torch.cuda.synchronize if device.type == "cuda" else None
    timings = interleaved(calls, args.rounds, warm_up=2, sync=sync)
    records = [{"row": t.name, **t.row(), "runs": len(t.times)} for t in timings]
    print(machine())
    print(timing.table(records))
    print(timing.write_csv("optimizer.csv", records))


if __name__ == "__main__":
    main()
