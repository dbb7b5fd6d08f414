"""Quantization: integer ranges, pure numerics, quantizers, layers, calibration."""
