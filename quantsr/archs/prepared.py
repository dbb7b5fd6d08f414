"""Float networks of any origin as quantization takes them."""

from __future__ import annotations

from torch import nn

from quantsr.archs.gray import read_colours, reads_gray
from quantsr.archs.merging import can_merge, copied, merge


def prepare(net: nn.Module) -> nn.Module:
    """``net``, changed in place, from RGB to RGB (`quantsr.archs.gray`) and with its layers merged
    (`quantsr.archs.merging`).

    Raises:
        InputError: it reads neither gray nor RGB pictures, or merging changes what it gives.
    """
    return merge(read_colours(net))


def changes(net: nn.Module) -> bool:
    """Whether `prepare` would change the network."""
    return can_merge(net) or reads_gray(net)


def prepared_copy(net: nn.Module) -> nn.Module:
    """`prepare` of a copy; ``net`` itself where there is nothing to change.

    Raises:
        InputError: see `prepare`.
    """
    return prepare(copied(net)) if changes(net) else read_colours(net)
