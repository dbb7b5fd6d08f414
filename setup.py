"""What cannot stand in pyproject.toml: the kernels of the native engine. Without a C compiler the
package is installed without them."""

from pathlib import Path
from zlib import crc32

from setuptools import Extension, setup

FOLDER = "quantsr/deploy/native"
SOURCES = sorted(path for path in Path(FOLDER).iterdir() if path.suffix in (".c", ".h", ".inc"))
CHECKSUM = crc32(b"".join(path.read_bytes() for path in SOURCES))  # as library.py has it

setup(
    ext_modules=[
        # Not a Python module: a plain library, so that it needs no headers of Python. It is in this
        # list for its place and its name.
        Extension(
            "quantsr.deploy.native.kernels",
            [f"{FOLDER}/kernels.c"],
            depends=["setup.py", *map(str, SOURCES)],
            define_macros=[("QUANTSR_ABI", f"{CHECKSUM}u")],
            # Sums of 32 bits may wrap around (arrays.py), which C leaves undefined.
            extra_compile_args=["-O3", "-ffp-contract=off", "-fwrapv", "-pthread", "-w"],
            extra_link_args=["-pthread", "-s"],
            optional=True,
        )
    ]
)
