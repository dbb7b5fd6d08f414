"""Averages two checkpoints of one training, such as those before and after its last part.

    python scripts/average_checkpoints.py BEFORE.pth AFTER.pth --weight 0.7 -o BETWEEN.pth

Where a part of a training improves some depths and worsens others, an average can keep most of the
quality of both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from quantsr.errors import InputError, WorkError
from quantsr.trained_files import checkpoint


def average(before: Path, after: Path, weight: float) -> dict[str, object]:
    """A network file with the parameters ``(1 - weight) * before + weight * after``, those of the
    moving averages where the files have them; other entries are those of ``after``.

    Raises:
        InputError: the files are of different networks or rankings of blocks.
    """
    files = [checkpoint.load(path) for path in (before, after)]
    first, last = (
        checkpoint.parameters(file, path) for file, path in zip(files, (before, after), strict=True)
    )
    ours = [checkpoint.metadata(file, path) or {} for file, path in zip(files, (before, after), strict=True)]
    if {name: value.shape for name, value in first.items()} != {
        name: value.shape for name, value in last.items()
    }:
        raise InputError(
            f"{before}: its parameters are not those of {after}; give two checkpoints of one network"
        )
    if any(ours[0].get(key) != ours[1].get(key) for key in ("arch", "ranking", "depths")):
        raise InputError(
            f"{before}: its blocks are not ranked as in {after}; give two checkpoints of one training's stage 2"
        )
    params = {
        name: (1 - weight) * first[name] + weight * value if value.is_floating_point() else value
        for name, value in last.items()
    }
    return {"params": params, "quantsr": ours[1]} if ours[1] else {"params": params}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, metavar="BEFORE")
    parser.add_argument("after", type=Path, metavar="AFTER")
    parser.add_argument(
        "--weight", type=float, default=0.5, metavar="W", help="of AFTER, 0 to 1 (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    args = parser.parse_args(arguments)
    if not 0 <= args.weight <= 1:
        parser.error(f"--weight: must be in 0..1, got {args.weight}")
    try:
        checkpoint.save(args.output, average(args.before, args.after, args.weight))
    except (InputError, WorkError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
