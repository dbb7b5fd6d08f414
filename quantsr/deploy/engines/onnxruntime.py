"""ONNX Runtime, on CUDA where its provider is installed, else on the CPU."""

from __future__ import annotations

import numpy as np
import onnxruntime

from quantsr.deploy import onnx_model
from quantsr.deploy.engines.base import Images, OneByOne
from quantsr.deploy.model import PackedModel


class OnnxEngine(OneByOne):
    """ONNX Runtime on CUDA where its provider is installed, else on the CPU."""

    takes_float = False

    def __init__(self, model: PackedModel, depth: int, *, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        graph = onnx_model.build(model, depth).SerializeToString()
        self._session = onnxruntime.InferenceSession(graph, options, providers=providers)
        self.name = (
            "onnxruntime:cuda" if self._session.get_providers()[0].startswith("CUDA") else "onnxruntime"
        )

    def run(self, images: Images) -> Images:
        """See `Engine.run`; (N, h, w, 3) uint8."""
        return self._session.run(None, {self._session.get_inputs()[0].name: np.ascontiguousarray(images)})[0]
