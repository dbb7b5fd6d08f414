"""Networks that the package spandrel recognizes by the names of their parameters."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from quantsr.archs.prepared import prepare
from quantsr.archs.sizes import take_any_size
from quantsr.basicsr_compat import ARCH_REGISTRY
from quantsr.errors import InputError
from quantsr.trained_files import checkpoint


def Spandrel(file: str, scale: int | None = None) -> nn.Module:
    """The network of a checkpoint, with its parameters (https://github.com/chaiNNer-org/spandrel)
    as quantization takes it (`quantsr.archs.prepared`), for pictures of any size.

    Args:
        file: a checkpoint of tensors only; no code in it is run.
        scale: its upscaling factor; default: whatever it has.

    Raises:
        InputError: spandrel is not installed or does not recognize the network, or it has another
            scale or other channels than one or three.
    """
    path = Path(file).expanduser()
    try:
        from spandrel import ModelLoader, UnsupportedModelError, canonicalize_state_dict
    except ImportError as error:
        raise InputError(
            f"network_g.type: Spandrel needs the package spandrel; pip install spandrel ({error})"
        ) from error
    content = checkpoint.load(path)
    try:
        found = ModelLoader(device="cpu").load_from_state_dict(canonicalize_state_dict(content))
    except UnsupportedModelError as error:
        raise InputError(
            f"{path}: spandrel does not recognize its network; give an option file with network_g by -opt FILE"
        ) from error
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: spandrel cannot load it ({reason}); fetch it again") from error
    if (found.input_channels, found.output_channels) not in ((1, 1), (3, 3)):
        raise InputError(
            f"{path}: has {found.input_channels} and {found.output_channels} channels instead of 1 or 3"
        )
    if scale is not None and found.scale != scale:
        raise InputError(f"{path}: is a network of x{found.scale}, not of x{scale}")
    net = take_any_size(
        found.model.eval(),
        multiple=found.size_requirements.multiple_of,
        scale=found.scale,
        channels=found.input_channels,
        least=found.size_requirements.minimum,
    )
    try:
        return prepare(net)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


ARCH_REGISTRY.register(Spandrel)
