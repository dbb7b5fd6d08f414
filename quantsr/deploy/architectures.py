"""The kinds of networks that pack and run as integers. Imports no torch."""

from __future__ import annotations

from quantsr.deploy.architecture import Architecture
from quantsr.deploy.model import Header
from quantsr.deploy.quantsr_c import QuantSRC
from quantsr.deploy.quantsr_t import QuantSRT

_BY_TYPE: dict[str, Architecture] = {
    "QuantSR_C": QuantSRC(),
    "QEDSR_Ours": QuantSRC(),
    "QuantSR_T": QuantSRT(),
}


def of(header: Header) -> Architecture:
    """The architecture of a network. Raises ValueError for one that is unknown."""
    kind = header.arch.get("type")
    if not isinstance(kind, str) or kind not in _BY_TYPE:
        raise ValueError(f"architecture '{kind}' is unknown")
    return _BY_TYPE[kind]
