"""What cannot stand in pyproject.toml: the kernels of the native engine. Without a C compiler the package is installed without them."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        # Not a Python module: a plain library, so that it needs no headers of Python. It is in this list for its place and its name.
        Extension(
            "quantsr.deploy.native.kernels",
            ["quantsr/deploy/native/kernels.c"],
            depends=[
                "quantsr/deploy/native/network.h",
                "quantsr/deploy/native/strips.inc",
                "quantsr/deploy/native/swin.inc",
                "quantsr/deploy/native/winograd.inc",
            ],
            extra_compile_args=["-O3", "-ffp-contract=off", "-pthread", "-w"],
            extra_link_args=["-pthread", "-s"],
            optional=True,
        )
    ]
)
