"""``python -m quantsr ...`` is the same as ``quantsr ...``."""

import sys

from quantsr.cli import main

if __name__ == "__main__":
    sys.exit(main())
