"""``quantsr check``: every problem of an option file, or a summary of the run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from quantsr.analysis.preflight import problems_of
from quantsr.commands.arguments import add_option_arguments
from quantsr.config import networks, registries
from quantsr.config.binding import with_defaults
from quantsr.config.compare import load_comparison
from quantsr.config.comparison import Comparison
from quantsr.config.folders import count_pictures, is_left_out
from quantsr.config.load import load_options, read_options
from quantsr.config.schema import Options
from quantsr.errors import OptionsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``quantsr check``."""
    add_option_arguments(parser)
    parser.add_argument(
        "--for",
        dest="purpose",
        choices=("train", "test"),
        help="check for this command; by default train where the file has a section 'train', else test",
    )
    parser.add_argument(
        "--no-paths", action="store_true", help="do not check the folders and files that it names"
    )


def run(args: argparse.Namespace) -> int:
    """Print the summary and return 0.

    Raises:
        OptionsError: with every problem found; the command line prints them and exits with 2.
    """
    read = read_options(args.opt)
    given: dict[str, Any] = {"check_paths": not args.no_paths, "read": read}
    if "variants" in read[0] and args.purpose is None:
        return _print_comparison(args.opt, load_comparison(args.opt, args.set, args.force_yml, **given))
    is_train = args.purpose == "train" if args.purpose else "train" in read[0]
    options = load_options(args.opt, args.set, args.force_yml, is_train=is_train, **given)
    if not args.no_paths and (problems := problems_of(options, is_train)):
        raise OptionsError([f"{args.opt}: {problem}" for problem in problems])
    sys.stdout.write(f"{args.opt}: no problems\n")
    for label, text in summary(options, is_train):
        sys.stdout.write(f"  {label:<10} {text}\n")
    return 0


def _print_comparison(path: str, comparison: Comparison) -> int:
    """Print the summary of a comparison file and return 0."""
    options = comparison.options
    iterations = sum(run.training.train.total_iter for run in comparison.runs if run.training.train)
    evaluation = comparison.runs[0].evaluation
    sys.stdout.write(f"{path}: no problems\n")
    for label, text in (
        ("comparison", f"{options.name}, in {options.folder}"),
        ("variants", ", ".join(options.variants)),
        ("seeds", ", ".join(map(str, options.seeds))),
        ("reference", options.difference_to),
        ("training", f"{len(comparison.runs)} runs, {iterations} iterations together"),
        ("test sets", ", ".join(dataset.name for dataset in evaluation.evaluation_sets().values())),
    ):
        sys.stdout.write(f"  {label:<10} {text}\n")
    return 0


def summary(options: Options, is_train: bool) -> Iterator[tuple[str, str]]:
    """A summary of the run with these options, as (label, text) lines."""
    arch = options.network_g
    bound = with_defaults(registries.networks()[arch.type], arch.kwargs)
    yield "run", f"{options.name} (options {options.config_hash()}, seed {options.manual_seed})"
    size = f", {bound['num_block']} blocks" if "num_block" in bound else ""
    size += f" of {bound['num_feat']} channels" if "num_feat" in bound else ""
    yield "network", f"{arch.type} x{options.scale}{size}"
    if "nbits_w" in bound and "nbits_a" in bound:
        quantizer = f" ({bound['quantizer']})" if "quantizer" in bound else ""
        yield "bits", f"{bound['nbits_w']} for weights, {bound['nbits_a']} for activations{quantizer}"
    depths = networks.network_depths(bound)
    if depths is not None:
        yield "depths", ", ".join(str(depth) for depth in depths)
    if options.slimmable_version is not None and not is_train:
        yield (
            "tested",
            f"sub-network {options.slimmable_version} of these, cut as QuantSR's released code does",
        )
    if options.network_teacher is not None and is_train:
        yield "teacher", options.network_teacher.type
    train = options.train if is_train else None
    if train is not None:
        stages = f"{train.stage1_iter} at full depth, then {train.stage2_iter} at all depths"
        if train.final_depth is not None:
            stages = f"blocks are removed until {train.final_depth} are left"
        yield "training", f"{train.total_iter} iterations: {stages}"
    sets = options.sets("train", "val") if is_train else options.evaluation_sets()
    for key, dataset in sets.items():
        count = count_pictures(dataset)
        pictures = "not looked for" if count is None else "1 picture" if count == 1 else f"{count} pictures"
        if is_left_out(dataset):
            pictures = "not there, left out"
        yield key, f"{dataset.name}, {pictures} ({dataset.type})"
    if options.path.pretrain_network_g is not None:
        yield "checkpoint", options.path.pretrain_network_g
