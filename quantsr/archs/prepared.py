"""Float networks of any origin as quantization takes them."""

from __future__ import annotations

from torch import nn

from quantsr.archs.called import call_layers, may_call
from quantsr.archs.gray import read_colours, reads_gray
from quantsr.archs.merging import can_merge, copied, merge


def prepare(net: nn.Module) -> nn.Module:
    """``net``, changed in place, from RGB to RGB (`quantsr.archs.gray`) and with its layers merged
    (`quantsr.archs.merging`), which are called as modules (`quantsr.archs.called`).

    Raises:
        InputError: it reads neither gray nor RGB pictures, or merging changes what it gives.
    """
    return merge(call_layers(read_colours(net)))


def changes(net: nn.Module) -> bool:
    """Whether `prepare` would change the network."""
    return can_merge(net) or reads_gray(net) or may_call(net)


def prepared_copy(net: nn.Module) -> nn.Module:
    """`prepare` of a copy; ``net`` itself where there is nothing to change.

    Raises:
        InputError: see `prepare`.
    """
    return prepare(copied(net)) if changes(net) else read_colours(net)
