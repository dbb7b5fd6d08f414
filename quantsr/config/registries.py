"""What is registered: networks, model classes, quantizers, losses, metrics, data sets. Imports torch, and only when asked.

Files of certain names are imported first, so that what stands in them is registered: ``archs/*_arch.py``, ``models/*_model.py``,
``models/*_loss.py``, ``quant/*_quantizer.py``, ``engine/*_metric.py``, ``data/*_dataset.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from quantsr.discovery import import_files


def networks() -> dict[str, Callable[..., Any]]:
    """Every network by the name under which an option file asks for it."""
    from quantsr.basicsr_compat import ARCH_REGISTRY

    import_files("archs", "_arch")
    return dict(iter(ARCH_REGISTRY))


def models() -> dict[str, Callable[..., Any]]:
    """Every model class that the trainer can drive, by the name that ``model_type`` takes: `QuantSRModel` and its subclasses.

    ``SRModel``, the name in BasicSR's option files, is `QuantSRModel`; BasicSR's own class of that name is no subclass.
    """
    from quantsr.basicsr_compat import MODEL_REGISTRY

    import_files("models", "_model")
    ours = MODEL_REGISTRY.get("QuantSRModel")
    found = {name: kind for name, kind in MODEL_REGISTRY if isinstance(kind, type) and issubclass(kind, ours)}
    return {**found, "SRModel": found.get("SRModel", ours)}


def quantizers() -> list[str]:
    """The names of the quantizers."""
    from quantsr.quant import quantizer_names

    return quantizer_names()


def losses() -> dict[str, Callable[..., Any]]:
    """Every pixel loss by name: one that is made with ``loss_weight`` and ``reduction``, and called with output and target."""
    from quantsr.basicsr_compat import LOSS_REGISTRY

    import_files("models", "_loss")
    return {name: loss for name, loss in LOSS_REGISTRY if _is_pixel_loss(loss)}


def _is_pixel_loss(loss: Any) -> bool:
    called = inspect.signature(getattr(loss, "forward", loss)).parameters.values()
    needed = [p for p in called if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return len(needed) == 3 and {"loss_weight", "reduction"} <= parameters(loss).keys()  # the first is self


def metrics() -> list[str]:
    """The names of the metrics of two uint8 pictures; BasicSR's for tensors end in ``_pt``."""
    from quantsr.basicsr_compat import METRIC_REGISTRY

    import_files("engine", "_metric")
    return [name for name in _names(METRIC_REGISTRY) if not name.endswith("_pt")]


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword arguments that a class or function takes.

    Where a class hands ``**kwargs`` on to its base class, those of the base class too.
    """
    found: dict[str, inspect.Parameter] = {}
    owners: Iterable[Any] = target.__mro__ if isinstance(target, type) else (target,)
    for owner in owners:
        function = owner.__dict__.get("__init__") if isinstance(owner, type) else owner
        if function is None:
            continue
        signature = list(inspect.signature(function).parameters.values())
        for parameter in signature[1:] if isinstance(owner, type) else signature:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature):
            break
    return found


def dataset_types() -> list[str]:
    """The names of the data set types: the project's, BasicSR's and what else is registered."""
    from quantsr.basicsr_compat import DATASET_REGISTRY

    import_files("data", "_dataset")
    return sorted({"CroppedImageDataset", "SkimageDataset", *_names(DATASET_REGISTRY)})


def _names(registry: Any) -> list[str]:
    return [str(name) for name in registry.keys()]  # noqa: SIM118 (BasicSR's registries iterate over pairs)
