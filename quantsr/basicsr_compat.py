"""The only importer of BasicSR 1.4.2: makes it importable with current torchvision and without its
faulty modules.

The rest of the project imports BasicSR only from here. ``import basicsr`` itself runs the
initialisers of all its packages (some forty modules, among them every faulty one), so its packages
are put into ``sys.modules`` without running their ``__init__``; only the modules named below run,
unchanged. Used are: the five registries, the float networks EDSR, MSRResNet, RCAN, RRDBNet,
SRVGGNetCompact and SwinIR, the losses,
PSNR and SSIM, ``PairedImageDataset``, the LMDB writer, the learning-rate schedulers, the picture
conversions and the model base class.

Five faults of the release must not be reachable:

1. It imports ``torchvision.transforms.functional_tensor``, which torchvision 0.17 removed (and
   ``distutils``, which Python 3.12 removed). No module used here imports the former; where either
   is missing, `importable` puts a substitute into ``sys.modules`` and removes it after the import.
2. Its setup.py fails on Python 3.13. The package's metadata requires it on Python 3.10-3.12 only,
   and a missing BasicSR is an `InputError` that names the remedy.
3. ``utils/dist_util.py`` passes an environment variable to a shell (CVE-2024-27763). Its
   ``init_dist`` functions are replaced by one that raises; processes are started by
   ``quantsr.hardware.processes``.
4. ``utils/options.py`` runs ``exec``, ``eval`` and the full YAML loader, and
   ``models/base_model.py`` ignores failed checkpoint writes. The former is never imported (options
   are read by ``quantsr.config``); for the latter, `BaseModel` is a subclass whose methods for
   saving and loading raise (checkpoints: ``quantsr.trained_files.checkpoint``).
5. ``models/sr_model.py``'s self-ensemble reads ``net_g_ema`` even when there is none. It is never
   imported; the only evaluation loop is ``quantsr.engine.evaluate``.

Other modules of BasicSR, such as another float network, can be imported in the same way, and
register themselves::

    from quantsr.basicsr_compat import importable
    with importable():
        import basicsr.archs.ridnet_arch
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import importlib.util
import re
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

from quantsr.errors import InputError

__all__ = [
    "ARCH_REGISTRY",
    "DATASET_REGISTRY",
    "EDSR",
    "LOSS_REGISTRY",
    "METRIC_REGISTRY",
    "MODEL_REGISTRY",
    "QUANTIZER_REGISTRY",
    "RCAN",
    "BaseModel",
    "CharbonnierLoss",
    "CosineAnnealingRestartLR",
    "L1Loss",
    "LmdbMaker",
    "MSELoss",
    "MSRResNet",
    "MultiStepRestartLR",
    "PairedImageDataset",
    "RRDBNet",
    "Registry",
    "SRVGGNetCompact",
    "SwinIR",
    "Upsample",
    "WindowAttention",
    "calculate_psnr",
    "calculate_ssim",
    "degradations",
    "img2tensor",
    "importable",
    "tensor2img",
]

#: Packages whose initialisers are not run. That of ``basicsr.utils`` is run: it imports only
#: modules that are used here.
_PACKAGES = (
    "basicsr",
    "basicsr.archs",
    "basicsr.data",
    "basicsr.losses",
    "basicsr.metrics",
    "basicsr.models",
    "basicsr.ops",
)

_REMEDY = "install the training extra, `pip install 'quantsr[train]'`, under Python 3.10, 3.11 or 3.12"


class _LooseVersion:
    """A substitute for ``distutils.version.LooseVersion``: compares the numbers of a release."""

    def __init__(self, text: str) -> None:
        self.version = [int(number) for number in re.findall(r"\d+", text.split("+")[0])]

    def __lt__(self, other: _LooseVersion) -> bool:
        return self.version < other.version

    def __ge__(self, other: _LooseVersion) -> bool:
        return self.version >= other.version


def _substitutes() -> dict[str, types.ModuleType]:
    """Substitutes for modules that BasicSR imports and that this installation does not have."""
    found: dict[str, types.ModuleType] = {}
    if importlib.util.find_spec("torchvision.transforms.functional_tensor") is None:
        from torchvision.transforms.functional import rgb_to_grayscale

        module = types.ModuleType("torchvision.transforms.functional_tensor")
        module.rgb_to_grayscale = rgb_to_grayscale  # type: ignore[attr-defined]
        found[module.__name__] = module
    if "distutils" not in sys.modules and importlib.util.find_spec("distutils") is None:
        package, version = types.ModuleType("distutils"), types.ModuleType("distutils.version")
        version.LooseVersion = _LooseVersion  # type: ignore[attr-defined]
        package.version = version  # type: ignore[attr-defined]
        found.update({"distutils": package, "distutils.version": version})
    return found


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """While entered, modules of BasicSR can be imported: missing modules have substitutes, and
    import warnings are suppressed."""
    added = {name: module for name, module in _substitutes().items() if name not in sys.modules}
    sys.modules.update(added)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _enter_packages() -> None:
    """Puts BasicSR's packages into ``sys.modules`` without running their initialisers."""
    if "basicsr" in sys.modules:  # imported before, and its initialisers have run
        return
    path: Any = None
    for name in _PACKAGES:
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None:
            raise InputError(f"basicsr: not installed for Python {sys.version.split()[0]}; {_REMEDY}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
        else:
            path = module.__path__


def _refuse_init_dist(*args: Any, **kwargs: Any) -> NoReturn:
    """Replaces ``basicsr.utils.dist_util.init_dist`` (CVE-2024-27763)."""
    raise RuntimeError(
        "BasicSR's init_dist passes an environment variable to a shell; use quantsr.hardware.processes"
    )


_enter_packages()
try:
    with importable():
        from basicsr.archs.arch_util import Upsample
        from basicsr.archs.edsr_arch import EDSR
        from basicsr.archs.rcan_arch import RCAN
        from basicsr.archs.rrdbnet_arch import RRDBNet
        from basicsr.archs.srresnet_arch import MSRResNet
        from basicsr.archs.srvgg_arch import SRVGGNetCompact
        from basicsr.archs.swinir_arch import SwinIR, WindowAttention
        from basicsr.data.paired_image_dataset import PairedImageDataset
        from basicsr.losses.basic_loss import CharbonnierLoss, L1Loss, MSELoss
        from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
        from basicsr.models import base_model
        from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
        from basicsr.utils import dist_util, img2tensor, tensor2img
        from basicsr.utils.lmdb_util import LmdbMaker
        from basicsr.utils.registry import (
            ARCH_REGISTRY,
            DATASET_REGISTRY,
            LOSS_REGISTRY,
            METRIC_REGISTRY,
            MODEL_REGISTRY,
            Registry,
        )
except ImportError as error:
    raise InputError(f"basicsr: cannot be imported ({error}); {_REMEDY}") from error

QUANTIZER_REGISTRY = Registry("quantizer")
"""The registry of quantizers by name, of BasicSR's class."""

for _name in ("init_dist", "_init_dist_pytorch", "_init_dist_slurm"):
    setattr(dist_util, _name, _refuse_init_dist)


class BaseModel(base_model.BaseModel):
    """BasicSR's model base class without its reading and writing of files, which ignores failed
    writes and unpickles arbitrary objects."""

    def save_network(self, *args: Any, **kwargs: Any) -> None:
        """Raises: write through ``quantsr.trained_files.checkpoint``."""
        raise RuntimeError(
            "BasicSR's save_network ignores failed writes; use quantsr.trained_files.checkpoint"
        )

    def save_training_state(self, *args: Any, **kwargs: Any) -> None:
        """Raises: write through ``quantsr.trained_files.checkpoint``."""
        raise RuntimeError(
            "BasicSR's save_training_state ignores failed writes; use quantsr.trained_files.checkpoint"
        )

    def load_network(self, *args: Any, **kwargs: Any) -> None:
        """Raises: read through ``quantsr.trained_files.checkpoint``."""
        raise RuntimeError(
            "BasicSR's load_network may run code in a file; use quantsr.trained_files.checkpoint"
        )


@functools.cache
def degradations() -> types.SimpleNamespace:
    """BasicSR's data set ``RealESRGANDataset`` and the operations of its degradations, imported
    only where they are used: ``gaussian``, ``poisson``, ``jpeg`` and ``filter2D``."""
    with importable():
        from basicsr.data.degradations import random_add_gaussian_noise_pt, random_add_poisson_noise_pt
        from basicsr.data.realesrgan_dataset import RealESRGANDataset
        from basicsr.utils.diffjpeg import DiffJPEG
        from basicsr.utils.img_process_util import filter2D
    return types.SimpleNamespace(
        RealESRGANDataset=RealESRGANDataset,
        gaussian=random_add_gaussian_noise_pt,
        poisson=random_add_poisson_noise_pt,
        jpeg=DiffJPEG(differentiable=False),
        filter2D=filter2D,
    )
