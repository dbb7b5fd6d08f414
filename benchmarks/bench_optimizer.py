"""A training step of QuantSR-C with Adam and with Muon, and the optimizer's part of it.

python -m benchmarks.bench_optimizer    # x4 W4A4, 16 blocks, batch 8; results/optimizer.csv
python -m benchmarks.bench_optimizer --device cuda --blocks 32 --batch 32
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks import timing
from benchmarks.bench_train import Row, Step, Work
from quantsr.config.training import TrainOptions
from quantsr.hardware.device import computes_in_bf16
from quantsr.models.optimizers import KernelMuon, build_optimizers
from quantsr.timing import interleaved, machine


class OptimizedStep(Step):
    """A step with the optimizers of a training."""

    def __init__(self, kind: str, work: Work) -> None:
        bf16 = computes_in_bf16(torch.device(work.device))
        super().__init__(Row("ours", bf16=bf16, compiled=True, channels_last=True), work)
        options: dict[str, Any] = {
            "total_iter": 1,
            "optim_g": {"type": kind, "lr": 1e-6},
            "scheduler": {"type": "MultiStepLR", "milestones": []},
        }
        self.optimizers = build_optimizers(self.net, TrainOptions.model_validate(options))

    def __call__(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.loss().backward()
        self.update()

    def update(self) -> None:
        """The optimizers' part of the step, with the current gradients."""
        for optimizer in self.optimizers:
            optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    work = Work(blocks=args.blocks, batch=args.batch, device=args.device)
    steps = {kind: OptimizedStep(kind, work) for kind in ("Adam", "Muon")}
    if args.device != "cpu":  # where Muon updates all matrices of one shape in one batch
        steps["Muon one by one"] = one_by_one = OptimizedStep("Muon", work)
        for optimizer in one_by_one.optimizers:
            if isinstance(optimizer, KernelMuon):
                optimizer.together = False
    calls = {f"{kind}, step": step for kind, step in steps.items()}
    calls |= {f"{kind}, optimizer": step.update for kind, step in steps.items()}
    sync = torch.cuda.synchronize if args.device == "cuda" else None
    timings = interleaved(calls, args.rounds, warm_up=2, sync=sync)
    records = [{"row": t.name, **t.row(), "runs": len(t.times)} for t in timings]
    print(machine())
    print(timing.table(records))
    print(
        timing.write_csv("optimizer.csv" if args.device == "cpu" else f"optimizer_{args.device}.csv", records)
    )


if __name__ == "__main__":
    main()
