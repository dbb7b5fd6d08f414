"""Makes datasets/mini from a folder with the budgie_* photographs: ``python scripts/make_mini.py
FOLDER``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quantsr.data.mini import make_mini
from quantsr.errors import InputError, WorkError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder with the budgie_* photographs")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(__file__).resolve().parents[1] / "datasets/mini"
    )
    args = parser.parse_args()
    try:
        total = make_mini(args.source, args.output)
    except (InputError, WorkError) as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, InputError) else 1
    sys.stdout.write(f"{args.output}: {total / 1e6:.2f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
