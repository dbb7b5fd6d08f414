"""The native engine: QuantSR-C and QuantSR-T in C, from a picture to a picture. Imports neither
torch nor OpenVINO. `kernels.h` says what each C file holds.

`program.py` and `swin_program.py` lay a folded network out for the kernels, `library.py` loads
them, `engine.py` runs them.
"""
