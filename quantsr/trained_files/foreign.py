"""Checkpoints of other programs: prefixes that wrappers of a network add to names, and other
projects' names of the same layers.

A state dict is renamed where the mapping is unambiguous; else `naming` finds the project whose
names it has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

# torch.compile, FullyShardedDataParallel and activation checkpointing insert these anywhere in a
# name.
_INNER_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# Buffers that are computed from the constructor's arguments, but are in the state dicts of SwinIR
# and related networks.
_DERIVED = re.compile(r"(^|\.)(attn_mask|relative_position_index(_\w+)?|relative_coords_table)$")

_MEANS = ("sub_mean.", "add_mean.")


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the additions of torch's wrappers: ``module.``, ``_orig_mod.``,
    ``n_averaged``.

    ``module.`` (DataParallel, DistributedDataParallel, AveragedModel) is removed where every name
    begins with it.

    Raises:
        ValueError: two names become equal.
    """
    found = dict(state)
    while True:
        names = {name: _INNER_WRAPPERS.sub("", name) for name in found if name != "n_averaged"}
        if names and all(name.startswith("module.") for name in names.values()):
            names = {name: new.removeprefix("module.") for name, new in names.items()}
        elif "n_averaged" in found:  # only AveragedModel has it, whose other names have "module."
            names["n_averaged"] = "n_averaged"
        if len(set(names.values())) < len(names):
            raise ValueError("it holds parameters twice, with and without a wrapper's prefix")
        if all(name == new for name, new in names.items()) and len(names) == len(found):
            return found
        found = {new: found[name] for name, new in names.items()}


def without_prefix(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """The state dict without a prefix like ``net_g.`` or ``model.``, under which another program
    keeps the whole network.

    Args:
        state: names and tensors.
        own: the names of the network that is to be loaded.

    Returns:
        ``state`` itself where its names begin like the network's. A prefix is removed where all
        names share it, or where the names after this prefix, and after no other, are exactly the
        network's; entries without it (a discriminator, a loss) are then dropped.
    """
    found = dict(state)
    beginnings = {name.partition(".")[0] for name in own}
    while found:
        firsts = {name.partition(".")[0] for name in found}
        if firsts & beginnings or len(firsts) > 1 or not all("." in name for name in found):
            break
        found = {name.partition(".")[2]: tensor for name, tensor in found.items()}
    if not found or {name.partition(".")[0] for name in found} & beginnings:
        return found
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = tensor
    needed = {name for name in own if not _DERIVED.search(name)}
    exact = [
        group for group in groups.values() if needed <= group.keys() <= {*own, *filter(is_derived, group)}
    ]
    return exact[0] if len(exact) == 1 else dict(state)


def is_derived(name: str) -> bool:
    """Whether an entry is a buffer computed from the constructor's arguments, such as SwinIR's
    ``attn_mask``."""
    return _DERIVED.search(name) is not None


def is_edsr_pytorch(state: Mapping[str, Any]) -> bool:
    """Whether the names are those of EDSR in EDSR-PyTorch
    (https://github.com/sanghyun-son/EDSR-PyTorch)."""
    return {"head.0.weight", "body.0.body.0.weight", "tail.0.0.weight"} <= state.keys()


def from_edsr_pytorch(state: Mapping[str, Tensor], net: Any) -> dict[str, Tensor]:
    """EDSR-PyTorch's EDSR under BasicSR's names, which QuantSR-C has too.

    The inputs of its networks are pictures in 0..255 minus a mean that is in the file; the residual
    scaling factor (0.1 in its large network) is not in the file.

    Args:
        state: names and tensors.
        net: the network to load, whose attributes ``mean`` (1, 3, 1, 1) and ``img_range`` must be
            those of the file.

    Raises:
        ValueError: the file has another mean or range.
    """
    mean, wide = getattr(net, "mean", None), getattr(net, "img_range", None)
    bias = state.get("sub_mean.bias")
    if bias is not None and (mean is None or wide is None or not _same(bias, -wide * mean.reshape(-1))):
        raise ValueError(
            "its names are those of EDSR-PyTorch (head.0, body.N.body.0, tail), but the mean in its sub_mean.bias is "
            f"{[round(v, 2) for v in bias.flatten().tolist()[:3]]}, where this network subtracts "
            "rgb_mean * img_range; set network_g.rgb_mean and img_range (255) to it"
        )
    numbers = [int(match[1]) for name in state if (match := re.match(r"body\.(\d{1,6})\.body\.", name))]
    last = f"body.{max(numbers) + 1}."
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(_MEANS):
            continue
        new = re.sub(r"^(body\.\d+)\.body\.0\.", r"\1.conv1.", name)
        new = re.sub(r"^(body\.\d+)\.body\.2\.", r"\1.conv2.", new)
        for old, ours in (("head.0.", "conv_first."), (last, "conv_after_body."), ("tail.0.", "upsample.")):
            new = ours + new[len(old) :] if new.startswith(old) else new
        renamed[re.sub(r"^tail\.1\.", "conv_last.", new)] = tensor
    return renamed


def _same(values: Tensor, wanted: Tensor) -> bool:
    wanted = wanted.detach().cpu().float()
    return values.shape == wanted.shape and bool(((values.float() - wanted).abs() < 0.01).all())


_NAMINGS = (
    (r"head\.0\.|tail\.0\.0\.", "EDSR-PyTorch"),
    (r"model\.1\.sub\.\d", "the first ESRGAN code (model.0, model.1.sub.N)"),
    (r"layers\.\d+\.residual_group\.blocks\.", "SwinIR"),
    (r"(body|RRDB_trunk)\.\d+\.rdb\d\.|(body|RRDB_trunk)\.\d+\.RDB\d\.", "RRDBNet (ESRGAN)"),
    (r"upconv1\.", "BasicSR's MSRResNet"),
    (r".*\.channel_threshold$|.*\.ActOurs\.", "the released QuantSR"),
    (r"body\.\d+\.conv1\.", "BasicSR's EDSR or QuantSR-C"),
)


def naming(names: Collection[str]) -> str | None:
    """The project that uses these names, None where it is unknown."""
    for pattern, project in _NAMINGS:
        if any(re.match(pattern, name) for name in names):
            return project
    return None
