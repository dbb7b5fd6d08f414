"""Writes the measured part of a model card, quantsr/zoo/NAME.md: the text between its two marks,
from the packed file and the results of test runs.

    sh test.sh --set path.pretrain_network_g=NAME
    python scripts/model_card.py NAME results/shipped/results.json [MORE.json ...]

The records are kept beside the card, in NAME.json; without result files the card is made from them.
New result files replace them, except records of the float network from which training started,
which are kept unless a new file has them. Figures that were measured on another machine, by the
same command on the same file, are rows of benchmarks/results/elsewhere.csv (network, begin of the
file's SHA-256, depth or nothing for bicubic, set, number of pictures, PSNR, SSIM); they get a
column of their own. The text outside the marks (data, training, licence) is
written by hand and kept.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from quantsr.deploy.packed.model import PackedLayer, PackedModel
from quantsr.deploy.packed.packing import load
from quantsr.engine.results import Record, read_results, write_records
from quantsr.errors import InputError
from quantsr.trained_files.names import ZOO

BEGIN = "<!-- measured: python scripts/model_card.py -->"
END = "<!-- end of what is measured -->"
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
SPEED = RESULTS / "zoo.csv"
ELSEWHERE = RESULTS / "elsewhere.csv"
STAR = " \\*"


def measured(packed: Path, records: Sequence[Record]) -> str:
    """The measured part: the file, its layers and bits, PSNR and SSIM of every row on every set,
    milliseconds of every depth."""
    content, model = packed.read_bytes(), load(packed)
    digest = hashlib.sha256(content).hexdigest()
    elsewhere = measured_elsewhere(digest)
    depths = ", ".join(map(str, model.header.depths))
    lines = [
        f"x{model.header.scale}, depths {depths}; {len(content):,} bytes, SHA-256 {digest[:16]}...",
        "",
        "| layers | weights | inputs |",
        "|---|---|---|",
        *layers_table(model),
        "",
        *quality_table(records, elsewhere),
        "",
        "Y-PSNR in dB / SSIM, border as wide as the scale (BasicSR's protocol).",
        *elsewhere_line(elsewhere),
        *speed_line(packed.stem),
    ]
    return "\n".join(lines)


def layers_table(model: PackedModel) -> list[str]:
    """Rows of layers with the same bits, in order of execution; blocks are counted."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, layer in model.layers.items():
        groups.setdefault((weight_bits(layer), input_bits(layer)), []).append(name)
    rows = []
    for (weights, inputs), names in groups.items():
        blocks = [name for name in names if name.startswith(("body.", "layers."))]
        others = [f"`{name}`" for name in names if name not in blocks]
        if blocks:
            others.insert(0, f"{len(blocks)} in {model.header.num_block} blocks")
        rows.append(f"| {', '.join(others)} | {weights} | {inputs} |")
    return rows


def weight_bits(layer: PackedLayer) -> str:
    """How a layer's weights are stored."""
    if layer.bits_w > 8:
        return f"float{layer.bits_w}"
    per = "output channel" if layer.weight_step is not None and layer.weight_step.size > 1 else "tensor"
    return f"{layer.bits_w} bit, a step per {per}"


def input_bits(layer: PackedLayer) -> str:
    """The bits of a layer's inputs."""
    return "float" if layer.bits_a > 16 else f"{layer.bits_a} bit"


def measured_elsewhere(digest: str) -> list[dict[str, str]]:
    """The rows of `ELSEWHERE` of the packed file with this SHA-256."""
    if not ELSEWHERE.is_file():
        return []
    with ELSEWHERE.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if digest.startswith(row["sha256"])]


def elsewhere_line(rows: Sequence[dict[str, str]]) -> list[str]:
    """What the sets with a star are; empty where there are none."""
    pictures = {row["set"]: row["pictures"] for row in rows}
    listed = ", ".join(f"{set_name}, all {count} pictures" for set_name, count in pictures.items())
    return (
        [f"{STAR.strip()} Measured on another machine, with this file and the same command ({listed})."]
        if pictures
        else []
    )


def quality_table(records: Sequence[Record], elsewhere: Sequence[dict[str, str]] = ()) -> list[str]:
    """A row for each network and depth, a column for each set; those measured elsewhere, of bicubic
    and the packed network, are last and have a star."""
    sets = list(dict.fromkeys(record.set for record in records))
    values = {(record.row, record.set, record.metric): record.value for record in records}
    others = list(dict.fromkeys(row["set"] for row in elsewhere))
    other = {(row["set"], row["depth"]): [row["psnr"], row["ssim"]] for row in elsewhere}
    table = [f"| | {' | '.join([*sets, *(name + STAR for name in others)])} |"]
    table.append("|---" * (len(sets) + len(others) + 1) + "|")
    for row, record in {record.row: record for record in records}.items():
        cells = []
        for name in sets:
            psnr, ssim = values.get((row, name, "psnr")), values.get((row, name, "ssim"))
            cells.append("" if psnr is None or ssim is None else f"{psnr:.2f} / {ssim:.4f}")
        for name in others:
            own = not record.network.startswith("float ")
            found = other.get((name, str(record.depth or "")), []) if own else []
            cells.append(" / ".join(value for value in found if value))
        table.append(f"| {row} | {' | '.join(cells)} |")
    return table


def speed_line(name: str) -> list[str]:
    """A line with the medians of `python -m benchmarks.bench_zoo` for this network; empty where it
    was not timed."""
    if not SPEED.is_file():
        return []
    with SPEED.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["network"] == name]
    if not rows:
        return []
    times = ", ".join(f"{float(row['median_ms']):.0f} ms at depth {row['depth']}" for row in rows)
    return [
        "",
        f"{rows[0]['picture']} on the {rows[0]['engine']} engine: {times} (medians, {rows[0]['machine']}).",
    ]


def with_measured(card: str, part: str, name: str) -> str:
    """The card with its measured part replaced.

    Raises:
        InputError: the card lacks one of the marks.
    """
    head, begin, rest = card.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{name}.md: no lines '{BEGIN}' and '{END}'; add them where the tables belong")
    return f"{head}{BEGIN}\n\n{part}\n\n{END}{tail}"


def _key(record: Record) -> tuple[str, str, str]:
    return record.set, record.row, record.metric


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of a network in quantsr/zoo")
    parser.add_argument("results", nargs="*", type=Path, help="results.json of test runs")
    args = parser.parse_args()
    packed, card, kept = (ZOO / f"{args.name}.{suffix}" for suffix in ("safetensors", "md", "json"))
    try:
        for file in (packed, card, *(args.results or [kept])):
            if not file.is_file():
                raise InputError(f"{file}: no such file; see --help")
        if args.results:
            new = {_key(record): record for file in args.results for record in read_results(file)}
            old = read_results(kept) if kept.is_file() else []
            floats = {_key(record): record for record in old if record.network.startswith("float ")}
            write_records({**new, **floats, **new}.values(), kept)  # in the order of the new ones
        text = with_measured(
            card.read_text(encoding="utf-8"), measured(packed, read_results(kept)), args.name
        )
        card.write_text(text, encoding="utf-8")
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
