"""What 8 and 4 bits without training make of a network that others trained: one row for each
number of bits, in results/gallery_NAME.csv (docs/reference/gallery.md).

python -m benchmarks.gallery MODEL --name SPAN --data PICTURES --gt Set5 B100
python -m benchmarks.gallery EDSR.pth -opt edsr.yml --name EDSR --data PICTURES --gt Set5

Y-PSNR without a border as wide as the scale, by the engine that `auto` takes; "between" is the
PSNR, over all values, of the float network's pictures and the packed one's. Networks without a
ground truth of their own have that alone (`--no-truth`).
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks import timing
from quantsr import Upscaler
from quantsr.deploy.convert import convert
from quantsr.deploy.export import calibration_pictures, evaluation_set
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.parity import Recorder, difference_of
from quantsr.deploy.post_training import Picture, quantize
from quantsr.engine.evaluate import EvalSet, evaluate, network_upscaler
from quantsr.loading import float_network, scale_of
from quantsr.ranges import Bits

_FLOAT = "float"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="float network, as quantsr quantize takes it")
    parser.add_argument("-opt", help="option file whose network_g the checkpoint is of")
    parser.add_argument("--name", required=True, help="of the network in the table")
    default = [Bits(8, 8), Bits(4, 4)]
    parser.add_argument("--bits", type=Bits.parse, nargs="+", default=default, metavar="N|WnAm")
    parser.add_argument("--data", required=True, help="folder of pictures to quantize on")
    parser.add_argument("--crops", type=int, help="read the first N of them; default: as quantize, 16 of all")
    parser.add_argument("--gt", nargs="+", required=True, help="folders of evaluation sets")
    parser.add_argument("--first", type=int, help="evaluate on the first N pictures of each set")
    parser.add_argument("--no-truth", action="store_true", help="leave out PSNR against the ground truth")
    args = parser.parse_args()

    net = float_network(args.model, args.opt)[0]
    scale = scale_of(net)
    pictures = calibration_pictures(args.data, scale)[: args.crops]
    sets = [first(evaluation_set(folder, scale), args.first) for folder in args.gt]
    upscale = network_upscaler(net, (None,), scale=scale)
    wanted = {found.name: Recorder(lambda picture: upscale(picture)[0]) for found in sets}
    found_bytes = 4 * sum(parameter.numel() for parameter in net.parameters())
    records = [row(args, scale, _FLOAT, found_bytes, 0.0, sets, wanted, wanted)]
    for bits in args.bits:
        start = time.process_time()
        model = made(net, bits, pictures)
        seconds = time.process_time() - start
        upscaler = Upscaler(model)
        runs = {found.name: Recorder(upscaler) for found in sets}
        records.append(row(args, scale, str(bits), file_bytes(model), seconds, sets, runs, wanted))
    print(timing.table(records))
    file = re.sub(r"\W+", "_", args.name.lower())
    print(timing.write_csv(f"gallery_{file}.csv", records))


def made(net: nn.Module, bits: Bits, pictures: list[Picture]) -> PackedModel:
    """The network, quantized without training."""
    return convert(quantize(net, bits, pictures), calib=pictures)


def first(found: EvalSet, count: int | None) -> EvalSet:
    """The first pictures of a set; all of them without a count."""
    if count is None:
        return found
    return EvalSet(found.name, found.scale, [found.pictures[i] for i in range(count)])


def file_bytes(model: PackedModel) -> int:
    """Of the packed file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        packing.save(model, path)
        return path.stat().st_size


def row(
    args: argparse.Namespace,
    scale: int,
    bits: str,
    size: int,
    seconds: float,
    sets: list[EvalSet],
    runs: dict[str, Recorder],
    wanted: dict[str, Recorder],
) -> dict[str, object]:
    """A network measured on all sets."""
    metrics = {"psnr": {"type": "calculate_psnr", "crop_border": scale, "test_y_channel": True}}
    found: dict[str, object] = {"network": args.name, "x": scale, "bits": bits, "bytes": size}
    for dataset in sets:
        (record,) = evaluate(runs[dataset.name], [dataset], metrics=metrics, name=args.name)
        found[f"{dataset.name}, dB"] = "" if args.no_truth else f"{record.value:.2f}"
        if runs is not wanted:
            difference = difference_of(runs[dataset.name].pictures, wanted[dataset.name].pictures)
            found[f"{dataset.name}, between"] = f"{difference.psnr:.1f}"
    if seconds:
        found["quantized in, CPU s"] = f"{seconds:.0f}"
    return found


if __name__ == "__main__":
    main()
