"""What cannot stand in pyproject.toml: the kernels of the native engine, and the tag of wheels.

Without a C compiler that can compile the kernels the package is installed without them; with
QUANTSR_REQUIRE_KERNELS=1 in the environment, as for the wheels of a release, that is an error.
"""

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

FOLDER = Path("quantsr/deploy/native")


def files(*suffixes: str) -> list[str]:
    """Files of the kernels, by their suffixes."""
    return sorted(str(path) for path in FOLDER.iterdir() if path.suffix in suffixes)


def version_without_scm() -> dict[str, str]:
    """The version where setuptools-scm, which reads it from git's tags, is not installed: an
    installation without build isolation."""
    if find_spec("setuptools_scm") is not None:
        return {}
    for file, pattern in (
        ("PKG-INFO", r"^Version: (.+)$"),
        ("pyproject.toml", r'^fallback_version = "(.+)"'),
    ):
        if Path(file).is_file() and (found := re.search(pattern, Path(file).read_text("utf-8"), re.M)):
            return {"version": found[1]}
    raise SystemExit("error: no version in pyproject.toml; install setuptools-scm")


class BuildKernels(build_ext):
    """Compiles files of the kernels side by side; says in one line why kernels were left out."""

    def side_by_side(self, compile_files, sources, **arguments):
        """As many compilers at once as cores that this process may use, or as `--parallel` says.
        First come the files that include all kernels, which take longest."""
        sources = sorted(sources, key=lambda source: '"strips.inc"' not in Path(source).read_text("utf-8"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with ThreadPoolExecutor(self.parallel or cores) as pool:
            objects = pool.map(lambda source: compile_files([source], **arguments), sources)
            return [file for files in objects for file in files]

    def get_ext_filename(self, fullname):
        """One name for every Python: the library is loaded by ctypes."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext):
        if self.compiler.compiler_type == "msvc":
            self.leave_out("MSVC has neither POSIX threads nor GCC's vector types")
            return
        self.compiler.compile = partial(self.side_by_side, self.compiler.compile)
        try:
            super().build_extension(ext)
        except (CCompilerError, BaseError) as error:
            self.leave_out(f"they could not be compiled ({error})")

    def leave_out(self, reason):
        """The package works without the kernels, on slower engines."""
        if os.environ.get("QUANTSR_REQUIRE_KERNELS"):
            raise SystemExit(f"error: the kernels of the native engine: {reason}")
        self.warn(f"quantsr is installed without the kernels of its native engine: {reason}")


class PlatformWheel(bdist_wheel):
    """One wheel for every Python 3 on a platform: the kernels use nothing of Python."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    **version_without_scm(),
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
    ext_modules=[
        # Not a Python module: a plain library, so that it needs no headers of Python. It is in this
        # list for its place and its name.
        Extension(
            "quantsr.deploy.native.kernels",
            files(".c"),
            depends=["setup.py", *files(".c", ".h", ".inc")],
            extra_compile_args=[
                "-g0",  # Python's own flags may ask for debugging information
                "-O3",
                "-ffp-contract=off",
                "-fwrapv",  # sums of 32 bits may wrap around (arrays.py), which C leaves undefined
                "-fvisibility=hidden",
                "-pthread",
                "-Wall",
                "-Wextra",
            ],
            libraries=["m"],  # sqrtf
            # The linker of macOS has no -s.
            extra_link_args=["-pthread", *([] if sys.platform == "darwin" else ["-s"])],
            optional=True,
        )
    ],
)
