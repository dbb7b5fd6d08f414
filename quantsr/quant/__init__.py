"""Quantization: integer ranges, pure numerics, quantizers, layers, calibration.

Formulas are in functional.py, modules with state in quantizers.py, fast passes in autograd.py and
kernels.py. Methods are in ``*_quantizer.py``: RLQ and LSQ, RBD, and the baselines DoReFa,
PACT, LSQ+, PAMS, DDTB, ODM, MinMax and Percentile.
"""

from quantsr.quant import rlq_quantizer  # noqa: F401 - so that RLQ and LSQ are registered
from quantsr.quant.attention import QuantMatmul, QuantOperand, attention_products
from quantsr.quant.calibrate import calibrate, calibrating, layer_steps, uncalibrated
from quantsr.quant.dead import dead_quantizers, describe_dead
from quantsr.quant.functional import set_processes
from quantsr.quant.kernels import get_compile, set_compile
from quantsr.quant.layer_rules import Rule, manifest, manifest_table, quantize_layers
from quantsr.quant.layers import QuantConv2d, QuantizedLayer, QuantLinear, quantized_layers, set_exact_fp32
from quantsr.quant.quantizers import (
    QUANTIZER_REGISTRY,
    ActivationQuantizer,
    Quantizer,
    WeightQuantizer,
    get_quantizer,
    quantizer_names,
    step_magnitudes,
    step_parameters,
)
from quantsr.ranges import FLOAT_BITS, IntRange, check_bits

__all__ = [
    "FLOAT_BITS",
    "QUANTIZER_REGISTRY",
    "ActivationQuantizer",
    "IntRange",
    "QuantConv2d",
    "QuantLinear",
    "QuantMatmul",
    "QuantOperand",
    "QuantizedLayer",
    "Quantizer",
    "Rule",
    "WeightQuantizer",
    "attention_products",
    "calibrate",
    "calibrating",
    "check_bits",
    "dead_quantizers",
    "describe_dead",
    "get_compile",
    "get_quantizer",
    "layer_steps",
    "manifest",
    "manifest_table",
    "quantize_layers",
    "quantized_layers",
    "quantizer_names",
    "set_compile",
    "set_exact_fp32",
    "set_processes",
    "step_magnitudes",
    "step_parameters",
    "uncalibrated",
]
