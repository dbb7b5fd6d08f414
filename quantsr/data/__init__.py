"""Pictures in: resizing, data sets, loaders and preparation.

`build_train_loader` and `build_eval_dataset` are what training and evaluation ask for; both need the extra ``[train]``,
so they are imported on first use, while `quantsr.data.resize` needs only numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantsr.data.resize import imresize_uint8, mod_crop

if TYPE_CHECKING:
    from quantsr.data.evaluation import EvalDataset, build_eval_dataset
    from quantsr.data.loader import TrainLoader, build_train_loader

__all__ = [
    "EvalDataset",
    "TrainLoader",
    "build_eval_dataset",
    "build_train_loader",
    "imresize_uint8",
    "mod_crop",
]

_HOMES = {
    "EvalDataset": "quantsr.data.evaluation",
    "TrainLoader": "quantsr.data.loader",
    "build_eval_dataset": "quantsr.data.evaluation",
    "build_train_loader": "quantsr.data.loader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
