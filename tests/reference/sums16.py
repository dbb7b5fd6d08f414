"""What AVX2 computes of bytes whose products are added in 16 bits, one lane after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def saturated(value: int) -> int:
    return max(-(2**15), min(2**15 - 1, value))


def wrapped(value: int) -> int:
    """Modulo 2^16, from -2^15 on."""
    return (value + 2**15) % 2**16 - 2**15


def sums(
    inputs: NDArray[np.uint8], memory: NDArray[np.int8], outputs: int, steps: int, factor: int
) -> list[int]:
    """(P,) sums of bytes (I,) times a part's weights in the kernels' order (`sums16.laid_out`):
    groups of so many steps of 4 inputs, each behind what its two lanes start from."""
    total = [0] * outputs
    at = 0
    for first in range(0, len(inputs) // 4, steps):
        start = memory[at : at + 4 * outputs].view(np.int16).reshape(outputs, 2)
        lanes = [[int(lane) for lane in of_output] for of_output in start]
        at += 4 * outputs
        for step in range(first, min(first + steps, len(inputs) // 4)):
            weight = memory[at : at + 4 * outputs].reshape(outputs, 2, 2)
            at += 4 * outputs
            for output in range(outputs):
                for lane in range(2):
                    a = inputs[4 * step + 2 * lane : 4 * step + 2 * lane + 2]
                    products = [int(x) * int(w) for x, w in zip(a, weight[output, lane], strict=True)]
                    lanes[output][lane] = wrapped(lanes[output][lane] + saturated(sum(products)))
        for output in range(outputs):
            total[output] += factor * sum(lanes[output])
    assert at == len(memory)
    return total
