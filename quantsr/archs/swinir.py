"""BasicSR's SwinIR for pictures of any size, and conversion of its state dicts to QuantSR-T."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from quantsr import basicsr_compat
from quantsr.archs.windows import reflect_pad
from quantsr.trained_files.foreign import is_derived


class SwinIR(basicsr_compat.SwinIR):
    """BasicSR's SwinIR, with the padding and cropping of BasicSR's ``SwinIRModel``.

    The engine builds it where an option file says ``SwinIR``; what is registered under that name is
    BasicSR's.
    """

    @property
    def window_size(self) -> int:
        """Side of a window in pixels."""
        return int(self.layers[0].residual_group.blocks[0].window_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] to (B, 3, r*h, r*w), any h, w >= 1."""
        height, width = x.shape[-2] * self.upscale, x.shape[-1] * self.upscale
        return super().forward(reflect_pad(x, self.window_size))[..., :height, :width]


def is_swinir(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of BasicSR's (and the official) SwinIR."""
    return any(".residual_group.blocks." in key for key in state_dict)


def convert_swinir(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of SwinIR under the names of :class:`quantsr.archs.quantsr_t_arch.QuantSR_T`.

    Buffers that depend on window and picture size are left out. A state dict of QuantSR_T is
    returned unchanged.
    """
    converted = {}
    for key, value in state_dict.items():
        if is_derived(key):
            continue
        name = re.sub(r"^(layers\.\d+)\.residual_group\.blocks\.", r"\1.blocks.", key)
        converted[re.sub(r"^patch_embed\.norm\.", "norm_first.", name)] = value
    return converted
