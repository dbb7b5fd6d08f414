"""``quantsr targets``: a network's outputs for a training set, to learn from
(`dataroot_soft`)."""

from __future__ import annotations

import argparse

import torch

from quantsr.commands.arguments import add_float_network_arguments
from quantsr.engine.targets import write_targets
from quantsr.loading import float_network, scale_of
from quantsr.paths import expanded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``quantsr targets``."""
    add_float_network_arguments(parser)
    parser.add_argument("--data", required=True, metavar="DIR", help="pictures of the training set")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder to write to; pictures there are kept"
    )
    parser.add_argument(
        "--ensemble", action="store_true", help="the mean over eight flips and rotations: 8 times slower"
    )


def run(args: argparse.Namespace) -> int:
    """Raises InputError for a network or pictures that cannot be read, WorkError where writing
    fails."""
    network, _, _ = float_network(args.model, args.opt)
    scale = scale_of(network)
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, out = expanded(args.data), expanded(args.out)
    count = write_targets(network, scale, data, out, ensemble=args.ensemble, device=device)
    print(f"{out}: {count} pictures written")
    return 0
