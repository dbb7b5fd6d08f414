"""BasicSR's names of SwinIR's parameters, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Functions of window size and picture size, which SwinIR keeps in its state dict.
_DERIVED = (".relative_position_index", ".attn_mask")


def is_swinir(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of BasicSR's (and the official) SwinIR."""
    return any(".residual_group.blocks." in key for key in state_dict)


def convert_swinir(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of SwinIR under the names of :class:`quantsr.archs.quantsr_t_arch.QuantSR_T`.

    Every parameter has its place there; the buffers that follow from window and picture size are left out. A dict that
    is ours already comes back as it is.
    """
    converted = {}
    for key, value in state_dict.items():
        if key.endswith(_DERIVED):
            continue
        name = re.sub(r"^(layers\.\d+)\.residual_group\.blocks\.", r"\1.blocks.", key)
        converted[re.sub(r"^patch_embed\.norm\.", "norm_first.", name)] = value
    return converted
