"""The engine for a network, by name or the fastest one. An engine's module is imported only when it
is chosen."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from quantsr import cpu
from quantsr.deploy.costs import has_attention
from quantsr.deploy.engines.base import Engine
from quantsr.deploy.engines.names import ENGINES, PACKAGES
from quantsr.deploy.native import library
from quantsr.deploy.packed.model import PackedModel
from quantsr.errors import InputError

log = logging.getLogger(__name__)

MODULES = {
    "native": ("quantsr.deploy.native.engine", "NativeEngine"),
    "openvino": ("quantsr.deploy.engines.openvino", "OpenVinoEngine"),
    "onnxruntime": ("quantsr.deploy.engines.onnxruntime", "OnnxEngine"),
    "ncnn": ("quantsr.deploy.engines.ncnn", "NcnnEngine"),
    "torch": ("quantsr.deploy.engines.torch", "TorchEngine"),
}
"""Module and class of every engine."""

INSTALL = {
    "openvino": "pip install openvino",
    "onnxruntime": "pip install onnxruntime (or onnxruntime-gpu for CUDA)",
    "ncnn": "pip install ncnn",
    "torch": 'pip install "quantsr[train]"',
}


def create(
    engine: str, model: PackedModel, depth: int | None = None, *, threads: int | None = None, **options: Any
) -> Engine:
    """The engine of that name; "auto" takes native where that is the fastest way to run this
    network, else the first of openvino, onnxruntime, ncnn and torch that is installed and has every
    operation.

    Args:
        depth: default: the network's deepest.
        threads: CPU threads, at least 1; default: what the engine finds.
        options: the engine's own (OpenVINO: `tail`, `precision`, `cache`; native: `isa`; ncnn:
            `vulkan`).

    Raises:
        InputError: an unknown engine or depth, `threads` below 1, or a package that is not
            installed (the message says how to install it).
    """
    if engine not in ENGINES:
        raise InputError(f"engine: {engine!r} is not known; choose one of {', '.join(ENGINES)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads: must be at least 1, got {threads}")
    depth = model.depth_or_default(depth)
    if engine == "native" or (engine == "auto" and not options and native_is_fastest(model)):
        try:
            native = _make("native", model, depth, threads=threads, **options)
        except InputError as error:
            if engine == "native":
                raise
            log.info("%s", error)
        else:
            has_others = engine == "auto" and any(find_spec(name) for name in PACKAGES)
            if not (has_others and idles_matrix_units(native)):
                return native
            log.info("engine native: has no kernels for this network and the processor's matrix units")
    if engine != "auto":
        return _from_package(engine, model, depth, threads=threads, **options)
    *others, last = [name for name in PACKAGES if find_spec(name)] or ["openvino"]
    for name in others:
        try:
            return _from_package(name, model, depth, threads=threads, **options)
        except InputError as error:
            log.info("%s", error)
    return _from_package(last, model, depth, threads=threads, **options)


def _from_package(name: str, *args: Any, **options: Any) -> Engine:
    if not find_spec(name):
        raise InputError(f"engine {name}: the package is not installed; {INSTALL[name]}")
    return _make(name, *args, **options)


def _make(name: str, *args: Any, **options: Any) -> Engine:
    module, kind = MODULES[name]
    engine: Engine = getattr(import_module(module), kind)(*args, **options)
    return engine


def native_is_fastest(model: PackedModel) -> bool:
    """Whether the native engine is the fastest for this network on this processor.

    It is with AVX2, AVX-512 VNNI or AMX, and is taken for it on ARM64, where nothing was timed;
    except for a network without attention on a processor with AMX for which the kernels were
    compiled without it: OpenVINO uses it then.
    """
    best = library.best_isa()
    if best in (None, "plain"):
        return False
    if best == "amx" or has_attention(model):
        return True
    return "amx_int8" not in cpu.describe()[1]


def idles_matrix_units(engine: Engine) -> bool:
    """Whether an engine computes in vectors on a processor with AMX, whose matrix units OpenVINO
    uses."""
    return "amx_int8" in cpu.describe()[1] and getattr(engine, "in_sweeps", False)
