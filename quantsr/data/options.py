"""Data-set options as the plain mapping that BasicSR's classes take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def as_plain(options: Any, **extra: Any) -> dict[str, Any]:
    """A mapping or a validated options object to a fresh nested dict; ``extra`` wins, ``~`` in folders is expanded.

    A key whose value is None is left out, so that BasicSR's ``opt.get(key, default)`` and ``'key' in opt`` see its default.
    """
    plain = dict(options) if isinstance(options, Mapping) else options.model_dump()
    plain = {key: _copy(value) for key, value in {**plain, **extra}.items() if value is not None}
    for key in ("dataroot_gt", "dataroot_lq", "meta_info_file"):
        if isinstance(plain.get(key), str):
            plain[key] = os.path.expanduser(plain[key])
    plain.setdefault("io_backend", {"type": "disk"})
    return plain


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, (list, tuple)) else value
