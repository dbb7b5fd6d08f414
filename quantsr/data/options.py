"""Data-set sections as complete mappings: every key of the schema, with its default where the
section does not give it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from quantsr.config.sections import DatasetOptions

_FOLDERS = ("dataroot_gt", "dataroot_lq", "meta_info_file")


def complete(options: Mapping[str, Any] | DatasetOptions, **extra: Any) -> dict[str, Any]:
    """A new nested dict with every key of the schema; ``extra`` overrides, ``~`` in folders is
    expanded.

    Keys that are not in the schema are kept: registered data sets may have their own.
    """
    given = options.model_dump() if isinstance(options, DatasetOptions) else dict(options)
    found = {key: _copy(value) for key, value in {**_defaults(), **given, **extra}.items()}
    for key in _FOLDERS:
        if isinstance(found[key], str):
            found[key] = os.path.expanduser(found[key])
    return found


def for_basicsr(options: Mapping[str, Any]) -> dict[str, Any]:
    """The section as BasicSR's classes take it: keys without a value are left out, so that the
    defaults of the class apply."""
    return {key: value for key, value in options.items() if value is not None}


def _defaults() -> dict[str, Any]:
    found = {}
    for name, field in DatasetOptions.model_fields.items():
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            found[name] = value.model_dump() if isinstance(value, BaseModel) else value
    return found


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, (list, tuple)) else value
