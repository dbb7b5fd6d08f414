"""OpenVINO on the CPU: one compiled graph per picture shape."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quantsr import cpu
from quantsr.cache import private_folder
from quantsr.deploy.engines import openvino_model, openvino_ops
from quantsr.deploy.engines.base import Images, Key
from quantsr.deploy.engines.openvino_core import core
from quantsr.deploy.packed.model import PackedModel

log = logging.getLogger(__name__)

_CACHE_BYTES = 64 << 20


class _Requests:
    """A compiled graph and its idle requests. A request that was taken out serves one caller only,
    until it is put back."""

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
        """`precision` is what OpenVINO uses for what is not integer: "f32", or "bf16" (faster on
        AMX, no longer exact)."""
        self.threads = threads or cpu.cores()
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
        batch, height, width, _ = shape
        graph = openvino_model.build(
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


def cache_folder() -> Path | None:
    """Where compiled graphs are kept between runs: `$XDG_CACHE_HOME/quantsr/openvino`; None where
    there can be none.

    There is one for each network, depth and picture shape; the oldest go when they exceed 64 MB.
    """
    folder = private_folder("openvino")
    if folder is not None:
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
