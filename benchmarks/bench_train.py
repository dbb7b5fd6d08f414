"""One training step of the float network, of ours, and of the released formulation, interleaved in
one process.

    python -m benchmarks.bench_train                  # the table of the README
    python -m benchmarks.bench_train --arch T   # the same for SwinIR-S and QuantSR-T
    python -m benchmarks.bench_train --grow     # cost against bits, blocks, batch and patch
    python -m benchmarks.bench_train --device cuda --batch 32
    python -m benchmarks.bench_train --precision fp32 --only "float FP32, channels_last" "ours FP32"

On a processor without bf16 arithmetic the rows are in FP32 (``--precision`` overrides this).

A step is forward, L1 loss, backward and Adam. ``saved`` are the bytes that autograd keeps for
backward, without parameters, each storage counted once; ``peak`` is the peak resident memory during
a step, in a process that does nothing else, with PyTorch's own 0.5 GiB included (Linux; on CUDA:
the growth of allocated memory).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks import timing
from quantsr import cpu
from quantsr.archs import QuantSR_C, QuantSR_T
from quantsr.basicsr_compat import EDSR, SwinIR
from quantsr.hardware.device import bf16_is_faster
from quantsr.quant import calibrate, set_compile
from quantsr.timing import interleaved, machine
from tests.reference.released_quantizer import ReleasedQuantSRC, quantize_linears

MIB = 2**20


@dataclass(frozen=True)
class Work:
    """The workload of all rows: network shape, batch and patch (side of the low-resolution crop in
    pixels).

    ``arch`` C has the shape of EDSR, T that of SwinIR-S with ``blocks`` RSTBs of six layers and
    ``feat`` channels.
    """

    arch: str = "C"
    blocks: int = 16
    feat: int = 64
    upscale: int = 4
    batch: int = 4
    patch: int = 48
    bits: int = 4
    device: str = "cpu"


Stage2 = Literal["one pass", "separate", "batched", "checkpointed"]
"""Methods of training several depths in one step: ``one pass``, that of the library, which shares
quantized weights and the first blocks that depths have in common; ``separate``, one after the
other; ``batched``, as the library, but with the tensors of all depths concatenated to one batch in
every block; ``checkpointed``, as the library, but with activation checkpointing in every block."""


@dataclass(frozen=True)
class Row:
    """The configuration of one row."""

    kind: str
    bf16: bool = False
    compiled: bool = False
    channels_last: bool = False
    stage2: Stage2 | None = None
    """Method of training all depths in one step; None: only the full depth."""


WORKS = {"C": Work(), "T": Work(arch="T", blocks=4, feat=60)}

_BF16 = {"bf16": True, "channels_last": True}
_LAST = {"channels_last": True}
ROWS = {
    "bf16": {
        "float FP32": Row("float"),
        "float bf16": Row("float", **_BF16),
        "ours with 32 bits, bf16": Row("ours float", **_BF16),
        "released FP32": Row("released"),
        "released bf16": Row("released", **_BF16),
        "ours FP32": Row("ours", compiled=True),
        "ours bf16, eager": Row("ours", **_BF16),
        "ours bf16": Row("ours", compiled=True, **_BF16),
    },
    "fp32": {
        "float FP32": Row("float"),
        "float FP32, channels_last": Row("float", **_LAST),
        "ours with 32 bits, FP32": Row("ours float", **_LAST),
        "released FP32": Row("released"),
        "ours FP32, eager": Row("ours", **_LAST),
        "ours FP32": Row("ours", compiled=True, **_LAST),
    },
}
"""Rows by precision: the float network, the released code and ours."""


def stage2_rows(precision: str) -> dict[str, Row]:
    """Three depths in one step, by every method."""
    like = _BF16 if precision == "bf16" else _LAST
    return {
        f"three depths, {how}": Row("ours", compiled=True, stage2=how, **like) for how in get_args(Stage2)
    }


def build_network(kind: str, work: Work) -> Any:
    """The float network, ours or the released one, in the shape of the workload."""
    bits = {"bits_w": work.bits, "bits_a": work.bits}
    nbits = 32 if kind == "ours float" else work.bits
    if work.arch == "C":
        shape: dict[str, Any] = {"num_feat": work.feat, "num_block": work.blocks, "upscale": work.upscale}
        if kind == "float":
            return EDSR(3, 3, **shape)
        if kind == "released":
            return ReleasedQuantSRC(**shape, **bits)
        return QuantSR_C(**shape, nbits_w=nbits, nbits_a=nbits)
    if kind in ("float", "released"):
        swinir = SwinIR(
            img_size=work.patch,
            embed_dim=work.feat,
            depths=[6] * work.blocks,
            num_heads=[6] * work.blocks,
            window_size=8,
            mlp_ratio=2,
            upscale=work.upscale,
            upsampler="pixelshuffledirect",
            resi_connection="1conv",
        )
        return swinir if kind == "float" else quantize_linears(swinir, **bits)
    return QuantSR_T(
        embed_dim=work.feat, num_block=work.blocks, upscale=work.upscale, nbits_w=nbits, nbits_a=nbits
    )


def _batched(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(streams: Sequence[Tensor]) -> Sequence[Tensor]:
        (out,) = forward([torch.cat(list(streams))])
        parts: Sequence[Tensor] = out.chunk(len(streams))
        return parts

    return run


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda streams: checkpoint(forward, streams, use_reentrant=False)


_BLOCKS = {"batched": _batched, "checkpointed": _checkpointed}


class Step:
    """One network with its optimizer and data; a call is one training step."""

    def __init__(self, row: Row, work: Work) -> None:
        torch.manual_seed(0)
        self.row, self.device = row, torch.device(work.device)
        side = work.patch
        self.x = torch.rand(work.batch, 3, side, side)
        self.y = torch.rand(work.batch, 3, side * work.upscale, side * work.upscale)
        self.net = build_network(row.kind, work)
        if row.kind == "released":
            self.net(self.x)  # its first forward pass initialises the steps
        elif row.kind == "ours":
            calibrate(self.net, [self.x])
            self.net.rank_blocks()
        if row.stage2 in _BLOCKS:
            for unit in self.net.units():
                unit.forward = _BLOCKS[row.stage2](unit.forward)
        self.net.to(self.device)
        self.x, self.y = self.x.to(self.device), self.y.to(self.device)
        if row.channels_last:
            self.net.to(memory_format=torch.channels_last)
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        # as the trainer does
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-4, fused=True)

    def loss(self) -> Tensor:
        """Forward pass and L1 loss; with several depths the mean of their losses."""
        set_compile(self.row.compiled)
        amp = torch.autocast(self.device.type, torch.bfloat16) if self.row.bf16 else nullcontext()
        with amp:
            outputs: Sequence[Tensor]
            if self.row.stage2 is None:
                outputs = [self.net(self.x)]
            elif self.row.stage2 == "separate":
                outputs = [self.net(self.x, depth=depth) for depth in self.net.depths]
            else:
                outputs = self.net(self.x, depth=self.net.depths)
        return sum((out.float() - self.y).abs().mean() for out in outputs) / len(outputs)  # type: ignore[return-value]

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()

    def saved_bytes(self) -> int:
        """Bytes that autograd keeps between forward and backward."""
        own = {p.untyped_storage().data_ptr() for p in self.net.parameters()}
        seen: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = self.loss()
        total = sum(seen.values())
        del loss
        return total


def _sync(device: str) -> Callable[[], None] | None:
    return torch.cuda.synchronize if device == "cuda" else None


def peak_bytes(name: str, work: Work, precision: str) -> int:
    """Peak memory of a step, in a new process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_train",
        "--peak-of",
        name,
        "--precision",
        precision,
        "--work",
        json.dumps(asdict(work)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def _print_peak(name: str, work: Work, precision: str) -> None:
    cpu.keep_memory()
    step = Step({**ROWS[precision], **stage2_rows(precision)}[name], work)
    if work.device == "cuda":
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        print(torch.cuda.max_memory_allocated() - before)
        return
    step()  # compiles and allocates
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's peak (VmHWM)
    step()
    status = Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")))


def measure(
    rows: dict[str, Row], work: Work, *, repeats: int, memory: bool, precision: str
) -> list[dict[str, Any]]:
    """Time all rows interleaved. A row is compared with the float network of its precision and
    memory format."""
    steps = {name: Step(row, work) for name, row in rows.items()}
    first: dict[str, float] = {}
    for name, step in steps.items():
        begin = time.perf_counter()
        step()
        first[name] = time.perf_counter() - begin
    timings = {t.name: t for t in interleaved(steps, repeats, warm_up=2, sync=_sync(work.device))}
    records = []
    for name, row in rows.items():
        like = replace(row, kind="float", compiled=False, stage2=None)
        base = next((name for name, other in rows.items() if other == like), None)
        record: dict[str, Any] = {"row": name, **timings[name].row()}
        if base is not None:
            pairs = [a / b for a, b in zip(timings[name].times, timings[base].times, strict=True)]
            record["x_float_same_precision"] = round(statistics.median(pairs), 3)
        if "released FP32" in timings:
            pairs = [b / a for a, b in zip(timings[name].times, timings["released FP32"].times, strict=True)]
            record["x_faster_than_released"] = round(statistics.median(pairs), 2)
        record["first_step_s"] = round(first[name], 2)
        if memory:
            record["saved_MiB"] = round(steps[name].saved_bytes() / MIB, 1)
            record["peak_MiB"] = round(peak_bytes(name, work, precision) / MIB, 1)
        records.append({**record, **asdict(work)})
    return records


def loader_wait(work: Work, step_seconds: float, *, batches: int = 30) -> dict[str, Any]:
    """Share of a step spent waiting for crops of ``datasets/mini``, where a step takes
    ``step_seconds``."""
    from quantsr.data.loader import build_train_loader

    options = {
        "type": "CroppedImageDataset",
        "dataroot_gt": "datasets/mini",
        "gt_size": work.patch * work.upscale,
        "batch_size_per_gpu": work.batch,
        "use_hflip": True,
        "use_rot": True,
    }
    loader = build_train_loader(options, scale=work.upscale, seed=0)
    next(loader)
    waits = []
    for _ in range(batches):
        time.sleep(step_seconds)
        begin = time.perf_counter()
        next(loader)
        waits.append(time.perf_counter() - begin)
    loader.close()
    wait = statistics.median(waits)
    return {
        "row": "loader wait",
        "median_ms": round(wait * 1e3, 3),
        "share_of_step": round(wait / step_seconds, 4),
    }


def grow(work: Work, *, repeats: int, precision: str) -> list[dict[str, Any]]:
    """Rows for workloads that differ from ``work`` in one value each."""
    changes: list[dict[str, int]] = [{}]
    changes += [{"bits": b} for b in (2, 3, 8)]
    changes += [{"blocks": b} for b in (8, 32)]
    changes += [{"batch": b} for b in (1, 8, 16)]
    changes += [{"patch": p} for p in (24, 64, 96)]
    names = {"bf16": ("float bf16", "ours bf16"), "fp32": ("float FP32, channels_last", "ours FP32")}
    rows = {name: ROWS[precision][name] for name in names[precision]}
    records = []
    for change in changes:
        changed = replace(work, **change)
        label = ", ".join(f"{k} {v}" for k, v in change.items()) or "base"
        for record in measure(rows, changed, repeats=repeats, memory=False, precision=precision):
            records.append({"change": label, **record})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=sorted(WORKS), default="C")
    for name, value in asdict(Work()).items():
        if name != "arch":
            parser.add_argument(f"--{name}", type=type(value), help=f"default {value} (QuantSR-C)")
    parser.add_argument(
        "--precision", choices=sorted(ROWS), help="default: bf16 where the device trains faster in it"
    )
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument(
        "--grow", action="store_true", help="measure cost against bits, blocks, batch and patch"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", help="only these rows, without their memory, such as 'ours FP32'"
    )
    parser.add_argument("--output", help="file in benchmarks/results (default: by network and precision)")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        _print_peak(args.peak_of, Work(**json.loads(args.work)), args.precision)
        return
    given: dict[str, Any] = {
        name: getattr(args, name) for name in asdict(Work()) if getattr(args, name) is not None
    }
    work = replace(WORKS[args.arch], **given)
    precision = args.precision or ("bf16" if bf16_is_faster(torch.device(work.device)) else "fp32")
    parts = [*([] if work.arch == "C" else [work.arch.lower()]), work.device]
    tag = "_".join([*parts, *([] if precision == "bf16" else [precision])])
    print(machine())
    cpu.keep_memory()  # as the trainer does
    if args.grow:
        records = grow(work, repeats=args.repeats, precision=precision)
        path = timing.write_csv(args.output or f"train_growth_{tag}.csv", records)
    elif args.only:
        if unknown := set(args.only) - set(ROWS[precision]):
            parser.error(f"--only: no rows {sorted(unknown)}; choose from {sorted(ROWS[precision])}")
        rows = {name: row for name, row in ROWS[precision].items() if name in args.only}
        records = measure(rows, work, repeats=args.repeats, memory=False, precision=precision)
        path = timing.write_csv(args.output or f"train_{tag}.csv", records)
    else:
        common: dict[str, Any] = {"repeats": args.repeats, "memory": True, "precision": precision}
        records = measure(ROWS[precision], work, **common)
        if work.arch == "C":
            records += measure(stage2_rows(precision), work, **common)
        name = {"bf16": "ours bf16", "fp32": "ours FP32"}[precision]
        ours = next(r for r in records if r["row"] == name)
        records.append({**loader_wait(work, ours["median_ms"] / 1e3), **asdict(work)})
        path = timing.write_csv(args.output or f"train_{tag}.csv", records)
    shown = [{k: v for k, v in r.items() if k not in asdict(work)} for r in records]
    print(timing.table(shown))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
