"""The released QuantSR code's names: its network's, and those in its checkpoints.

Facts from https://github.com/htqin/QuantSR (``basicsr/archs/ours_operator.py``,
``q_edsr_arch.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from quantsr.archs.quantsr_c_arch import QuantSR_C
from quantsr.basicsr_compat import ARCH_REGISTRY

# Longest first: the activation's names end like the weight's.
_SUFFIXES = {
    ".ActOurs.alpha": ".input_quantizer.step",
    ".ActOurs.init_state": ".input_quantizer.calibrated",
    ".ActOurs.signed": ".input_quantizer.signed",
    ".channel_threshold": ".input_quantizer.tau",
    ".alpha": ".weight_quantizer.step",
    ".init_state": ".weight_quantizer.calibrated",
    ".learnable_shortcut": ".shortcut",
}


RANKING = (
    *(31, 30, 29, 8, 27, 13, 28, 15, 7, 10, 18, 17, 19, 20, 22, 6),
    *(11, 16, 12, 23, 24, 25, 21, 14, 9, 26, 5, 4, 3, 2, 1, 0),
)
"""Block ranking of the released network (x4, 4 bits, 32 blocks), from its test script."""


def ranking(net: QuantSR_C) -> tuple[int, ...] | None:
    """The block ranking of a released checkpoint; None if the released code has none for it."""
    options = net.arch_options()
    shape = tuple(options[key] for key in ("num_block", "upscale", "nbits_w", "nbits_a"))
    return RANKING if shape == (32, 4, 4, 4) else None


def is_released(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the released code's quantized networks."""
    return any(key.endswith((".channel_threshold", ".ActOurs.alpha")) for key in state_dict)


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict under our names.

    ``alpha`` is the step itself; ``init_state`` and ``signed`` are 0 or 1 in one-element tensors;
    ``channel_threshold`` is ``tau`` with dimensions of size 1 around the channels. Other tensors
    keep their names.
    """
    converted = {}
    for key, value in state_dict.items():
        suffix = next((s for s in _SUFFIXES if key.endswith(s)), None)
        if suffix is None:
            converted[key] = value
            continue
        name = key[: -len(suffix)] + _SUFFIXES[suffix]
        if name.endswith(("calibrated", "signed")):
            value = value.reshape(()) != 0
        elif name.endswith("tau"):
            value = value.reshape(-1)
        converted[name] = value
    return converted


@ARCH_REGISTRY.register()
class QEDSR_Ours(QuantSR_C):
    """:class:`QuantSR_C` with the released code's name and options; loads state dicts of both.

    Args:
        qconv: the released code's name for RLQ.
        num_in_ch, num_out_ch, num_feat, num_block, upscale, res_scale, img_range, rgb_mean,
            nbits_w, nbits_a, depths: as :class:`QuantSR_C`, with the released defaults.
    """

    def __init__(
        self,
        *,
        num_in_ch: int,
        num_out_ch: int,
        num_feat: int = 64,
        num_block: int = 16,
        upscale: int = 4,
        res_scale: float = 1.0,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
        qconv: Literal["Ours"] = "Ours",
        nbits_w: int = 4,
        nbits_a: int = 4,
        depths: Sequence[int] | None = None,
    ) -> None:
        if qconv != "Ours":
            raise ValueError(
                f"qconv must be Ours (RLQ), got {qconv!r}; for others use type QuantSR_C and quantizer"
            )
        super().__init__(
            num_in_ch=num_in_ch,
            num_out_ch=num_out_ch,
            num_feat=num_feat,
            num_block=num_block,
            upscale=upscale,
            res_scale=res_scale,
            img_range=img_range,
            rgb_mean=rgb_mean,
            nbits_w=nbits_w,
            nbits_a=nbits_a,
            depths=depths,
        )
        self.register_load_state_dict_pre_hook(_convert_in_place)


def _convert_in_place(module: object, state_dict: dict[str, Tensor], *args: object) -> None:
    if is_released(state_dict):
        converted = convert_state_dict(state_dict)
        state_dict.clear()
        state_dict.update(converted)
