"""The native engine: networks in C, from a picture to a picture. Imports neither torch nor
OpenVINO. `kernels.h` says what each C file holds.

`program.py` (blocks as EDSR's), `swin_program.py` and, for all other networks, `sweep_program.py`
lay a folded network out for the kernels, `library.py` loads them, `engine.py` runs them.
"""
