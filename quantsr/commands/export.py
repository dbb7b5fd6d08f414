"""``quantsr export``: a trained network as a packed file, an ONNX graph, an OpenVINO IR or ncnn's
files, with a parity table."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from quantsr import __version__
from quantsr.archs import contract
from quantsr.commands.arguments import add_import_argument
from quantsr.config import load_options, registries
from quantsr.deploy import parity
from quantsr.deploy.convert import convert
from quantsr.deploy.export import SUFFIXES, calibration_pictures, evaluation_set, exported_engine, write
from quantsr.deploy.module import to_module
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.engine import build
from quantsr.errors import InputError
from quantsr.loading import from_checkpoint
from quantsr.paths import expanded
from quantsr.trained_files import checkpoint
from quantsr.trained_files.names import PACKED, resolve

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``quantsr export``."""
    parser.add_argument(
        "-m",
        "--model",
        required=True,
        metavar="CKPT",
        help="checkpoint, packed network, or name of a run or of a network that comes with quantsr",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="file ending in .safetensors, .onnx, .xml or .param (ncnn)",
    )
    parser.add_argument(
        "-opt",
        "--opt",
        metavar="FILE",
        help="option file, for checkpoints that do not say how their network is built",
    )
    add_import_argument(parser)
    parser.add_argument(
        "--depth",
        type=int,
        metavar="N",
        help="depth to keep (default: all; smaller depths stay in a packed file)",
    )
    parser.add_argument(
        "--head-tail-bits",
        type=int,
        choices=(8, 16, 32),
        help="bits of the weights of the convolutions that training left in float (default: 8, with 16-bit inputs calibrated on pictures)",
    )
    parser.add_argument(
        "--first-bits",
        type=int,
        choices=(8, 16, 32),
        help="bits of the weight of the convolution that reads the picture (default: 32; 8 lets more pixels differ)",
    )
    parser.add_argument(
        "--calib", metavar="DIR", help="pictures to calibrate the 16-bit inputs on (default: datasets/mini)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="pictures for the parity table (default: three of scikit-image)"
    )
    parser.add_argument(
        "--int4", action="store_true", help="ONNX: weights of up to 4 bits as int4 tensors (opset 21)"
    )
    parser.add_argument(
        "--qdq",
        action="store_true",
        help="ONNX: symmetric int8 with explicit Q/DQ, for TensorRT (docs/how-to/tensorrt.md)",
    )
    parser.add_argument(
        "--fp16", action="store_true", help="ncnn: float convolutions on which no code depends as float16"
    )
    parser.add_argument("--no-parity", action="store_true", help="do not compare the engines")


def run(args: argparse.Namespace) -> int:
    """Export and print size and parity. Raises InputError for what cannot be exported."""
    output = expanded(args.output)
    if output.suffix not in SUFFIXES:
        raise InputError(f"{output}: cannot be exported to; name a file ending in {', '.join(SUFFIXES)}")
    if args.int4 and output.suffix != ".onnx":
        raise InputError("--int4: only ONNX files have int4 tensors; packed files are smaller still")
    if args.qdq and (args.int4 or output.suffix != ".onnx"):
        raise InputError("--qdq: goes with ONNX files (.onnx) and without --int4")
    if args.fp16 and output.suffix != ".param":
        raise InputError("--fp16: only ncnn's files (.param) have float16 weights")
    model, network = read(args)
    depth = model.depth_or_default(args.depth)
    written, exported = write(model, output, depth=depth, int4=args.int4, fp16=args.fp16, qdq=args.qdq)
    print(
        f"{output}: {sum(path.stat().st_size for path in written):,} bytes, depth {depth}, scale x{model.header.scale}"
    )
    if args.no_parity:
        return 0
    sets = [evaluation_set(args.data, model.header.scale)]
    engines = [*parity.engines_at_hand(model, depth), *exported_engine(output, exported)]
    print(parity.table(parity.parity(model, sets, depth=depth, network=network, engines=engines)))
    return 0


def read(args: argparse.Namespace) -> tuple[PackedModel, nn.Module | None]:
    """The converted network of a checkpoint, run or packed file, and the torch module to compare it
    with (for a packed file the module of the file itself; None where its type is not
    registered)."""
    source = resolve(args.model)
    if source.suffix == PACKED:
        model = packing.load(source)
        if args.head_tail_bits not in (None, model.header.head_tail_bits):
            raise InputError(
                f"{source}: has a head and tail of {model.header.head_tail_bits} bits already; export from the checkpoint to change that"
            )
        for option, value in (("first-bits", args.first_bits), ("calib", args.calib), ("opt", args.opt)):
            if value is not None:
                raise InputError(
                    f"--{option}: {source} is converted already; leave it out, or export from the checkpoint"
                )
        if model.written is not None and model.header.arch.get("type") not in registries.networks():
            logger.info("parity leaves the network out: no Python file of it was named by --import")
            return model, None
        return model, to_module(model, source)
    content = checkpoint.load(source)
    network = read_network(content, source, args.opt)
    scale = contract.of(network).scale or 1
    bits: int = args.head_tail_bits or 8
    model = convert(
        network,
        head_tail_bits=bits,
        calib=calibration_pictures(args.calib, scale) if bits == 8 else [],
        first_bits=args.first_bits or 32,
        provenance=provenance(content, source, args.calib, bits),
    )
    return model, network


def read_network(content: Mapping[str, Any], source: Path, opt: str | None) -> nn.Module:
    """The network of a checkpoint, as the checkpoint describes it or, where one is given, an option
    file."""
    return from_checkpoint(content, source) if opt is None else _from_options(content, source, opt)


def _from_options(content: Mapping[str, Any], source: Path, opt: str) -> nn.Module:
    """The network of an option file with the parameters of a checkpoint, for checkpoints such as
    the released ones, which have no description of their network."""
    network = build.build_for_options(load_options(opt, is_train=False))
    build.load_content(network, content, str(source), None)
    build.require_steps(network, source)
    build.ensure_ranking(network, str(source))
    return network.eval()


def provenance(content: Mapping[str, Any], source: Path, calib: str | None, bits: int) -> dict[str, Any]:
    """What a packed file says of its origin: the checkpoint, its training, the pictures that 8 bits
    were calibrated on."""
    ours = checkpoint.metadata(content, source) or {}
    options = ours.get("options") or {}
    facts = {
        "quantsr": __version__,
        "checkpoint": source.name,
        "run": _text(options, "name"),
        "iteration": ours.get("iteration"),
        "trained_on": _text(options, "datasets", "train", "name"),
        "trained_with": ours.get("version"),
        "calibrated_on": (Path(calib).name if calib else "datasets/mini") if bits == 8 else None,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _text(options: Any, *keys: str) -> str | None:
    """The string under ``keys`` in nested dicts; None where there is none."""
    for key in keys:
        options = options.get(key) if isinstance(options, dict) else None
    return options if isinstance(options, str) else None
