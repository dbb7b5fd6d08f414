"""The native engine: QuantSR-C in C (`kernels.c`), from a picture to a picture. Imports neither torch nor OpenVINO.

`program.py` lays a folded network out for the kernels, `library.py` loads them, `engine.py` runs them.
"""
