"""Starting a quantized network from a float one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# BasicSR's MSRResNet names the tail differently from its EDSR.
_MSRRESNET = {"upconv1.": "upsample.0.", "upconv2.": "upsample.2."}


@dataclass(frozen=True)
class LoadReport:
    """What a start from a float network used.

    Attributes:
        copied: names of the tensors taken over.
        unmatched: names in the float network with no tensor of that name and shape here.
    """

    copied: tuple[str, ...]
    unmatched: tuple[str, ...]

    def __str__(self) -> str:
        tail = f"; not used: {', '.join(self.unmatched)}" if self.unmatched else ""
        return f"{len(self.copied)} tensors copied from the float network{tail}"


@torch.no_grad()
def copy_float(
    net: nn.Module, state_dict: Mapping[str, Tensor], prefixes: Sequence[str] = ("",)
) -> LoadReport:
    """Copy every tensor of ``state_dict`` whose name, with one of ``prefixes``, and shape match a parameter of ``net``.

    Raises:
        ValueError: if none does.
    """
    own = dict(net.named_parameters())
    copied, unmatched = [], []
    for key, value in state_dict.items():
        name = next((new + key[len(old) :] for old, new in _MSRRESNET.items() if key.startswith(old)), key)
        if not name.startswith(tuple(prefixes)):
            continue
        if name in own and own[name].shape == value.shape:
            own[name].copy_(value)
            copied.append(name)
        else:
            unmatched.append(key)
    if not copied:
        raise ValueError("the float network has no tensor of a name and shape in common with this one")
    return LoadReport(tuple(copied), tuple(unmatched))
