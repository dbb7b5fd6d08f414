"""The one door to BasicSR 1.4.2: makes it importable on today's torchvision and keeps its faults
out.

The rest of the project imports BasicSR only from here. ``import basicsr`` itself runs the
initialisers of all its packages (some forty modules, among them every faulty one), so its packages
are entered here without running their ``__init__``; only the modules named below are executed,
unchanged. Used, not rewritten: the five registries, the float networks EDSR, MSRResNet and SwinIR,
the losses, PSNR and SSIM, ``PairedImageDataset``, the LMDB writer, the learning-rate schedulers,
the picture conversions and the model base class.

Five faults of the release must not be reachable, and this is how each is kept out:

1. It imports ``torchvision.transforms.functional_tensor``, which torchvision 0.17 removed (and
   ``distutils``, which Python 3.12 removed). No module used here imports the former; where either
   is missing, `importable` lends a stand-in while importing, and takes it back after.
2. Its setup.py fails on Python 3.13. The package's metadata asks for it on Python 3.10-3.12 only,
   and a missing BasicSR is an `InputError` that names the remedy.
3. ``utils/dist_util.py`` passes an environment variable to a shell (CVE-2024-27763). Its
   ``init_dist`` functions are replaced by one that refuses; processes are started by
   ``quantsr.hardware.processes``.
4. ``utils/options.py`` runs ``exec``, ``eval`` and the full YAML loader, and
   ``models/base_model.py`` swallows failed checkpoint writes. The former is never imported (options
   are read by ``quantsr.config``); of the latter, `BaseModel` is a subclass whose saving and
   loading refuse until a subclass provides its own (``quantsr.engine.checkpoint``).
5. ``models/sr_model.py``'s self-ensemble reads ``net_g_ema`` even when there is none. It is never
   imported; the only evaluation loop is ``quantsr.engine.evaluate``.

Other modules of BasicSR (another float network, say) can be imported in the same way, and register
themselves::

    from quantsr.basicsr_compat import importable
    with importable():
        import basicsr.archs.rcan_arch
"""

from __future__ import annotations

import contextlib
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
    "BaseModel",
    "CharbonnierLoss",
    "CosineAnnealingRestartLR",
    "L1Loss",
    "LmdbMaker",
    "MSELoss",
    "MSRResNet",
    "MultiStepRestartLR",
    "PairedImageDataset",
    "Registry",
    "SwinIR",
    "Upsample",
    "calculate_psnr",
    "calculate_ssim",
    "img2tensor",
    "importable",
    "tensor2img",
]

#: Packages whose own initialisers are left out. ``basicsr.utils`` imports only what is used here
#: and runs as it is.
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
    """What ``distutils.version.LooseVersion`` did for release numbers: compares the leading
    numbers."""

    def __init__(self, text: str) -> None:
        self.version = [int(number) for number in re.findall(r"\d+", text.split("+")[0])]

    def __lt__(self, other: _LooseVersion) -> bool:
        return self.version < other.version

    def __ge__(self, other: _LooseVersion) -> bool:
        return self.version >= other.version


def _standins() -> dict[str, types.ModuleType]:
    """Modules that BasicSR imports and that this installation does not have."""
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
    """While entered, modules of BasicSR can be imported: missing modules are lent, its import
    warnings are quiet."""
    lent = {name: module for name, module in _standins().items() if name not in sys.modules}
    sys.modules.update(lent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, module in lent.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _enter_packages() -> None:
    """Puts BasicSR's packages into ``sys.modules`` without running their initialisers."""
    if "basicsr" in sys.modules:  # somebody imported all of it before: nothing is left to leave out
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
    """Stands where ``basicsr.utils.dist_util.init_dist`` did (CVE-2024-27763)."""
    raise RuntimeError(
        "BasicSR's init_dist hands an environment variable to a shell; use quantsr.hardware.processes"
    )


_enter_packages()
try:
    with importable():
        from basicsr.archs.arch_util import Upsample
        from basicsr.archs.edsr_arch import EDSR
        from basicsr.archs.srresnet_arch import MSRResNet
        from basicsr.archs.swinir_arch import SwinIR
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
"""Our own, of the same class: every quantizer by its name."""

for _name in ("init_dist", "_init_dist_pytorch", "_init_dist_slurm"):
    setattr(dist_util, _name, _refuse_init_dist)


class BaseModel(base_model.BaseModel):
    """BasicSR's model base class without its file handling, which ignores failed writes and
    unpickles what it reads."""

    def save_network(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: write through ``quantsr.engine.checkpoint``."""
        raise RuntimeError("BasicSR's save_network ignores failed writes; use quantsr.engine.checkpoint")

    def save_training_state(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: write through ``quantsr.engine.checkpoint``."""
        raise RuntimeError(
            "BasicSR's save_training_state ignores failed writes; use quantsr.engine.checkpoint"
        )

    def load_network(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: read through ``quantsr.engine.checkpoint``."""
        raise RuntimeError("BasicSR's load_network may run code in a file; use quantsr.engine.checkpoint")
