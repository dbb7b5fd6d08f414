"""Any network on every engine that is installed, in float and with few bits, on one thread, all
rows in turn in one process: from uint8 array to uint8 array.

python -m benchmarks.bench_any                              # Compact x4, results/any_compact.csv
python -m benchmarks.bench_any --network msrresnet --bits 4 8 --size 64 64
python -m benchmarks.bench_any --file NETWORK.safetensors   # a packed network as it is
python -m benchmarks.bench_any --model NET.param --name span  # a trained float network (-opt FILE)

Networks of BasicSR have random weights and are quantized after training, first and last layers not,
with `--method minmax` in a fraction of the time; `--cpu-time` counts the process's own time, on a
machine that does other things as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import median

import numpy as np
import torch
from torch import nn

from benchmarks import timing
from quantsr.archs.constructors import build_network
from quantsr.basicsr_compat import EDSR, importable
from quantsr.deploy import post_training
from quantsr.deploy.convert import convert
from quantsr.deploy.engines import select
from quantsr.deploy.engines.names import ENGINES
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.post_training_methods import MethodName
from quantsr.errors import InputError
from quantsr.loading import float_network
from quantsr.ranges import FLOAT_BITS, Bits
from quantsr.timing import load_per_core, machine
from quantsr.trained_files.names import find_packed

with importable():
    from basicsr.archs.rrdbnet_arch import RRDBNet
    from basicsr.archs.srresnet_arch import MSRResNet
    from basicsr.archs.srvgg_arch import SRVGGNetCompact


def swinir(dim: int, groups: int, heads: int, **options: str) -> nn.Module:
    """SwinIR x4 with groups of 6 layers and windows of 8x8."""
    layers = {"depths": [6] * groups, "num_heads": [heads] * groups, "window_size": 8, "mlp_ratio": 2}
    return build_network("SwinIR", {"upscale": 4, "img_size": 64, "embed_dim": dim, **layers, **options})


NETWORKS = {
    "compact": lambda: SRVGGNetCompact(3, 3, 64, 32, 4, "prelu"),
    "edsr": lambda: EDSR(3, 3, num_feat=64, num_block=16, upscale=4),
    "msrresnet": lambda: MSRResNet(3, 3, 64, 16, 4),
    "rrdbnet": lambda: RRDBNet(3, 3, 4, num_feat=64, num_block=3, num_grow_ch=32),
    "swinir_m": lambda: swinir(180, 6, 6, upsampler="nearest+conv"),
    "swinir_m_3conv": lambda: swinir(180, 6, 6, upsampler="nearest+conv", resi_connection="3conv"),
    "swinir_l": lambda: swinir(240, 9, 8, upsampler="nearest+conv", resi_connection="3conv"),
}
FLOAT = "float"


def network(name: str) -> nn.Module:
    """One of `NETWORKS`, with random weights."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def made(net: nn.Module, bits: Bits, method: MethodName = "fit") -> PackedModel:
    """A network, packed with these bits of its body's weights and activations, or in float."""
    pictures = [np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)]
    if bits.is_float:
        return convert(net, head_tail_bits=32)
    net = post_training.quantize(net, bits, pictures, method=post_training.Method(method, correct_bias=False))
    return convert(net, calib=pictures)


def runs(
    label: str, model: PackedModel, image: np.ndarray, engines: Sequence[str]
) -> dict[str, Callable[[], object]]:
    """A call for each engine that is installed and has every operation of the network; "native
    ISA" is the native engine restricted to an instruction set."""
    found: dict[str, Callable[[], object]] = {}
    for words in engines:
        engine, *isa = words.split()
        if engine != "native" and not find_spec(engine):
            continue
        try:
            run = select.create(engine, model, threads=1, **({"isa": isa[0]} if isa else {})).run
        except InputError as error:
            print(error)
            continue
        found[f"{label}, {words}"] = lambda run=run: run(image)
    return found


def in_turn(
    calls: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds of every call in each round."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {label: [] for label in calls}
    for _ in range(rounds):
        for label, call in calls.items():
            start = clock()
            call()
            times[label].append((clock() - start) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=NETWORKS, default="compact")
    parser.add_argument("--file", help="packed network: a file, or the name of one that comes with quantsr")
    parser.add_argument("--model", help="trained float network, as quantsr quantize takes it")
    parser.add_argument("-opt", help="with --model: option file whose network_g it is of")
    parser.add_argument("--name", help="with --model: of the file of results, any_NAME.csv")
    default = [Bits(4, 4), Bits(8, 8)]
    parser.add_argument("--bits", type=Bits.parse, nargs="+", default=default, metavar="N|WnAm")
    parser.add_argument("--method", choices=("fit", "minmax"), default="fit", help="how they are found")
    parser.add_argument("--size", type=int, nargs=2, default=[128, 128], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--engines",
        nargs="+",
        default=[*ENGINES[1:], "native avx2"],
        help="default: all, and native with AVX2 only",
    )
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--output", help="file in benchmarks/results; default: any_NAME.csv")
    args = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (1, *args.size, 3), np.uint8)
    load, calls = load_per_core(), {}
    if args.file:
        name = args.file
        calls |= runs("file", packing.load(find_packed(args.file)), image, args.engines)
    else:
        name = args.network if args.model is None else args.name or "model"
        net = network(name) if args.model is None else float_network(args.model, args.opt)[0]
        calls |= runs(FLOAT, made(net, Bits(FLOAT_BITS, FLOAT_BITS)), image, args.engines)
        for bits in args.bits:
            calls |= runs(str(bits), made(net, bits, args.method), image, args.engines)
    times = in_turn(calls, args.rounds, time.process_time if args.cpu_time else time.perf_counter)
    medians = {label: median(values) for label, values in times.items()}
    base = min(
        (m for label, m in medians.items() if label.startswith((FLOAT, "file")) and "native" not in label)
    )
    records = [
        {
            "network": name,
            "row": label,
            "picture": f"{args.size[1]}x{args.size[0]}",
            "median_ms": round(medians[label], 2),
            "min_ms": round(min(values), 2),
            "x best other float" if not args.file else "x best other": round(base / medians[label], 2),
            "clock": "process" if args.cpu_time else "wall",
            "runs": args.rounds,
        }
        for label, values in times.items()
    ]
    print(f"{machine()}; one thread; load per core before the run {load:.2f}")
    print(timing.table(records))
    print(timing.write_csv(args.output or f"any_{'file' if args.file else name}.csv", records))


if __name__ == "__main__":
    main()
