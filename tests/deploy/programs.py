"""Small networks with a program in their file, written operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantsr.deploy.packed import packing
from quantsr.deploy.packed.description import Header
from quantsr.deploy.packed.model import ConvLayer, FloatTensor, LinearLayer, PackedLayer, PackedModel
from quantsr.deploy.program import PICTURE, Builder
from quantsr.errors import InputError

COLOURS: dict[str, Any] = {"mean": [0.4, 0.2, 0.6], "range": 255.0}


class Written:
    """A network in the making; `x` is the normalized picture."""

    def __init__(self, multiple: int = 1, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.build = Builder(multiple)
        self.layers: dict[str, PackedLayer] = {}
        self.floats: dict[str, FloatTensor] = {}
        self.x = self.build.add("normalize", PICTURE, **COLOURS)

    def add(self, kind: str, *inputs: int, **attributes: Any) -> int:
        """An operation without parameters."""
        return self.build.add(kind, *inputs, **attributes)

    def conv(self, x: int, name: str, outputs: int, inputs: int, size: int = 3, gain: float = 1.0) -> int:
        """A convolution of floats, or a linear layer (size 0); one that is there is used again."""
        shape = (outputs, inputs, size, size) if size else (outputs, inputs)
        if name not in self.layers:
            spread = gain / np.sqrt(inputs * max(size, 1) ** 2)
            weight = (self.rng.standard_normal(shape) * spread).astype(np.float32)
            bias = self.rng.standard_normal(outputs).astype(np.float32)
            self.layers[name] = (ConvLayer if size else LinearLayer)(name, weight, bias)
        return self.build.add("conv" if size else "linear", x, name=name)

    def quantized(
        self, x: int, name: str, outputs: int, inputs: int, size: int = 3, bits: int = 4, **fields: Any
    ) -> int:
        """The same of codes, of signed inputs up to 60 (2 of linear layers)."""
        shape = (outputs, inputs, size, size) if size else (outputs, inputs)
        most = 2 ** (bits - 1) - 1
        if name not in self.layers:
            fields = {
                "bits_w": bits,
                "weight_step": np.array([1.5 / most / np.sqrt(inputs * max(size, 1) ** 2)], np.float32),
                "bits_a": bits,
                "act_step": np.array([(60 if size else 2) / most], np.float32),
                **fields,
            }
            weight = self.rng.integers(-most, most + 1, shape).astype(np.int8)
            bias = self.rng.standard_normal(outputs).astype(np.float32)
            self.layers[name] = (ConvLayer if size else LinearLayer)(name, weight, bias, **fields)
        return self.build.add("conv" if size else "linear", x, name=name)

    def norm(self, x: int, name: str, channels: int, size: float = 1.0) -> int:
        """LayerNorm times `size`."""
        self.tensor(f"{name}.weight", np.full(channels, size))
        self.tensor(f"{name}.bias", np.zeros(channels))
        return self.build.add("layer_norm", x, name=name)

    def attention(self, x: int, name: str, heads: int, window: int, shift: int = 0) -> int:
        """Attention of floats with random relative position biases."""
        table = self.rng.standard_normal(((2 * window - 1) ** 2, heads))
        self.tensor(f"{name}.relative_position_bias_table", table)
        how = {"heads": heads, "window": window, "shift": shift, "quantized": 0}
        return self.build.add("window_attention", x, name=name, **how)

    def tensor(self, name: str, values: np.ndarray) -> None:
        self.floats.setdefault(name, FloatTensor(name, values.astype(np.float32)))

    def finish(
        self, x: int, *, scale: int = 1, units: int = 1, arch: Mapping[str, Any] | None = None, **header: Any
    ) -> PackedModel:
        """The network, whose picture is the value `x`."""
        self.build.add("picture", x, **COLOURS)
        fields = {"depths": (units,), "shortcuts": (1.0,) * units, **header}
        found = Header(arch or {"type": "OfATest"}, scale, num_block=units, format_version=3, **fields)
        return PackedModel(found, self.layers, {}, self.floats, self.build.finish())


def noise(height: int = 11, width: int = 9) -> np.ndarray:
    """uint8 (H, W, 3)"""
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)


def loaded(model: PackedModel, folder: Path) -> PackedModel:
    """The network from its file."""
    packing.save(model, folder / "net.safetensors")
    return packing.load(folder / "net.safetensors")


def refused(model: PackedModel, folder: Path, says: str) -> None:
    """Its file is not taken, in one line."""
    with pytest.raises(InputError, match=says) as caught:
        loaded(model, folder)
    assert "\n" not in str(caught.value)


def residual(net: Written | None = None, **layer: Any) -> PackedModel:
    """One block of two quantized convolutions."""
    net = net or Written()
    start = net.conv(net.x, "first", 16, 3)
    y = net.quantized(net.add("relu", net.quantized(start, "c1", 16, 16, **layer)), "c2", 16, 16)
    x = net.add("shortcut", start, y, unit=0)
    x = net.add("add", net.conv(x, "after", 16, 16), start)
    return net.finish(net.conv(x, "last", 3, 16))


def swin(
    dim: int = 16,
    inner: int = 16,
    *,
    window: int = 8,
    multiple: int = 8,
    shifts: tuple[int, ...] = (0,),
    hidden: int = 32,
    fc2_outputs: int | None = None,
    closing: Callable[[Written, int, str], int] | None = None,
    scale: int = 1,
) -> PackedModel:
    """One group of Swin layers with quantized linear layers, as the kernels have them.

    Args:
        closing: adds what follows the group and the body to the value that they give, under names
            that begin with the one it is given; by default one convolution.
        scale: above 1 a pixel shuffle and a sum with the enlarged picture follow the last
            convolution.
    """
    net = Written(multiple)
    start = net.conv(net.x, "first", dim, 3)
    x = inside = net.norm(start, "norm_first", dim)
    for i, shift in enumerate(shifts):
        y = net.quantized(net.norm(inside, f"norm1.{i}", dim), f"qkv.{i}", 3 * inner, dim, 0)
        y = net.attention(y, f"attn.{i}", 2, window, shift)
        middle = net.add("add", inside, net.quantized(y, f"proj.{i}", dim, inner, 0))
        y = net.add("gelu", net.quantized(net.norm(middle, f"norm2.{i}", dim), f"fc1.{i}", hidden, dim, 0))
        inside = net.add("add", middle, net.quantized(y, f"fc2.{i}", fc2_outputs or dim, hidden, 0))
    close = closing or (lambda net, x, name: net.conv(x, name, dim, dim))
    x = net.add("shortcut", x, close(net, inside, "closing"), unit=0)
    x = net.add("add", close(net, net.norm(x, "norm", dim), "after"), start)
    if scale == 1:
        return net.finish(net.conv(x, "last", 3, dim))
    x = net.add("pixel_shuffle", net.conv(x, "last", 3 * scale**2, dim), factor=scale)
    return net.finish(net.add("add", x, net.add("upsample_nearest", net.x, factor=scale)), scale=scale)
