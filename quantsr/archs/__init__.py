"""Network architectures, registered in BasicSR's ARCH_REGISTRY: importing this package registers all of ours."""

from quantsr.archs.quantsr_c_arch import QuantSR_C
from quantsr.archs.quantsr_t_arch import QuantSR_T
from quantsr.archs.released import QEDSR_Ours

__all__ = ["QEDSR_Ours", "QuantSR_C", "QuantSR_T"]
