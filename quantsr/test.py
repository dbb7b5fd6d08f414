"""``python -m quantsr.test``, the form of BasicSR's command, is the same as ``quantsr test``."""

import sys

from quantsr.cli import main

if __name__ == "__main__":
    sys.exit(main(["test", *sys.argv[1:]]))
