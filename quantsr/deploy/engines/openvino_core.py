"""The one OpenVINO core of the process."""

from __future__ import annotations

from functools import cache

import openvino


@cache
def core() -> openvino.Core:
    """The same core at every call, alive until the process ends.

    On processors with AMX, every core that loads the CPU plugin gives the thread a new alternate
    signal stack, and takes it away when it dies. Cores that die in another order than the reverse
    leave a stack behind that is no longer there, and the next signal (Ctrl-C, the end of a child
    process) is a segmentation fault. One core that lives on has no order.
    """
    return openvino.Core()
