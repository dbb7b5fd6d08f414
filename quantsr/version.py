"""The version of this package, and the commit it was made from."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]


@cache
def version() -> str:
    """The version that git's tags gave when the package was built or installed, such as "0.2.0";
    "0+unknown" in a checkout that was never installed."""
    try:
        return str(import_module("quantsr._version").__version__)  # written by setuptools-scm
    except ImportError:
        pass
    from importlib import metadata  # loads slowly

    try:
        return metadata.version("quantsr")
    except metadata.PackageNotFoundError:
        return "0+unknown"


@cache
def commit() -> str | None:
    """The abbreviated hash of the checkout's present commit, else of that which the package was
    built from; None where neither is known."""
    if (_CHECKOUT / ".git").exists():
        try:
            words = ["git", "-C", str(_CHECKOUT), "rev-parse", "--short=9", "HEAD"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True)
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass  # no git, or not its user's checkout
    try:
        built_from = import_module("quantsr._version").__commit_id__
    except (ImportError, AttributeError):
        return None
    return None if built_from is None else str(built_from).removeprefix("g")
