"""Standard streams that cannot take what is said: another encoding, a reader that has gone, a
closed descriptor."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any


def prepare_streams() -> None:
    """Characters that the streams' encoding lacks are written as escapes, and closed descriptors
    become the null device.

    A file opened later would take the number of a closed descriptor, and receive what libraries
    print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    # Python sets a stream to None where its descriptor was closed at the start.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: Any) -> None:
    """What is written to this stream from now on, and what waits in its buffer, goes to the null
    device."""
    # a stream without a descriptor, as in notebooks and tests
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def flush_output() -> None:
    """Write what waits for standard output; where that fails, drop it: Python would fail again at
    the end."""
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)


def show(line: str) -> None:
    """Print one line to standard output, above any progress bar. Output that fails never ends the
    work."""
    from tqdm import tqdm

    if sys.stdout is None:  # closed before the start
        return
    try:
        tqdm.write(line)
        sys.stdout.flush()
    except (OSError, ValueError):
        discard(sys.stdout)


def has_terminal() -> bool:
    """Whether progress bars can be seen, on standard error."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False
