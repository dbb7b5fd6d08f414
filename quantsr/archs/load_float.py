"""Starting a quantized network from a float one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

FloatStart = Literal["all", "head_tail", "deepen"]
"""What is taken of a float network: see the option ``path.fp_init``."""

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


def spread_blocks(state_dict: Mapping[str, Tensor], num_block: int) -> tuple[dict[str, Tensor], list[int]]:
    """The blocks of a network, ``body.0`` and so on, moved apart evenly to be part of a deeper one.

    Args:
        state_dict: of a network with at most ``num_block`` blocks.
        num_block: blocks of the deeper network.

    Returns:
        The tensors under their new names, and the numbers of the blocks that have none.

    Raises:
        ValueError: no block is in it, or more than ``num_block``.
    """
    block = re.compile(r"body\.(\d+)\.")
    numbers = {int(found[1]) for key in state_dict if (found := block.match(key))}
    if not numbers or len(numbers) > num_block:
        raise ValueError(f"it has {len(numbers)} blocks, which cannot be deepened to {num_block}")
    places = {old: i * num_block // len(numbers) for i, old in enumerate(sorted(numbers))}
    moved = {
        block.sub(lambda found: f"body.{places[int(found[1])]}.", key, count=1): value
        for key, value in state_dict.items()
    }
    return moved, sorted(set(range(num_block)) - set(places.values()))
