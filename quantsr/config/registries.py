"""Registered names that option files can use: networks, model classes, quantizers, losses, metrics,
data sets, optimizers, schedulers.

torch is imported by the functions, not with this module.

Files of certain names are imported first, so that their classes and functions are registered:
``archs/*_arch.py``, ``models/*_model.py``, ``models/*_loss.py``, ``quant/*_quantizer.py``,
``engine/*_metric.py``, ``data/*_dataset.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from quantsr.config.binding import parameters
from quantsr.discovery import import_files


def networks() -> dict[str, Callable[..., Any]]:
    """Every network by its registered name, the ``type`` of ``network_g``."""
    from quantsr.basicsr_compat import ARCH_REGISTRY

    import_files("archs", "_arch")
    # BasicSR registers some of its networks under a suffix that option files leave out
    return {name.removesuffix("_basicsr"): network for name, network in ARCH_REGISTRY}


def models() -> dict[str, Callable[..., Any]]:
    """Every model class for training, by the name that ``model_type`` takes: `QuantSRModel` and its
    subclasses.

    ``SRModel``, the name in BasicSR's option files, stands for `QuantSRModel`; BasicSR's own class
    of that name is not a subclass.
    """
    from quantsr.basicsr_compat import MODEL_REGISTRY

    import_files("models", "_model")
    ours = MODEL_REGISTRY.get("QuantSRModel")
    found = {name: kind for name, kind in MODEL_REGISTRY if isinstance(kind, type) and issubclass(kind, ours)}
    return {**found, "SRModel": found.get("SRModel", ours)}


def quantizers() -> list[str]:
    """The names of the quantizers."""
    from quantsr.basicsr_compat import QUANTIZER_REGISTRY

    import_files("quant", "_quantizer")
    return sorted(_names(QUANTIZER_REGISTRY))


def losses() -> dict[str, Callable[..., Any]]:
    """Every loss by name that is a torch module called with output and target.

    BasicSR's losses are included only if they compare pixels: others take features or the output of
    a discriminator.
    """
    from quantsr.basicsr_compat import LOSS_REGISTRY

    import_files("models", "_loss")
    return {name: loss for name, loss in LOSS_REGISTRY if _compares_two(loss)}


def _compares_two(loss: Any) -> bool:
    forward = getattr(loss, "forward", None)
    if not isinstance(loss, type) or forward is None:
        return False
    called = inspect.signature(forward).parameters.values()
    needed = [p for p in called if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if loss.__module__.startswith("basicsr.") and not {"loss_weight", "reduction"} <= parameters(loss).keys():
        return False
    return len(needed) == 3  # the first is self


def metrics() -> dict[str, Callable[..., Any]]:
    """Every metric of two uint8 pictures by name; BasicSR's for tensors, which end in ``_pt``, are
    left out."""
    from quantsr.basicsr_compat import METRIC_REGISTRY

    import_files("engine", "_metric")
    return {name: metric for name, metric in METRIC_REGISTRY if not name.endswith("_pt")}


def optimizers() -> dict[str, Callable[..., Any]]:
    """Every optimizer by name: those of torch.optim that step without a closure, Muon among
    them."""
    from torch import optim

    found = {name: kind for name, kind in vars(optim).items() if isinstance(kind, type)}
    usable = {n: k for n, k in found.items() if issubclass(k, optim.Optimizer) and k is not optim.Optimizer}
    return {name: kind for name, kind in usable.items() if name not in ("LBFGS", "SparseAdam")}


def schedulers() -> dict[str, Callable[..., Any]]:
    """Every learning-rate schedule by name: BasicSR's, and those of torch that depend on the
    iteration alone."""
    from torch.optim import lr_scheduler

    from quantsr.basicsr_compat import CosineAnnealingRestartLR, MultiStepRestartLR

    base = lr_scheduler.LRScheduler
    found = {
        name: kind
        for name, kind in vars(lr_scheduler).items()
        if isinstance(kind, type) and issubclass(kind, base) and not name.startswith("_") and kind is not base
    }
    for name in ("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler", "ReduceLROnPlateau"):
        found.pop(name, None)
    basicsr = {"CosineAnnealingRestartLR": CosineAnnealingRestartLR, "MultiStepRestartLR": MultiStepRestartLR}
    return {**found, **basicsr, "MultiStepLR": MultiStepRestartLR}


def datasets() -> dict[str, Callable[..., Any]]:
    """Every registered data set by name: the training sets of the project and of BasicSR, and the
    user's."""
    from quantsr.basicsr_compat import DATASET_REGISTRY

    import_files("data", "_dataset")
    return dict(iter(DATASET_REGISTRY))


def dataset_types() -> list[str]:
    """The names that ``datasets.<key>.type`` takes."""
    return sorted({"CroppedImageDataset", "SkimageDataset", *datasets()})


def _names(registry: Any) -> list[str]:
    return [str(name) for name in registry.keys()]  # noqa: SIM118 (BasicSR's registries iterate over pairs)
