"""Every network that comes with quantsr, at every depth, on a 320x180 picture: from uint8 array to
uint8 array on the engine that `auto` selects, interleaved in one run.

python -m benchmarks.bench_zoo        # results/zoo.csv, which scripts/model_card.py reads
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks import timing
from quantsr import cpu
from quantsr.deploy.engines import select
from quantsr.deploy.packed import packing
from quantsr.timing import interleaved, load_per_core, machine
from quantsr.trained_files.names import ZOO

HEIGHT, WIDTH = 180, 320


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    descriptions, calls = {}, {}
    for file in sorted(ZOO.glob("*.safetensors")):
        model = packing.load(file)
        for depth in model.header.depths:
            engine = select.create("auto", model, depth)
            label = f"{file.stem}, depth {depth}"
            descriptions[label] = {
                "network": file.stem,
                "depth": depth,
                "engine": engine.name,
                "picture": f"{WIDTH}x{HEIGHT} x{model.header.scale}",
            }
            calls[label] = lambda engine=engine: engine.run(image)
    load = load_per_core()
    timings = interleaved(calls, args.rounds)
    records = [{**descriptions[t.name], **t.row(), "runs": len(t.times)} for t in timings]
    print(f"{machine()}; {cpu.cores()} cores used; load per core before the run {load:.2f}")
    print(timing.table(records))
    print(timing.write_csv("zoo.csv", records))


if __name__ == "__main__":
    main()
