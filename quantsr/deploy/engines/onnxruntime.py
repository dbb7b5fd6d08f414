"""ONNX Runtime: on CUDA where its provider is installed, else in integers on the CPU."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import onnx
import onnxruntime

from quantsr.deploy.engines import onnx_model
from quantsr.deploy.engines.base import Images, OneByOne
from quantsr.deploy.engines.onnx_graph import INPUT
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.collapse import MIN_SIZE

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxEngine(OneByOne):
    """ONNX Runtime on CUDA where its provider is installed, else on the CPU."""

    takes_float = False

    def __init__(self, model: PackedModel, depth: int, *, threads: int | None = None) -> None:
        self._model, self._depth = model, depth
        self._options = onnxruntime.SessionOptions()
        # Without VNNI, products of bytes would be added in pairs in 16 bits, which saturate.
        self._options.add_session_config_entry("session.x64quantprecision", "1")
        self._options.log_severity_level = 3
        if threads:
            self._options.intra_op_num_threads = threads
        self._cuda: onnxruntime.InferenceSession | None = None
        if _CUDA in onnxruntime.get_available_providers():
            session = self._session(onnx_model.build(model, depth), _CUDA, _CPU)
            # Without a device ONNX Runtime falls back to the CPU.
            self._cuda = session if session.get_providers()[0] == _CUDA else None
        if self._cuda is None:
            self._large = self._session(onnx_model.build_integer(model, depth, tail="collapsed"), _CPU)
        self.name = "onnxruntime" if self._cuda is None else "onnxruntime:cuda"

    def run(self, images: Images) -> Images:
        """See `Engine.run`; (N, h, w, 3) uint8."""
        session = self._cuda or (self._large if min(images.shape[1:3]) >= MIN_SIZE else self._small)
        return session.run(None, {INPUT: np.ascontiguousarray(images)})[0]

    @cached_property
    def _small(self) -> onnxruntime.InferenceSession:
        """For pictures that are too small for the collapsed tail."""
        return self._session(onnx_model.build_integer(self._model, self._depth, tail="layers"), _CPU)

    def _session(self, graph: onnx.ModelProto, *providers: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(
            graph.SerializeToString(), self._options, providers=list(providers)
        )
