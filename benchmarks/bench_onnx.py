"""Shipped networks in ONNX Runtime: the graph that `quantsr export` writes, the one that the engine
`onnxruntime` runs in integers, and OpenVINO's, in turn.

python -m benchmarks.bench_onnx                  # results/onnx.csv
python -m benchmarks.bench_onnx --threads 2 --networks quantsr_c_x4_w4a4
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import onnxruntime

from benchmarks import timing
from quantsr.deploy.engines import onnx_model, select
from quantsr.deploy.engines.onnx_graph import INPUT
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.timing import interleaved, load_per_core, machine
from quantsr.trained_files.names import find_packed, shipped

HEIGHT, WIDTH = 180, 320


def exported(model: PackedModel, depth: int, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """The file's graph in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    graph = onnx_model.build(model, depth).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {INPUT: image})[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=shipped(), metavar="NAME_OR_FILE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--without-openvino", action="store_true")
    args = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    load = load_per_core()
    records = []
    for name in args.networks:
        model = packing.load(find_packed(name))
        for depth in model.header.depths:
            runs = {"exported file": exported(model, depth, args.threads)}
            for engine in ("onnxruntime", *(() if args.without_openvino else ("openvino",))):
                runs[engine] = select.create(engine, model, depth, threads=args.threads).run
            calls = {label: (lambda run=run: run(image)) for label, run in runs.items()}
            timings = interleaved(calls, args.rounds)
            for t in timings:
                row = {"network": name, "depth": depth, "engine": t.name, "threads": args.threads, **t.row()}
                ratio = round(timings[0].median / t.median, 2)
                records.append({**row, "x exported": ratio, "runs": len(t.times)})
    print(f"{machine()}; load per core before the run {load:.2f}")
    print(timing.table(records))
    print(timing.write_csv("onnx.csv", records))


if __name__ == "__main__":
    main()
