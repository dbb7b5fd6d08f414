"""Network architectures. Importing this package registers them in BasicSR's ARCH_REGISTRY."""

from quantsr.archs.quantsr_c_arch import QuantSR_C
from quantsr.archs.quantsr_t_arch import QuantSR_T
from quantsr.archs.released import QEDSR_Ours

__all__ = ["QEDSR_Ours", "QuantSR_C", "QuantSR_T"]
