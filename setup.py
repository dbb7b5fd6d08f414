"""What cannot stand in pyproject.toml: the kernels of the native engine. Without a C compiler that
can compile them the package is installed without them."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

FOLDER = Path("quantsr/deploy/native")


def files(*suffixes: str) -> list[str]:
    """Files of the kernels, by their suffixes."""
    return sorted(str(path) for path in FOLDER.iterdir() if path.suffix in suffixes)


class BuildKernels(build_ext):
    """Says in one line why the kernels were left out."""

    def build_extension(self, ext):
        if self.compiler.compiler_type == "msvc":
            self.leave_out("MSVC has neither POSIX threads nor GCC's vector types")
            return
        try:
            super().build_extension(ext)
        except (CCompilerError, BaseError) as error:
            self.leave_out(f"they could not be compiled ({error})")

    def leave_out(self, reason):
        """The package works without the kernels, on slower engines."""
        self.warn(f"quantsr is installed without the kernels of its native engine: {reason}")


setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=[
        # Not a Python module: a plain library, so that it needs no headers of Python. It is in this
        # list for its place and its name.
        Extension(
            "quantsr.deploy.native.kernels",
            files(".c"),
            depends=["setup.py", *files(".c", ".h", ".inc")],
            extra_compile_args=[
                "-O3",
                "-ffp-contract=off",
                "-fwrapv",  # sums of 32 bits may wrap around (arrays.py), which C leaves undefined
                "-fvisibility=hidden",
                "-pthread",
                "-Wall",
                "-Wextra",
            ],
            # The linker of macOS has no -s.
            extra_link_args=["-pthread", *([] if sys.platform == "darwin" else ["-s"])],
            optional=True,
        )
    ],
)
