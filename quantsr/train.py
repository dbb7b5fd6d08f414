"""``python -m quantsr.train``, as BasicSR's users start it, is ``quantsr train``."""

import sys

from quantsr.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
