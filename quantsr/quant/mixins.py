"""Classes of modules of foreign networks, extended by a mixin."""

from __future__ import annotations

from torch import nn

_MADE: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def with_mixin(mixin: type[nn.Module], kind: type[nn.Module]) -> type[nn.Module]:
    """The subclass of both, under the name of ``kind``; always the same one.

    As torch's parametrizations do, a module's class is replaced by it, so that all layers keep
    their names.
    """
    if (mixin, kind) not in _MADE:
        names = {"__module__": kind.__module__, "__doc__": kind.__doc__}
        _MADE[mixin, kind] = type(kind.__name__, (mixin, kind), names)
    return _MADE[mixin, kind]
