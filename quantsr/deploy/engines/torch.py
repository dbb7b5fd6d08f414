"""PyTorch with fake quantization in float32, on CUDA where there is a device."""

from __future__ import annotations

import numpy as np
import torch

from quantsr.deploy.engines.base import Images, OneByOne
from quantsr.deploy.model import PackedModel
from quantsr.deploy.module import to_module


class TorchEngine(OneByOne):
    """PyTorch with fake quantization in float32, on CUDA where there is a device."""

    takes_float = True

    def __init__(self, model: PackedModel, depth: int, *, threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name = "torch" if self._device.type == "cpu" else f"torch:{self._device.type}"
        self._net = to_module(model).to(self._device).eval()
        self._depth = depth

    def run(self, images: Images) -> Images:
        """See `Engine.run`; (N, h, w, 3) uint8 or float32."""
        with torch.inference_mode():
            x = (
                torch.from_numpy(np.ascontiguousarray(images)).to(self._device).permute(0, 3, 1, 2)
            )  # (N, 3, h, w)
            y = (
                self._net(x.float() / 255, depth=self._depth).mul(255).clamp(0, 255).permute(0, 2, 3, 1)
            )  # (N, h*s, w*s, 3)
            if images.dtype == np.uint8:
                y = y.round().to(torch.uint8)
            return np.ascontiguousarray(y.cpu().numpy())
