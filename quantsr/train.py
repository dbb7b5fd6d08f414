"""``python -m quantsr.train``, the form of BasicSR's command, is the same as ``quantsr train``."""

import sys

from quantsr.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
