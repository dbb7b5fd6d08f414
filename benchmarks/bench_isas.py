"""Shipped networks on one thread: every instruction set of the native engine, and OpenVINO,
interleaved.

python -m benchmarks.bench_isas                  # results/isas.csv
python -m benchmarks.bench_isas --threads 2 --networks quantsr_c_x4_w4a4
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks import timing
from quantsr.deploy.engines import select
from quantsr.deploy.native import library
from quantsr.deploy.packed import packing
from quantsr.timing import interleaved, load_per_core, machine
from quantsr.trained_files.names import find_packed, shipped

HEIGHT, WIDTH = 180, 320


def isas() -> list[str]:
    """Instruction sets of the native engine that this processor has, without the plain C code."""
    return library.isas()[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=shipped(), metavar="NAME_OR_FILE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", default="isas.csv", help="file in benchmarks/results")
    args = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    load = load_per_core()
    records = []
    for name in args.networks:
        model = packing.load(find_packed(name))
        for depth in model.header.depths:
            engines = {
                isa: select.create("native", model, depth, threads=args.threads, isa=isa) for isa in isas()
            }
            engines["openvino"] = select.create("openvino", model, depth, threads=args.threads)
            calls = {label: (lambda engine=engine: engine.run(image)) for label, engine in engines.items()}
            timings = interleaved(calls, args.rounds)
            fastest = min(t.median for t in timings)
            for t in timings:
                row = {"network": name, "depth": depth, "engine": t.name, "threads": args.threads, **t.row()}
                records.append({**row, "x fastest": round(t.median / fastest, 2), "runs": len(t.times)})
    print(f"{machine()}; load per core before the run {load:.2f}")
    print(timing.table(records))
    print(timing.write_csv(args.output, records))


if __name__ == "__main__":
    main()
