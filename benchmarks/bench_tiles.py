"""Largest and mean difference between tiled and whole upscaling, in levels of 255.

For QuantSR-C it is 0 by construction. The receptive field of QuantSR-T grows with every layer of
shifted windows, so that its tiles overlap by less than that; this measures several overlaps.

    python -m benchmarks.bench_tiles -m NETWORK [--tile 64] [--overlap 0 16 32 48] PICTURE...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from quantsr.deploy import bench
from quantsr.deploy.upscale import image_io
from quantsr.deploy.upscale.upscaler import Upscaler


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", required=True, help="packed network, 'random' or 'random_t'")
    parser.add_argument(
        "--tile", type=int, default=64, help="side of a tile without its overlap (default: %(default)s)"
    )
    parser.add_argument("--overlap", type=int, nargs="+", default=[0, 16, 32, 48])
    parser.add_argument(
        "picture", nargs="+", type=Path, help="low-resolution pictures that fit into memory whole"
    )
    args = parser.parse_args()
    model = bench.load_packed(args.model)
    whole, tiled = Upscaler(model), Upscaler(model, tile=args.tile)
    print("| picture | overlap | largest | mean | above 1 |\n|---|---|---|---|---|")
    for path in args.picture:
        image = image_io.read(path).rgb
        expected = whole(image).astype(np.int64)
        for overlap in args.overlap:
            tiled.halo = overlap
            difference = np.abs(tiled(image) - expected)
            share = 100 * (difference > 1).mean()
            print(
                f"| {path.name} | {overlap} | {difference.max()} | {difference.mean():.4f} | {share:.3f} % |"
            )


if __name__ == "__main__":
    main()
