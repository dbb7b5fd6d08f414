"""``python -m quantsr.test``, as BasicSR's users start it, is ``quantsr test``."""

import sys

from quantsr.cli import main

if __name__ == "__main__":
    sys.exit(main(["test", *sys.argv[1:]]))
