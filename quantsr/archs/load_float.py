"""Starting a quantized network from a float one, or from one with fewer blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from quantsr.quant.layers import quantized_layers

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
    """Copy the tensors of ``state_dict`` whose name and shape match a parameter of ``net``.

    Only names that start with one of ``prefixes`` are copied.

    Raises:
        ValueError: if none does.
    """
    own = dict(net.named_parameters())
    copied, unmatched = [], []
    for key, value in state_dict.items():
        name = key
        if key not in own:
            names = (new + key[len(old) :] for old, new in _MSRRESNET.items() if key.startswith(old))
            name = next(names, key)
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


def take_quantizers(net: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the quantizer state of a calibrated network of the same bits to ``net``.

    Returns:
        The other tensors of ``state_dict``: all of them, if it is a float network's.

    Raises:
        ValueError: its quantizers are of another kind.
    """
    rest = dict(state_dict)
    for name, layer in quantized_layers(net).items():
        quantizers = {"weight_quantizer": layer.weight_quantizer, "input_quantizer": layer.input_quantizer}
        for kind, quantizer in quantizers.items():
            prefix = f"{name}.{kind}."
            own = {key.removeprefix(prefix): rest.pop(key) for key in state_dict if key.startswith(prefix)}
            if own and quantizer is not None:
                try:
                    quantizer.load_state_dict(own)
                except RuntimeError as error:
                    raise ValueError(f"the quantizers of {name} differ from this network's") from error
    return rest


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
