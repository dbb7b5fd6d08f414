"""Small networks and pictures for the tests of deployment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.stand_ins.convolutional import random_model


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """uint8 (18, 21, 3): smooth, with some noise, touching both ends of the range."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[0:18, 0:21] / 20.0
    waves = np.stack([np.sin(5 * x + k) * np.cos(4 * y - k) for k in range(3)], 2)
    return np.clip(127 + 140 * waves + rng.normal(0, 6, waves.shape), 0, 255).astype(np.uint8)


def small_model(**options) -> PackedModel:
    """A network of a few thousand weights."""
    return random_model(**{"num_feat": 8, "num_block": 4, "scale": 2, **options})


def dyadic_model(**options) -> PackedModel:
    """A network whose every constant is a multiple of a power of two, so that float32 computes it
    without rounding."""
    # pixels / 255, which a float head reads, are rounded
    model = small_model(**{"first_bits": 8, **options})
    rng = np.random.default_rng(11)
    layers = {}
    for name, layer in model.layers.items():
        bias = (rng.integers(-32, 33, layer.bias.shape) / 16).astype(np.float32)
        layer = replace(layer, bias=bias)
        if layer.bits_w <= 8:
            layer = replace(layer, weight_step=2.0 ** np.floor(np.log2(layer.weight_step)).astype(np.float32))
        else:
            layer = replace(layer, weight=(np.rint(layer.weight * 32) / 32).astype(np.float32))
        if layer.bits_a <= 16 and name != "conv_first":
            # 16-bit codes as coarse as 8-bit ones, or sums need more than float32's 24 bits.
            step = 2.0 ** (np.floor(np.log2(layer.act_step)) + 4 * (layer.bits_a == 16)).astype(np.float32)
            tau = (rng.integers(-40, 41, layer.in_channels) / 8).astype(np.float32)
            layer = replace(layer, act_step=step, act_tau=tau)
            if layer.bits_a == 16 and not name.startswith("body."):
                layer = replace(layer, act_equal=rng.choice(np.float32([0.25, 0.5, 1]), layer.in_channels))
        layers[name] = layer
    mean = (0.4, 0.2, 0.6)  # 102, 51 and 153 of 255
    if layers["conv_first"].bits_a == 8:
        zero = np.rint(255 * np.array(mean))
        layers["conv_first"] = replace(
            layers["conv_first"], act_tau=zero.astype(np.float32), act_zero_point=zero.astype(np.int32)
        )
    shortcuts = tuple(float(s) for s in rng.choice([0.5, 1.0, 2.0, -1.0], len(model.header.shortcuts)))
    return PackedModel(replace(model.header, rgb_mean=mean, shortcuts=shortcuts), layers)
