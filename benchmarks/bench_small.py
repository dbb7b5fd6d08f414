"""A small QuantSR-C x3 and a public int8 mobile network in LiteRT, 320x180 to 960x540, from uint8
array to uint8 array, interleaved in one run.

pip install ai-edge-litert
python benchmarks/make_abpn.py abpn.tflite        # in an environment with tensorflow-cpu
python -m benchmarks.bench_small --tflite abpn.tflite [--network FILE_OR_NAME]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from benchmarks import timing
from quantsr import cpu
from quantsr.deploy.engines import select
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.stand_ins.convolutional import random_model
from quantsr.timing import interleaved, load_per_core, machine
from quantsr.trained_files.names import find_packed

HEIGHT, WIDTH = 180, 320


def litert(path: str, image: np.ndarray) -> Callable[[], object]:
    """A TFLite file on all cores."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=cpu.cores())
    interpreter.allocate_tensors()
    source, target = (
        details[0]["index"] for details in (interpreter.get_input_details(), interpreter.get_output_details())
    )

    def run() -> object:
        interpreter.set_tensor(source, image)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return run


def ours(model: PackedModel, depth: int, image: np.ndarray) -> Callable[[], object]:
    engine = select.create("auto", model, depth)
    return lambda: engine.run(image)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tflite", required=True, help="file of make_abpn.py, for 320x180")
    parser.add_argument(
        "--network", help="packed QuantSR-C x3 (default: random weights in the shape of small_w4a6_x3.yml)"
    )
    parser.add_argument("--rounds", type=int, default=31)
    args = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    if args.network:
        model = packing.load(find_packed(args.network))
    else:
        model = random_model(
            num_feat=32,
            num_block=6,
            scale=3,
            bits_w=4,
            bits_a=6,
            depths=(6, 4),
            first_bits=32,
            upsampler="pixelshuffledirect",
        )
    calls = {"ABPN's structure, int8, LiteRT": litert(args.tflite, image)}
    calls |= {f"ours, depth {depth}": ours(model, depth, image) for depth in model.header.depths}
    load = load_per_core()
    timings = interleaved(calls, args.rounds, warm_up=3)
    base = timings[0].median
    records = [
        {
            "contender": t.name,
            **t.row(),
            "x_faster_than_litert": round(base / t.median, 2),
            "runs": len(t.times),
        }
        for t in timings
    ]
    print(f"{machine()}; {cpu.cores()} cores used; load per core before the run {load:.2f}")
    print(timing.table(records))
    print(timing.write_csv("small_x3.csv", records))


if __name__ == "__main__":
    main()
