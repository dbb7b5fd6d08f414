"""Methods of post-training quantization side by side: Y-PSNR, SSIM, seconds of the processor.

    python benchmarks/bench_post_training.py MODEL [-opt FILE] --data PICTURES --gt SET --bits 4 2

prints a row for each method and number of bits, as soon as it has it. Packed files are those of
`quantsr quantize`, but that fewer pictures calibrate the inputs of the layers outside the body;
their pictures are those of the engine that `quantsr upscale` takes.
"""

from __future__ import annotations

import argparse
import time

from quantsr.deploy.convert import convert
from quantsr.deploy.engines import select
from quantsr.deploy.export import calibration_pictures, evaluation_set
from quantsr.deploy.post_training import quantize
from quantsr.deploy.post_training_methods import Method
from quantsr.engine.evaluate import evaluate
from quantsr.loading import float_network, scale_of
from quantsr.ranges import Bits

ROWS = ["fit", "minmax", "percentile", "mse", "2dquant:0", "2dquant:200", "2dquant:200:8"]

CALIBRATION_PICTURES = 4  # of 16-bit inputs: their range is known from few


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("-opt")
    parser.add_argument("--data", required=True)
    parser.add_argument("--gt", required=True)
    parser.add_argument("--bits", nargs="+", default=["4"])
    parser.add_argument("--rows", nargs="+", default=ROWS, help="METHOD[:ITERATIONS[:RECTIFIER]]")
    parser.add_argument("--mixed", type=float, default=0.0)
    parser.add_argument("--attention", action="store_true", help="attention's products, too")
    args = parser.parse_args()
    net, _, _ = float_network(args.model, args.opt)
    scale = scale_of(net)
    pictures, gt = calibration_pictures(args.data, scale), evaluation_set(args.gt, scale)
    how = {"crop_border": scale, "test_y_channel": True}
    metrics = {name: {"type": f"calculate_{name}", **how} for name in ("psnr", "ssim")}
    print("| method | bits | PSNR | SSIM | seconds |\n| --- | --- | --- | --- | --- |", flush=True)
    for text in args.bits:
        bits = Bits.parse(text)
        for row in args.rows:
            name, iterations, rectifier = (*row.split(":"), "0", "0")[:3]
            method = Method(name, iterations=int(iterations), rectifier=int(rectifier), mixed=args.mixed)
            attention = bits.activations if args.attention else None
            start = time.process_time()
            found = quantize(net, bits, pictures, method=method, attention=attention)
            seconds = time.process_time() - start
            model = convert(found, head_tail_bits=8, calib=pictures[:CALIBRATION_PICTURES])
            engine = select.create("auto", model, model.header.depths[0])
            records = evaluate(
                lambda x, run=engine.run: run(x[None])[0], [gt], metrics=metrics, name="", engine=""
            )
            psnr, ssim = (record.value for record in records)
            print(f"| {row} | {bits} | {psnr:.2f} | {ssim:.4f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
