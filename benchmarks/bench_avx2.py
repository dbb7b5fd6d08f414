"""The native engine on AVX2 beside the limit of its instructions, on one thread: how long the
products of a network take at the rate at which this processor multiplies and adds when nothing
holds it up. Needs a C compiler (`CC`, default cc).

python -m benchmarks.bench_avx2                   # shipped networks, results/avx2.csv
python -m benchmarks.bench_avx2 --networks compact edsr msrresnet rrdbnet   # results/avx2_any.csv

The limit has nothing but products: no transforms, no rounding, no loads. Measured is the process's
own time, so that other processes disturb little.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.bench_any import NETWORKS, made, network
from quantsr.deploy.engines import select
from quantsr.deploy.native import structures
from quantsr.deploy.native.engine import NativeEngine
from quantsr.deploy.packed import packing
from quantsr.ranges import Bits
from quantsr.timing import load_per_core, machine
from quantsr.trained_files.names import find_packed, shipped

SIZE = (180, 320)
ANY_SIZE = (64, 64)
AT_ONCE = {"bytes": 32, "words": 16, "floats": 8, "doubles": 4}
"""Products of one instruction."""
KINDS = {structures.BYTES: "bytes", structures.WORDS: "words", structures.FLOATS: "floats"}


def rates() -> dict[str, float]:
    """Seconds for one sequence of instructions, and for a cycle."""
    source = Path(__file__).parent / "instruction_rates.c"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "rates"
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-O2", "-mavx2", "-mfma", "-o", str(program), str(source)], check=True)
        lines = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    found = {name: float(value) for name, value in (line.split() for line in lines)}
    return {**found, "doubles": found["floats"]}


def of_conv(conv: Any, inputs: int, height: int, width: int) -> Counter[str]:
    """Products of a convolution in tiles on a map."""
    tile = conv.tile if conv.kind == structures.BYTES else structures.TILE
    positions = 49 if tile == structures.LARGE_TILE or conv.blocks == 2 else 16
    tiles = math.ceil(height / tile) * math.ceil(width / tile)
    return Counter({KINDS[conv.kind]: positions * tiles * inputs * conv.outputs})


def of_sweep(network: Any, sweep: Any, height: int, width: int) -> Counter[str]:
    if sweep.source != structures.FROM_CONV:
        return Counter()
    inputs = network.program[0].buffer[sweep.input].channels
    height, width = height * sweep.factor, width * sweep.factor
    if sweep.form == structures.IN_TILES:
        return of_conv(sweep.conv, inputs, height, width)
    doubles = sweep.form == structures.IN_DOUBLES
    count = height * width * sweep.size**2 * (sweep.inputs if doubles else inputs) * sweep.conv.outputs
    return Counter({"doubles" if doubles else KINDS[sweep.conv.kind]: count})


def of_layer(swin: Any, layer: Any, pixels: int) -> Counter[str]:
    linears = (layer.q, layer.k, layer.v, layer.proj, layer.fc1, layer.fc2)
    attention = 2 * swin.window**2 * swin.dim  # scores, and the mixture of values
    return Counter(
        {"bytes": pixels * sum(x.inputs * x.outputs for x in linears), "floats": pixels * attention}
    )


def parts(network: Any, height: int, width: int) -> Iterator[Counter[str]]:
    """Products of every part of a network."""
    pixels, channels = height * width, network.channels
    if network.program:
        program = network.program[0]
        yield from (of_sweep(network, program.sweep[i], height, width) for i in range(program.sweeps))
    if network.program and not network.swin:
        return
    yield Counter({"doubles": pixels * 27 * channels})
    for i in range(network.blocks):
        yield of_conv(network.body[i].conv1, channels, height, width)
        yield of_conv(network.body[i].conv2, channels, height, width)
    if network.swin:
        swin = network.swin[0]
        for group in (swin.group[i] for i in range(swin.groups)):
            yield from (of_layer(swin, group.layer[i], pixels) for i in range(group.layers))
            yield of_conv(group.closing, channels, height, width)
    yield of_conv(network.after_body, channels, height, width)
    if not network.program:
        yield of_conv(network.tail, channels, height, width)


def cases(names: list[str]) -> Iterator[tuple[str, int | None, Any]]:
    for name in names:
        if name in NETWORKS:
            yield name, None, made(network(name), Bits(4, 4))
            continue
        model = packing.load(find_packed(name))
        yield from ((name, depth, model) for depth in model.header.depths)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=shipped(), metavar="NAME_OR_FILE")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    load, of, records = load_per_core(), rates(), []
    for name, depth, model in cases(args.networks):
        height, width = args.size or (ANY_SIZE if name in NETWORKS else SIZE)
        image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        engine = select.create("native", model, depth, threads=1, isa="avx2")
        assert isinstance(engine, NativeEngine)
        engine.run(image)
        times = []
        for _ in range(args.rounds):
            start = time.process_time()
            engine.run(image)
            times.append((time.process_time() - start) * 1e3)
        multiple = engine._program.multiple
        padded = (-(-size // multiple) * multiple for size in (height, width))
        products = sum(parts(engine._program.for_size(height, width), *padded), Counter())
        limit = sum(count / AT_ONCE[kind] * of[kind] for kind, count in products.items()) * 1e3
        of_bytes = products["bytes"] / AT_ONCE["bytes"]
        records.append(
            {
                "network": name,
                "depth": depth or "",
                "picture": f"{width}x{height}",
                **{f"G {kind}": round(products[kind] / 1e9, 2) for kind in AT_ONCE},
                "limit_ms": round(limit, 1),
                "limit_in_32_bits_ms": round(limit + of_bytes * (of["bytes_in_32"] - of["bytes"]) * 1e3, 1),
                "median_ms": round(median(times), 1),
                "min_ms": round(min(times), 1),
                "median / limit": round(median(times) / limit, 2),
                "min / limit": round(min(times) / limit, 2),
                "runs": args.rounds,
            }
        )
    cycles = {kind: round(of[kind] / of["cycle"], 3) for kind in ("bytes", "bytes_in_32", "words", "floats")}
    print(f"{machine()}; one thread; load per core before the run {load:.2f}")
    print(f"{1e-9 / of['cycle']:.2f} GHz; cycles for one sequence: {cycles}")
    print(timing.table(records))
    name = "avx2_any.csv" if all(name in NETWORKS for name in args.networks) else "avx2.csv"
    print(timing.write_csv(name, [{**r, "GHz": round(1e-9 / of["cycle"], 2), **cycles} for r in records]))


if __name__ == "__main__":
    main()
