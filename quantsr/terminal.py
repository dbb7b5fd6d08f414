"""Standard streams on which writing may fail: limited encodings, pipes closed by their reader,
closed descriptors."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any


def prepare_streams() -> None:
    """Make the streams write characters outside their encoding as escapes, and open closed
    descriptors on the null device.

    Else a file opened later would get the number of a closed descriptor, and libraries would print
    into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    # Python sets a stream to None where its descriptor was closed at the start.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: Any) -> None:
    """Send the content of the stream's buffer, and everything written to it later, to the null
    device."""
    # streams without a descriptor, in notebooks and tests, raise here
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def flush_output() -> None:
    """Flush standard output; where that fails, discard it, since Python's own flush at exit would
    fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)


def show(line: str) -> None:
    """Print one line to standard output, above any progress bar. A failure is ignored."""
    from tqdm import tqdm

    if sys.stdout is None:  # closed before the start
        return
    try:
        tqdm.write(line)
        sys.stdout.flush()
    except (OSError, ValueError):
        discard(sys.stdout)


def has_terminal() -> bool:
    """Whether standard error is a terminal, which can show progress bars."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False
