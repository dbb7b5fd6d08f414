"""The engines that run a converted network, behind one interface: the native one, OpenVINO, ONNX Runtime, PyTorch. Each is imported only when chosen."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.model import PackedModel
from quantsr.errors import InputError

log = logging.getLogger(__name__)

EngineName = Literal["auto", "native", "openvino", "onnxruntime", "torch"]
ENGINES: tuple[str, ...] = get_args(EngineName)
PACKAGES = ENGINES[2:]
"""Engines that are packages of their name."""
INSTALL = {
    "openvino": "pip install openvino",
    "onnxruntime": "pip install onnxruntime (or onnxruntime-gpu for CUDA)",
    "torch": 'pip install "quantsr[train]"',
}

_CACHE_BYTES = 64 << 20

Key = TypeVar("Key")
Images = NDArray[Any]
"""(N, h, w, 3) RGB: uint8, or float32 in 0..255 where the engine takes it."""


class Engine(Protocol):
    """A network at one depth, ready to run."""

    name: str
    """As in ENGINES, with the device where it is not the CPU: "torch:cuda"."""
    takes_float: bool
    """Whether float32 pictures (0..255, not rounded) are taken beside uint8."""

    def run(self, images: Images) -> Images:
        """(N, h, w, 3) -> (N, h*s, w*s, 3), same type; any h, w >= 1."""
        ...

    def run_tiles(self, tiles: Iterable[tuple[Key, Images]]) -> Iterator[tuple[Key, Images]]:
        """Run (key, (h, w, 3)) pairs, several at a time where the engine can, and give them back in order."""
        ...


def create(
    engine: str, model: PackedModel, depth: int | None = None, *, threads: int | None = None, **options: Any
) -> Engine:
    """The engine of that name; "auto" takes native where that is the fastest way to run this network, else the first installed of
    openvino, onnxruntime, torch.

    Args:
        depth: default: the network's deepest.
        threads: CPU threads, at least 1; default: what the engine finds.
        options: the engine's own (OpenVINO: `tail`, `precision`, `cache`; native: `isa`).

    Raises:
        InputError: an unknown engine or depth, `threads` below 1, or a package that is not installed (the message says how to install it).
    """
    if engine not in ENGINES:
        raise InputError(f"engine: {engine!r} is not known; choose one of {', '.join(ENGINES)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads: must be at least 1, got {threads}")
    depth = model.depth_or_default(depth)
    if engine == "native" or (engine == "auto" and not options and native_is_fastest(model)):
        from quantsr.deploy.native.engine import NativeEngine

        try:
            return NativeEngine(model, depth, threads=threads, **options)
        except InputError as error:
            if engine == "native":
                raise
            log.info("%s", error)
    if engine == "auto":
        engine = next((name for name in PACKAGES if find_spec(name)), "openvino")
    if not find_spec(engine):
        raise InputError(f"engine {engine}: the package is not installed; {INSTALL[engine]}")
    kind = {"openvino": OpenVinoEngine, "onnxruntime": OnnxEngine, "torch": TorchEngine}[engine]
    return kind(model, depth, threads=threads, **options)


def native_is_fastest(model: PackedModel) -> bool:
    """Whether this processor has vector instructions that the native engine uses, and no matrix units, which only OpenVINO does and which decide
    where products take most of the time."""
    from quantsr import cpu
    from quantsr.deploy import architectures
    from quantsr.deploy.native import library

    if library.best_isa() in (None, "plain"):
        return False
    return not (architectures.of(model.header).mostly_products and "amx_int8" in cpu.describe()[1])


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OneByOne:
    """`run_tiles` for engines that use all cores for one picture."""

    def run(self, images: Images) -> Images:
        """See `Engine.run`; left to the engine."""
        raise TypeError(f"{type(self).__name__} must define run")

    def run_tiles(self, tiles: Iterable[tuple[Key, Images]]) -> Iterator[tuple[Key, Images]]:
        """See `Engine.run_tiles`; one after the other."""
        for key, tile in tiles:
            yield key, self.run(tile[None])[0]


class _Requests:
    """A compiled graph and those of its requests that are idle. One that is taken out is its taker's alone, until it is put back."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self.idle: list[Any] = []

    def take(self) -> Any:
        try:
            return self.idle.pop()
        except IndexError:
            return self._compiled.create_infer_request()


class OpenVinoEngine:
    """int8 convolutions on the CPU; one compiled graph per picture shape, the last few kept.

    Single pictures use all threads at once; tiles run as parallel requests of few threads each.
    """

    name = "openvino"
    takes_float = True

    _KEPT_SHAPES = 4
    _MAX_STREAMS = 4

    def __init__(
        self,
        model: PackedModel,
        depth: int,
        *,
        threads: int | None = None,
        tail: Literal["collapsed", "layers"] = "collapsed",
        precision: str = "f32",
        cache: bool = True,
    ) -> None:
        """`precision` is what OpenVINO uses for what is not integer: "f32", or "bf16" (faster on AMX, no longer exact)."""
        from quantsr.deploy.openvino_core import core

        self.threads = threads or cpu_count()
        self._model, self._depth, self._tail = model, depth, tail
        self._core = core()
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self.threads,
        }
        if cache and (folder := cache_folder()):
            self._config["CACHE_DIR"] = str(folder)
        self._requests: OrderedDict[tuple[Any, ...], _Requests] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, images: Images) -> Images:
        """See `Engine.run`; (N, h, w, 3) uint8 or float32, of a shape compiled before or now."""
        requests = self._for_shape(images.shape, images.dtype, streams=1)
        request = requests.take()
        request.infer([images], share_inputs=True)
        result = np.array(request.get_output_tensor().data)
        requests.idle.append(request)
        return result

    def run_tiles(self, tiles: Iterable[tuple[Key, Images]]) -> Iterator[tuple[Key, Images]]:
        """See `Engine.run_tiles`; up to four at a time."""
        streams = min(self.threads, self._MAX_STREAMS)
        started: deque[tuple[Key, _Requests, Any, Images]] = deque()

        def finish() -> tuple[Key, Images]:
            key, requests, request, _ = started.popleft()
            request.wait()
            result = np.array(request.get_output_tensor().data[0])
            requests.idle.append(request)
            return key, result

        try:
            for key, tile in tiles:
                requests = self._for_shape((1, *tile.shape), tile.dtype, streams)
                if len(started) == streams:
                    yield finish()
                request = requests.take()
                batch = np.ascontiguousarray(tile)[None]  # must live until the request is done
                request.start_async([batch], share_inputs=True)
                started.append((key, requests, request, batch))
            while started:
                yield finish()
        finally:  # of what the caller did not want to the end
            for _, requests, request, _ in started:
                request.wait()
                requests.idle.append(request)

    def _for_shape(self, shape: tuple[int, ...], dtype: Any, streams: int) -> _Requests:
        """The requests for this shape; compiled where it is new."""
        key = (shape, np.dtype(dtype).kind, streams)
        with self._lock:
            if key not in self._requests:
                self._requests[key] = self._compile(shape, np.dtype(dtype).kind == "f", streams)
                while len(self._requests) > self._KEPT_SHAPES:
                    self._requests.popitem(last=False)
            self._requests.move_to_end(key)
            return self._requests[key]

    def _compile(self, shape: tuple[int, ...], float_io: bool, streams: int) -> _Requests:
        from quantsr.deploy import openvino_graph, openvino_ops

        batch, height, width, _ = shape
        graph = openvino_graph.build(
            self._model,
            self._depth,
            height=height,
            width=width,
            batch=batch,
            tail=self._tail,
            float_io=float_io,
            saturates=openvino_ops.integer_sums_saturate(),
            wide_inputs=openvino_ops.wide_inputs_run_in(),
        )
        hint = "LATENCY" if streams == 1 else "THROUGHPUT"
        config = self._config | {"PERFORMANCE_HINT": hint, "NUM_STREAMS": streams}
        return _Requests(self._core.compile_model(graph, "CPU", config))


class OnnxEngine(OneByOne):
    """ONNX Runtime on CUDA where its provider is installed, else on the CPU."""

    takes_float = False

    def __init__(self, model: PackedModel, depth: int, *, threads: int | None = None) -> None:
        import onnxruntime

        from quantsr.deploy import onnx_graph

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        graph = onnx_graph.build(model, depth).SerializeToString()
        self._session = onnxruntime.InferenceSession(graph, options, providers=providers)
        self.name = (
            "onnxruntime:cuda" if self._session.get_providers()[0].startswith("CUDA") else "onnxruntime"
        )

    def run(self, images: Images) -> Images:
        """See `Engine.run`; (N, h, w, 3) uint8."""
        return self._session.run(None, {self._session.get_inputs()[0].name: np.ascontiguousarray(images)})[0]


class TorchEngine(OneByOne):
    """PyTorch with fake quantization in float32, on CUDA where there is a device."""

    takes_float = True

    def __init__(self, model: PackedModel, depth: int, *, threads: int | None = None) -> None:
        import torch

        from quantsr.deploy.module import to_module

        self._torch = torch
        if threads:
            torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name = "torch" if self._device.type == "cpu" else f"torch:{self._device.type}"
        self._net = to_module(model).to(self._device).eval()
        self._depth = depth

    def run(self, images: Images) -> Images:
        """See `Engine.run`; (N, h, w, 3) uint8 or float32."""
        torch = self._torch
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


def cache_folder() -> Path | None:
    """Where compiled graphs are kept between runs: `$XDG_CACHE_HOME/quantsr/openvino`; None where it cannot be written.

    There is one for each network, depth and picture shape; the oldest go when they exceed 64 MB.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "quantsr" / "openvino"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    if not os.access(folder, os.W_OK):
        return None
    _drop_oldest(folder, _CACHE_BYTES)
    return folder


def _drop_oldest(folder: Path, limit: int) -> None:
    """Delete the files used longest ago until the rest takes at most `limit` bytes."""
    total = 0
    try:
        files = [(file.stat(), file) for file in folder.iterdir() if file.is_file()]
        for status, file in sorted(
            files, key=lambda pair: max(pair[0].st_mtime, pair[0].st_atime), reverse=True
        ):
            total += status.st_size
            if total > limit:
                file.unlink(missing_ok=True)
    except OSError as error:  # another process may be at it
        log.debug("cache %s: %s", folder, error)
