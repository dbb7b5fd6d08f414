"""``quantsr quantize``: a trained float network as a packed file of few bits."""

from __future__ import annotations

import argparse
import functools
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from quantsr import terminal, timing
from quantsr.commands.arguments import above_zero, add_float_network_arguments, import_words
from quantsr.commands.export import provenance
from quantsr.data.mini import mini_folder
from quantsr.deploy import parity
from quantsr.deploy.convert import convert
from quantsr.deploy.engines import select
from quantsr.deploy.export import calibration_pictures, evaluation_set, write
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.post_training import LayerBits, quantize
from quantsr.deploy.post_training_methods import ITERATIONS, METHODS, QUANTIZERS, Method
from quantsr.engine.evaluate import network_upscaler
from quantsr.engine.finetune import TRAINED_SCALES, finetune
from quantsr.errors import InputError
from quantsr.loading import float_network, scale_of
from quantsr.paths import expanded
from quantsr.ranges import FLOAT_BITS, Bits
from quantsr.trained_files.names import PACKED

_TIMED_SIZE, _TIMED_RUNS = (180, 320), 5
_FOLDERS = Path("experiments")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``quantsr quantize``."""
    add_float_network_arguments(parser)
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="packed file to write, .safetensors"
    )
    parser.add_argument(
        "--bits",
        type=_bits,
        default="4",
        metavar="N|WnAm",
        help="of weights and activations of the body, 2 to 8 (default: %(default)s)",
    )
    parser.add_argument(
        "--rule",
        type=_rule,
        action="append",
        default=[],
        metavar="PATTERN=BITS",
        help="bits of the layers whose names match, float to leave them; the first rule that matches decides",
    )
    parser.add_argument(
        "--depths",
        type=int,
        nargs="+",
        metavar="N",
        help="sub-networks of so many residual units to have in the file, that of all among them, such as 16 8 4",
    )
    parser.add_argument(
        "--trunk",
        metavar="NAME",
        help="container of these units, such as body, or a pattern of their names, where they are not found",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="fit",
        help="fit: each layer in turn, with equalization; minmax, percentile, mse: calibration; 2dquant: bounds "
        "searched, then trained against the float network (default: %(default)s)",
    )
    parser.add_argument(
        "--iterations",
        type=_count,
        default=ITERATIONS,
        metavar="N",
        help="of 2dquant's training, 0 for the search alone (default: %(default)s; the paper: 3000)",
    )
    parser.add_argument(
        "--rectifier",
        type=_count,
        default=0,
        metavar="RANK",
        help="2dquant: train a matrix of this rank for each weight, which is added to it (SPR2Q: 8)",
    )
    parser.add_argument(
        "--mixed",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="give one bit more to this share of the layers, one bit less to as many, by gradients (0 to 0.5)",
    )
    parser.add_argument(
        "--attention",
        type=_one_number,
        metavar="N",
        help="bits of both operands of products of activations (default: float)",
    )
    parser.add_argument("--quantizer", metavar="NAME", help=f"of fit (default: {QUANTIZERS['fit']})")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="pictures of the kind that the network makes; no others are needed (default: datasets/mini)",
    )
    parser.add_argument(
        "--minutes",
        type=above_zero("minutes"),
        metavar="N",
        help="train that long to give the float network's pictures; default: no training",
    )
    parser.add_argument(
        "--gt",
        metavar="DIR",
        help="ground truth for the table, or a folder with HR and LR_bicubic/X<scale> (default: three pictures of scikit-image)",
    )
    parser.add_argument("--no-bias-correction", action="store_true", help="leave the biases as they are")


def _bits(text: str) -> Bits:
    try:
        return Bits.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _one_number(text: str) -> int:
    bits = _bits(text)
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bits")
    return bits.activations


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 0.5:
        raise argparse.ArgumentTypeError(f"{text!r} is no share from 0 to 0.5")
    return share


def _rule(text: str) -> LayerBits:
    pattern, equals, bits = text.rpartition("=")
    if not equals or not pattern:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=BITS")
    return LayerBits(pattern, _bits(bits))


def run(args: argparse.Namespace) -> int:
    """Quantize, write the file, and print sizes, quality and times.

    Raises:
        InputError: the network cannot be read, quantized or lowered.
        StopError, WorkError: see `quantsr.engine.finetune.finetune`.
    """
    output = expanded(args.output)
    if output.suffix != PACKED:
        raise InputError(f"{output}: is no name of a packed file; name one that ends in {PACKED}")
    original, content, source = float_network(args.model, args.opt)
    scale = scale_of(original)
    if args.minutes is not None and scale not in TRAINED_SCALES:
        raise InputError(
            f"--minutes: networks of x2, x3 and x4 are trained, and this one is of x{scale}; omit it"
        )
    method = Method(
        args.method,
        quantizer=args.quantizer or (QUANTIZERS["fit"] if args.method == "fit" else None),
        correct_bias=not args.no_bias_correction,
        iterations=args.iterations,
        rectifier=args.rectifier,
        mixed=args.mixed,
    )
    pictures = calibration_pictures(args.data, scale)
    gt = evaluation_set(args.gt, scale)
    with tqdm(desc=method.name, leave=False, disable=not terminal.has_terminal()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        network = quantize(
            original,
            args.bits,
            pictures,
            rules=args.rule,
            method=method,
            depths=args.depths,
            trunk=args.trunk,
            attention=args.attention,
            progress=progress,
        )
    facts: dict[str, Any] = {"quantized": "after training"}
    if method.name != "fit" or method.mixed:
        facts["method"] = " ".join(_method_words(args))
    if args.minutes is not None:
        facts["quantized"] = f"{args.minutes:g} minutes of distillation"
        network = finetune(
            network,
            original,
            expanded(args.data).absolute() if args.data else mini_folder(),
            (_FOLDERS / f"quantize_{output.stem}").absolute(),
            scale=scale,
            seconds=60 * args.minutes,
            resume_command=_command(args),
        )
    facts |= provenance(content, source, args.data, 8)
    model = convert(network, head_tail_bits=8, calib=pictures, provenance=facts)
    (file,), model = write(model, output, depth=model.header.depths[0])
    print(f"{output}: {_layers(model)}")
    rows = {}
    for depth in model.header.depths:
        engines = parity.engines_at_hand(model, depth)
        rows[depth] = parity.parity(model, [gt], depth=depth, network=original, engines=engines)
    print(_summary(rows, model, original, file, scale))
    for depth, found in rows.items():
        print()
        print(parity.table(found, f"Depth {depth}" if len(rows) > 1 else "", network="float"))
    return 0


def _command(args: argparse.Namespace) -> str:
    """The command line that goes on where this one was stopped."""
    words = [
        "quantsr",
        "quantize",
        args.model,
        "-o",
        args.output,
        *import_words(args),
        "--bits",
        str(args.bits),
    ]
    for rule in args.rule:
        words += ["--rule", f"{rule.pattern}={rule.bits}"]
    words += _method_words(args)
    words += ["--depths", *map(str, args.depths)] if args.depths else []
    words += ["--minutes", f"{args.minutes:g}"]
    given = {
        "-opt": args.opt,
        "--trunk": args.trunk,
        "--attention": None if args.attention is None else str(args.attention),
        "--quantizer": args.quantizer,
        "--data": args.data,
        "--gt": args.gt,
    }
    for name, value in given.items():
        words += [name, value] if value is not None else []
    return shlex.join([*words, *(["--no-bias-correction"] if args.no_bias_correction else [])])


def _method_words(args: argparse.Namespace) -> list[str]:
    """The arguments of the method that are not the usual ones."""
    usual = {"method": "fit", "iterations": ITERATIONS, "rectifier": 0, "mixed": 0.0}
    words = []
    for name, value in usual.items():
        if (given := getattr(args, name)) != value:
            words += [f"--{name}", f"{given:g}" if isinstance(given, float) else str(given)]
    return words


def _layers(model: PackedModel) -> str:
    """How many layers have which bits."""
    counts: dict[str, int] = {}
    for layer in model.layers.values():
        words = [
            f"{kind}{bits}" for kind, bits in (("W", layer.bits_w), ("A", layer.bits_a)) if bits < FLOAT_BITS
        ]
        counts["".join(words) or "float"] = counts.get("".join(words) or "float", 0) + 1
    return ", ".join(f"{count} layers {bits}" for bits, count in counts.items())


def _summary(
    rows: Mapping[int, list[parity.ParityRow]],
    model: PackedModel,
    original: nn.Module,
    file: Path,
    scale: int,
) -> str:
    """Size, quality and time of both networks, of the packed one at each depth, as a Markdown
    table."""
    by_engine = {depth: {row.engine: row for row in found} for depth, found in rows.items()}
    float_row = by_engine[model.header.depths[0]][parity.NETWORK]
    values = sum(parameter.numel() for parameter in original.parameters())
    times = _times(model, original, scale)
    height, width = _TIMED_SIZE
    lines = [
        f"| | bytes | PSNR (Y), {float_row.set} | {width}x{height} |",
        "| --- | --- | --- | --- |",
        f"| float32 | {4 * values:,} | {float_row.psnr:.2f} dB | {times[None]} |",
    ]
    between = []
    for depth, found in by_engine.items():
        row = found[parity.INTEGER]
        assert row.to_network is not None
        name, where = file.name, ""
        if len(rows) > 1:
            name, where = f"{name}, depth {depth}", f" at depth {depth}"
        lines.append(f"| {name} | {file.stat().st_size:,} | {row.psnr:.2f} dB | {times[depth]} |")
        between.append(f"{row.to_network.psnr:.2f} dB{where}")
    return "\n".join(
        [
            *lines,
            "",
            f"{4 * values / file.stat().st_size:.1f} times smaller; {', '.join(between)} between the float network's pictures "
            f"and the file's. Times: medians of {_TIMED_RUNS} on {timing.machine()}.",
        ]
    )


def _times(model: PackedModel, original: nn.Module, scale: int) -> Mapping[int | None, str]:
    """Milliseconds and engine of the float network (None) and of the packed one at each depth,
    measured in turn."""
    image = np.random.default_rng(0).integers(0, 256, (*_TIMED_SIZE, 3), np.uint8)
    engines = {depth: select.create("auto", model, depth) for depth in model.header.depths}
    float_net = network_upscaler(original.eval(), (None,), scale=scale)
    runs: dict[str, Callable[[], Any]] = {"PyTorch": lambda: float_net(image)}
    runs |= {f"depth {n}": functools.partial(engine.run, image[None]) for n, engine in engines.items()}
    with torch.inference_mode():
        float_time, *times = timing.interleaved(runs, _TIMED_RUNS)
    found: dict[int | None, str] = {None: f"{float_time.median:.1f} ms, PyTorch"}
    for (depth, engine), time in zip(engines.items(), times, strict=True):
        found[depth] = f"{time.median:.1f} ms, {engine.name}"
    return found
