"""PyTorch on the codes, on CUDA where there is a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quantsr.deploy import windows
from quantsr.deploy.engines.base import Images, OneByOne
from quantsr.deploy.engines.reference import ReferenceOps, run_steps
from quantsr.deploy.folded import FirstConv, FoldedConv, Pixels
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.layout import lay_out


class TorchEngine(OneByOne):
    """PyTorch on the codes, on CUDA where there is a device."""

    takes_float = True

    def __init__(self, model: PackedModel, depth: int, *, threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name = "torch" if self._device.type == "cpu" else f"torch:{self._device.type}"
        self._program = lay_out(fold(model, depth, wide_inputs=False))
        self._constants: dict[int, Tensor] = {}

    def run(self, images: Images) -> Images:
        """See `Engine.run`; (N, h, w, 3) uint8 or float32."""
        program = self._program
        rows, columns = (windows.reflected(size, program.multiple) for size in images.shape[1:3])
        padded = np.ascontiguousarray(images[:, rows][:, :, columns])
        ops = TorchOps((len(rows), len(columns)), self._device, self._constants, images.dtype != np.uint8)
        with torch.inference_mode():
            pixels = torch.from_numpy(padded).to(self._device).permute(0, 3, 1, 2).float()  # (N, 3, H, W)
            height, width = (size * program.scale for size in images.shape[1:3])
            result = run_steps(program, pixels, ops)[:, :, :height, :width].permute(0, 2, 3, 1)
            result = result if images.dtype != np.uint8 else result.to(torch.uint8)
            return np.ascontiguousarray(result.cpu().numpy())


class TorchOps(ReferenceOps):
    """The operations of the reference with PyTorch's convolutions and matrix products."""

    def __init__(
        self, grid: tuple[int, int], device: torch.device, constants: dict[int, Tensor], float_io: bool
    ) -> None:
        super().__init__(grid)
        self._device, self._constants, self._float_io = device, constants, float_io
        self._in_float64 = False

    def constant(self, values: np.ndarray) -> Tensor:
        """On the device."""
        return super().constant(values).to(self._device)

    def first_conv(self, op: FirstConv, pixels: Tensor) -> Tensor:
        """With sums in float64, rounded once, as in training: codes of its output are exact."""
        self._in_float64 = True
        try:
            return super().first_conv(op, pixels)
        finally:
            self._in_float64 = False

    def sums(self, x: Tensor, conv: FoldedConv) -> Tensor:
        """The convolution without multiplier and bias, in float32."""
        if id(conv) not in self._constants:
            self._constants[id(conv)] = super().constant(conv.weight).to(self._device)
        weight, padding = self._constants[id(conv)], conv.weight.shape[-1] // 2
        if self._in_float64:
            return F.conv2d(x.double(), weight.double(), padding=padding).float()
        return F.conv2d(x, weight, padding=padding, groups=conv.groups)

    def product(self, a: Tensor, b: Tensor, bound: int | None) -> Tensor:
        """a @ b in float32."""
        return a @ b

    def pixels(self, op: Pixels, x: Tensor) -> Tensor:
        """Limited to 0..255, and rounded unless pictures are of floats."""
        return x.clamp(0, 255) if self._float_io else super().pixels(op, x)
