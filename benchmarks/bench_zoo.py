"""Every network that comes with quantsr, at every depth, on a 320x180 picture: from uint8 array to
uint8 array on the engine that `auto` selects, or on several, interleaved in one run.

python -m benchmarks.bench_zoo        # results/zoo.csv, which scripts/model_card.py reads
python -m benchmarks.bench_zoo --engines native openvino ncnn   # results/zoo_engines.csv
"""

from __future__ import annotations

import argparse
from itertools import product

import numpy as np

from benchmarks import timing
from quantsr import cpu
from quantsr.deploy.engines import select
from quantsr.deploy.packed import packing
from quantsr.errors import InputError
from quantsr.timing import interleaved, load_per_core, machine
from quantsr.trained_files.names import find_packed, shipped

HEIGHT, WIDTH = 180, 320


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engines", nargs="+", default=["auto"], choices=select.ENGINES)
    parser.add_argument("--networks", nargs="+", default=shipped(), metavar="NAME")
    parser.add_argument("--threads", type=int, help="default: what each engine finds")
    args = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    descriptions, calls = {}, {}
    cases = [(name, packing.load(find_packed(name))) for name in args.networks]
    for (name, model), wanted in product(cases, args.engines):
        for depth in model.header.depths:
            try:
                engine = select.create(wanted, model, depth, threads=args.threads)
            except InputError as error:
                print(f"{name} is left out: {error}")
                break
            label = f"{name}, depth {depth}, {engine.name}"
            descriptions[label] = {
                "network": name,
                "depth": depth,
                "engine": engine.name,
                "picture": f"{WIDTH}x{HEIGHT} x{model.header.scale}",
            }
            calls[label] = lambda engine=engine: engine.run(image)
    load = load_per_core()
    timings = interleaved(calls, args.rounds)
    records = [{**descriptions[t.name], **t.row(), "runs": len(t.times)} for t in timings]
    print(f"{machine()}; {args.threads or cpu.cores()} threads; load per core before the run {load:.2f}")
    print(timing.table(records))
    print(timing.write_csv("zoo.csv" if args.engines == ["auto"] else "zoo_engines.csv", records))


if __name__ == "__main__":
    main()
