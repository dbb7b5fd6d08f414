"""Trained networks as torch modules: `load` from one file, `trained_network` for the options of a
test."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantsr.archs import contract
from quantsr.archs.prepared import prepare
from quantsr.archs.trial import trial_side
from quantsr.config import Options, registries
from quantsr.config.binding import with_defaults
from quantsr.config.layers import drop_nulls
from quantsr.config.load import read_options
from quantsr.config.networks import check_network
from quantsr.config.references import References
from quantsr.deploy.module import to_module
from quantsr.deploy.packed import packing
from quantsr.engine import build
from quantsr.errors import InputError
from quantsr.trained_files import checkpoint
from quantsr.trained_files.architecture import in_checkpoint
from quantsr.trained_files.names import PACKED, resolve


def load(name_or_path: str | Path) -> nn.Module:
    """A trained network in eval mode on the CPU, from (B, 3, H, W) in [0, 1] to (B, 3, H * s, W *
    s).

    Args:
        name_or_path: a checkpoint ``.pth`` of quantsr (its moving average is used where there is
            one), a packed ``.safetensors``, the name or folder of a training run in ``experiments``
            (its best network, else its latest), or the name of a network that comes with quantsr.

    Raises:
        InputError: no such file or run, or a file without a description of its network.
    """
    path = resolve(name_or_path)
    if path.suffix == PACKED:
        return to_module(packing.load(path), path).eval()
    return from_checkpoint(checkpoint.load(path), path)


def from_checkpoint(content: Mapping[str, Any], path: Path) -> nn.Module:
    """The network of a checkpoint that was read before, in eval mode.

    Raises:
        InputError: the content has no description of its network, or does not fit the description.
    """
    net = build.build_described(in_checkpoint(content, path), path)
    build.load_content(net, content, str(path), None)
    build.require_steps(net, path)
    return net.eval()


def float_network(model: str | Path, opt: str | None) -> tuple[nn.Module, Mapping[str, Any], Path]:
    """A trained float network of any origin, in eval mode on the CPU, as quantization takes
    it (`quantsr.archs.prepared`).

    Args:
        model: a checkpoint or run of quantsr; with ``opt`` any checkpoint; ncnn's ``.param`` file;
            a checkpoint that the package spandrel recognizes.
        opt: an option file whose ``network_g`` the checkpoint is of.

    Returns:
        The network, the content of the checkpoint (empty for ncnn's files), and the file.

    Raises:
        InputError: no such file or run, or nothing describes its network.
    """
    path = Path(model).expanduser()
    if path.suffix == ".param":
        return _of_file("NcnnNetwork", path), {}, path
    path = resolve(model)
    if path.suffix == PACKED:
        raise InputError(f"{path}: is a packed network; give the checkpoint of a float one")
    content = checkpoint.load(path)
    if opt is not None:
        net = _network_of(opt)
        build.load_content(net, content, str(path), None)
        return prepare(net.eval()), content, path
    ours = checkpoint.metadata(content, path)
    if ours is not None and ours.get("arch"):
        return prepare(from_checkpoint(content, path)), content, path
    if find_spec("spandrel") is None:
        raise InputError(
            f"{path}: has no description of its network; give an option file with network_g by -opt FILE, or "
            "pip install spandrel, which recognizes many"
        )
    return _of_file("Spandrel", path), content, path


def scale_of(network: nn.Module) -> int:
    """The upscaling factor. Raises InputError where no argument of the network says it."""
    scale = contract.of(network).scale
    if scale is None:
        raise InputError(
            "network_g: has no argument upscale or scale; name the upscaling factor so in its constructor"
        )
    return scale


def _of_file(kind: str, path: Path) -> nn.Module:
    """A network whose file describes it, with the scale that it has among its arguments."""
    file = str(path.absolute())
    net = prepare(build.build_network(kind, {"file": file}).eval())
    side = trial_side(contract.of(net).window)
    with torch.inference_mode():
        scale = net(torch.zeros(1, 3, side, side)).shape[-1] // side
    contract.record(net, kind, {"file": file, "scale": scale})
    return net


def _network_of(opt: str) -> nn.Module:
    """The network of ``network_g`` in an option file, which needs no other section."""
    options, problems = read_options(opt)
    section = References(drop_nulls(options), problems).under("network_g")
    if not isinstance(section, dict) or "type" not in section:
        problems.add(("network_g",), "missing; name the network: type and its arguments")
    check_network("network_g", section, None, problems, channels=(1, 3))
    problems.raise_if_any()
    assert isinstance(section, dict)
    return build.build_network(section["type"], {k: v for k, v in section.items() if k != "type"})


def trained_network(options: Options) -> tuple[nn.Module, int | None]:
    """The network that a test run evaluates: ``network_g`` with the parameters of
    ``path.pretrain_network_g``.

    For a packed file it is the network with fake quantization that is equivalent to the file's
    integer network.

    Returns:
        The network, with its blocks ranked, on the CPU; and the number of iterations it was trained
        for, None where the file does not have it.

    Raises:
        InputError: no such file, one that cannot be read, or one of another network than
            ``network_g``.
    """
    path = options.path
    if path.pretrain_network_g is None:
        raise InputError("path.pretrain_network_g: missing; name the checkpoint to test")
    file = resolve(path.pretrain_network_g)
    net = build.build_for_options(options)
    if file.suffix == PACKED:
        return _from_packed(net, file)
    content = checkpoint.load(file)
    ours = checkpoint.metadata(content, file)
    if path.strict_load_g and ours is not None and ours.get("arch"):
        _check_same(net, ours["arch"], str(file))
    iteration = build.load_content(net, content, str(file), path.param_key_g, strict=path.strict_load_g)
    build.require_steps(net, file)
    build.ensure_ranking(net, str(file))
    return net, iteration


def _from_packed(net: nn.Module, file: Path) -> tuple[nn.Module, int | None]:
    packed = packing.load(file)
    found = to_module(packed, file)
    _check_same(net, contract.of(found).arch, str(file))
    build.warn_of_dead(found, file)
    wanted, dynamic = contract.of(net).depth_dynamic, contract.of(found).depth_dynamic
    if wanted is not None and dynamic is not None:
        dynamic.depth_rule = wanted.depth_rule
        dynamic.depths = wanted.depths if packed.header.ranking is not None else packed.header.depths
    iteration = packed.header.provenance.get("iteration")
    return found, iteration if isinstance(iteration, int) else None


def _check_same(net: nn.Module, trained: Mapping[str, Any], file: str) -> None:
    """Compare ``net``, built from the options, with the network in the file, except for the depths,
    which the options choose.

    Args:
        trained: type and arguments of the network in the file; arguments that are absent have their
            defaults.

    Raises:
        InputError: names every argument that differs.
    """
    own, arch = _comparable(contract.of(net).arch), _comparable(trained)
    if arch["type"] != own["type"]:
        wrong = {"type"}
    else:
        wrong = {key for key in arch if arch[key] != own.get(key)} - {"depths", "depth_rule"}
    if wrong:
        found = ", ".join(f"{key} {own.get(key)!r} instead of {arch[key]!r}" for key in sorted(wrong))
        raise InputError(
            f"{file}: was trained as another network than network_g ({found}); leave network_g out, or name another checkpoint"
        )


def _comparable(arch: Mapping[str, Any]) -> dict[str, Any]:
    """``arch`` with the defaults of its constructor, tuples as lists."""
    given = {key: value for key, value in arch.items() if key != "type"}
    constructor = registries.networks().get(str(arch.get("type")))
    bound = with_defaults(constructor, given) if constructor is not None else given
    return {"type": arch.get("type"), **checkpoint.plain(bound)}
