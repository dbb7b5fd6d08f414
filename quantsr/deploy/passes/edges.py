"""Whether a layer's codes depend on how float32 rounds. Imports no torch."""

from __future__ import annotations

import numpy as np

from quantsr.deploy.folded import FoldedConv

_ROUNDINGS = 2.0**-21  # relative: eight times what float32 rounds once


def clear_of_edges(conv: FoldedConv) -> bool:
    """Whether every possible sum lies so far from the edge between two codes that neither fused
    operations nor another rule for halves, nor a reciprocal for the multiplier, change a code."""
    assert conv.codes_out is not None
    if not conv.integer or (conv.multiplier <= 0).any():
        return False
    edges = np.arange(conv.codes_out[0], conv.codes_out[1]) + 0.5  # (K,)
    multiplier, bias = (part.astype(np.float64)[:, None] for part in (conv.multiplier, conv.bias))
    nearest = np.rint((edges - bias) / multiplier)  # (O, K) sums
    room = np.abs(nearest * multiplier + bias - edges)
    clear = room > _ROUNDINGS * (np.abs(bias) + np.abs(edges) + multiplier)
    reached = np.abs(nearest) <= conv.sum_bound + 1
    return bool((clear | ~reached).all())
