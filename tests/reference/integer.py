"""Reference QuantSR-C: layer by layer, nothing folded, in float64 with loops over taps."""

from __future__ import annotations

import numpy as np

from quantsr.deploy.model import PackedLayer, PackedModel, upsample_stages


def conv(layer: PackedLayer, x: np.ndarray) -> np.ndarray:
    """(I, H, W) to (O, H, W) float: quantize, pad codes with 0, sum, multiply, add bias."""
    weight = layer.weight.astype(np.float64)
    multiplier = np.ones(1)
    if layer.weight_step is not None:
        multiplier = multiplier * layer.weight_step.astype(np.float64)
    if layer.bits_a <= 16:
        step = layer.act_step.astype(np.float64)
        u = (x + layer.tau().astype(np.float64)[:, None, None]) / (step * layer.equal()[:, None, None])
        x = np.clip(np.rint(u), *layer.act_range) - layer.zero_point()[:, None, None]
        multiplier = multiplier * step
    size = weight.shape[-1]
    pad = size // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    height, width = x.shape[1:]
    total = np.zeros((len(weight), height, width))
    for dy in range(size):
        for dx in range(size):
            total += np.tensordot(weight[:, :, dy, dx], padded[:, dy : dy + height, dx : dx + width], 1)
    return (
        total * np.broadcast_to(multiplier, len(weight))[:, None, None]
        + layer.bias.astype(np.float64)[:, None, None]
    )


def pixel_shuffle(x: np.ndarray, factor: int) -> np.ndarray:
    """(C*r*r, H, W) to (C, H*r, W*r)."""
    channels, height, width = len(x) // factor**2, *x.shape[1:]
    x = x.reshape(channels, factor, factor, height, width).transpose(0, 3, 1, 4, 2)
    return x.reshape(channels, height * factor, width * factor)


def run(model: PackedModel, image: np.ndarray, depth: int) -> np.ndarray:
    """uint8 (H, W, 3) to uint8 (H*s, W*s, 3)."""
    header, layers = model.header, model.layers
    # Of the pixel range 0..255 rather than 0..1, so that integers stay integers.
    mean = 255.0 * np.asarray(header.rgb_mean, np.float64)[:, None, None]
    x = (image.transpose(2, 0, 1) - mean) * (header.img_range / 255.0)
    start = x = conv(layers["conv_first"], x)
    kept = header.blocks_kept(depth)
    for i in range(header.num_block):
        out = header.shortcuts[i] * x
        if i in kept:
            branch = np.maximum(conv(layers[f"body.{i}.conv1"], x), 0)
            out = out + header.res_scale * conv(layers[f"body.{i}.conv2"], branch)
        x = out
    x = conv(layers["conv_after_body"], x) + start
    if header.arch.get("upsampler") == "pixelshuffledirect":
        x = pixel_shuffle(conv(layers["upsample.0"], x), header.scale)
    else:
        for name, factor in upsample_stages(header.scale):
            x = pixel_shuffle(conv(layers[name], x), factor)
        x = conv(layers["conv_last"], x)
    x = x * (255.0 / header.img_range) + mean
    return np.clip(np.rint(x), 0, 255).astype(np.uint8).transpose(1, 2, 0)
