"""Programs of the two networks whose packed files need not hold theirs: QuantSR-C and QuantSR-T
(files of version 2 have none). Imports no torch.

`lower.lower` finds the same programs in their modules; a test compares them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from quantsr.deploy.packed.description import Header
from quantsr.deploy.program import PICTURE, Builder, Program
from quantsr.errors import InputError

_CODE_BITS = 8  # of operands of attention


def program_of(header: Header) -> Program:
    """The program of a network by its constructor's arguments alone. Raises ValueError for one that
    must write its program down, and for impossible arguments."""
    kind = header.arch.get("type")
    if not is_known(header):
        raise ValueError(f"architecture '{kind}' is unknown, and the file has no program")
    try:
        return _PROGRAMS[str(kind)](header)
    except InputError as error:
        raise ValueError(str(error)) from error


def is_known(header: Header) -> bool:
    """Whether `program_of` has the program of this network. Not of one with shortcuts around its
    convolutions: all files of such networks hold their program."""
    kind = header.arch.get("type")
    return isinstance(kind, str) and kind in _PROGRAMS and header.arch.get("shortcuts", "block") == "block"


def _colours(header: Header) -> dict[str, Any]:
    return {"mean": list(header.rgb_mean), "range": header.img_range}


def _quantsr_c(header: Header) -> Program:
    build = Builder()
    start = build.add("conv", build.add("normalize", PICTURE, **_colours(header)), name="conv_first")
    x = start
    for unit in range(header.num_block):
        y = build.add("relu", build.add("conv", x, name=f"body.{unit}.conv1"))
        y = build.add("conv", y, name=f"body.{unit}.conv2")
        if header.res_scale != 1:
            y = build.add("scale", y, factor=header.res_scale)
        x = build.add("shortcut", x, y, unit=unit)
    x = build.add("add", build.add("conv", x, name="conv_after_body"), start)
    for name, factor in tail_stages(header.arch, header.scale):
        x = build.add("conv", x, name=name)
        x = build.add("pixel_shuffle", x, factor=factor) if factor > 1 else x
    build.add("picture", x, **_colours(header))
    return build.finish()


def _quantsr_t(header: Header) -> Program:
    arch = header.arch
    _check(header)
    window, heads = arch["window_size"], arch["num_heads"]
    counts_layers = arch["dqa_unit"] == "layer"
    build = Builder(multiple=window)

    def closing(x: int, prefix: str) -> int:
        """The conv or three at the end of an RSTB or of the body."""
        if arch["resi_connection"] == "1conv":
            return build.add("conv", x, name=prefix)
        for index in (0, 2):
            x = build.add("conv", x, name=f"{prefix}.{index}")
            x = build.add("leaky_relu", x, slope=0.2)
        return build.add("conv", x, name=f"{prefix}.4")

    start = build.add("conv", build.add("normalize", PICTURE, **_colours(header)), name="conv_first")
    x = build.add("layer_norm", start, name="norm_first")
    for i in range(arch["num_block"]):
        inner = x
        for j in range(arch["layers_per_block"]):
            prefix = f"layers.{i}.blocks.{j}"
            y = build.add("layer_norm", inner, name=f"{prefix}.norm1")
            y = build.add("linear", y, name=f"{prefix}.attn.qkv")
            y = build.add(
                "window_attention",
                y,
                name=f"{prefix}.attn",
                heads=heads,
                window=window,
                shift=window // 2 * (j % 2),
                quantized=int(arch["quantize_attention"] and arch["nbits_a"] <= _CODE_BITS),
            )
            middle = build.add("add", inner, build.add("linear", y, name=f"{prefix}.attn.proj"))
            y = build.add("layer_norm", middle, name=f"{prefix}.norm2")
            y = build.add("gelu", build.add("linear", y, name=f"{prefix}.mlp.fc1"))
            out = build.add("add", middle, build.add("linear", y, name=f"{prefix}.mlp.fc2"))
            if counts_layers:
                out = build.add("around", inner, out, unit=i * arch["layers_per_block"] + j)
            inner = out
        branch = closing(inner, f"layers.{i}.conv")
        x = build.add("add", x, branch) if counts_layers else build.add("shortcut", x, branch, unit=i)
    x = closing(build.add("layer_norm", x, name="norm"), "conv_after_body")
    x = build.add("add", x, start)
    for name, factor, slope in _tail(header):
        x = build.add("conv", x, name=name)
        x = x if slope is None else build.add("leaky_relu", x, slope=slope)
        x = build.add("pixel_shuffle", x, factor=factor) if factor > 1 else x
    build.add("picture", x, **_colours(header))
    return build.finish()


def _tail(header: Header) -> list[tuple[str, int, float | None]]:
    """SwinIR's tails: (name of the conv, factor of the pixel shuffle, slope of the LeakyReLU)."""
    if header.arch["upsampler"] == "pixelshuffledirect":
        return [("upsample.0", header.scale, None)]
    stages = [(name, factor, None) for name, factor in upsample_stages(header.scale)]
    return [("conv_before_upsample.0", 1, 0.01), *stages, ("conv_last", 1, None)]


def _check(header: Header) -> None:
    """Raises ValueError for arguments that no QuantSR-T has."""
    arch = header.arch

    def number(key: str, low: int, high: int) -> int:
        value = arch.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"arch.{key}: must be an integer in {low}..{high}")
        return value

    for key, known in (
        ("upsampler", ("pixelshuffledirect", "pixelshuffle")),
        ("resi_connection", ("1conv", "3conv")),
        ("dqa_unit", ("rstb", "layer")),
        ("quantize_attention", (True, False)),
    ):
        if not any(arch.get(key) is value or arch.get(key) == value for value in known):
            raise ValueError(f"arch.{key}: must be one of {', '.join(map(str, known))}")
    layers = number("layers_per_block", 1, 1 << 8)
    units = number("num_block", 1, 1 << 10) * (layers if arch["dqa_unit"] == "layer" else 1)
    number("num_heads", 1, 1 << 12)
    number("window_size", 2, 64)
    number("nbits_a", 2, 32)
    ratio = arch.get("mlp_ratio")
    if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 < ratio <= 64:
        raise ValueError("arch.mlp_ratio: must be a number in 0..64")
    if header.num_block != units:
        raise ValueError(f"num_block: {header.num_block} units are not those of its arch")


def tail_stages(arch: Mapping[str, Any], scale: int) -> list[tuple[str, int]]:
    """The tail of QuantSR-C: (name of the conv, factor of the pixel shuffle behind it, 1 for none),
    in order.

    Raises InputError for another upsampler than these two, or a scale that has no stages.
    """
    upsampler = arch.get("upsampler", "pixelshuffle")
    if upsampler == "pixelshuffledirect":
        return [("upsample.0", scale)]
    if upsampler != "pixelshuffle":
        raise InputError(f"upsampler: {upsampler!r} is not known; use pixelshuffle or pixelshuffledirect")
    return [*upsample_stages(scale), ("conv_last", 1)]


def upsample_stages(scale: int) -> list[tuple[str, int]]:
    """EDSR's upsampler: (name of the conv, factor of the pixel shuffle behind it), in order.

    Powers of two take one x2 stage each, 3 takes one x3 stage, 1 none. Raises InputError for
    others.
    """
    if scale == 3:
        return [("upsample.0", 3)]
    if scale < 1 or scale & (scale - 1):
        raise InputError(f"scale: {scale} has no upsampler; use 3 or a power of two")
    return [(f"upsample.{2 * i}", 2) for i in range(int(math.log2(scale)))]


_PROGRAMS: dict[str, Callable[[Header], Program]] = {
    "QuantSR_C": _quantsr_c,
    "QEDSR_Ours": _quantsr_c,
    "QuantSR_T": _quantsr_t,
}
