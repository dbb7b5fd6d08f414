"""From options to networks: built through the registry, started from checkpoints of every accepted kind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from quantsr.config import registries
from quantsr.engine import checkpoint
from quantsr.errors import InputError

if TYPE_CHECKING:
    from quantsr.config import NetworkOptions, Options
    from quantsr.models.quantsr_model import QuantSRModel

logger = logging.getLogger(__name__)


def build_network(kind: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """The network registered as ``kind``, float or quantized, randomly initialised; ``SwinIR`` with padding.

    Raises:
        InputError: no such network, or arguments that it refuses.
    """
    from quantsr.archs.swinir import SwinIR

    known = {**registries.networks(), "SwinIR": SwinIR}
    if kind not in known:
        raise InputError(f"network_g.type: no network {kind!r}; choose from {', '.join(sorted(known))}")
    try:
        net: nn.Module = known[kind](**kwargs)
    except (TypeError, ValueError) as error:
        raise InputError(f"network_g: {kind} cannot be built ({error}); see docs/options.md") from error
    return net


def build_for_options(options: Options) -> nn.Module:
    """``network_g``; with ``slimmable_version`` its sub-networks count their blocks as the released code does."""
    network = options.network_g
    net = build_network(network.type, network.kwargs)
    if options.slimmable_version is not None and hasattr(net, "depth_rule"):
        setattr(net, "depth_rule", "released")  # noqa: B010 - not an attribute of every network
    return net


def model_class(name: str) -> Callable[..., QuantSRModel]:
    """The model class registered as ``name``, which makes the training step.

    Raises:
        InputError: no such class.
    """
    known = registries.models()
    if name not in known:
        raise InputError(f"model_type: no model class {name!r}; choose from {', '.join(sorted(known))}")
    return known[name]


def load_parameters(net: nn.Module, state: Mapping[str, Tensor], path: str, *, strict: bool = True) -> None:
    """Loads a state dict, ours, BasicSR's or the released QuantSR's.

    Raises:
        InputError: names or shapes do not fit; lists the first few.
    """
    from quantsr.archs import released

    if released.is_released(state):
        logger.info("%s: parameters named as in the released QuantSR", path)
        state = released.convert_state_dict(state)
    elif hasattr(net, "convert_state_dict"):
        state = net.convert_state_dict(state)
    own = net.state_dict()
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shaped = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if strict and (missing or foreign or shaped):
        found = [
            f"{label} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
            for label, names in (("missing", missing), ("unknown", foreign), ("of another shape", shaped))
            if names
        ]
        raise InputError(
            f"{path}: not a checkpoint of this {type(net).__name__} ({'; '.join(found)}); check network_g, or start "
            "a quantized network from a float one with path.fp_pretrain_network_g"
        )
    if not strict:
        for label, names in (("kept as built", missing), ("not used", foreign), ("of another shape", shaped)):
            if names:
                logger.warning("%s: %d tensors %s: %s", path, len(names), label, ", ".join(names[:8]))
        state = {name: tensor for name, tensor in state.items() if name in own and name not in shaped}
    net.load_state_dict(dict(state), strict=strict)


def load_checkpoint(
    net: Any, path: str, param_key: str | None = "params", *, strict: bool = True
) -> int | None:
    """Loads a network file into ``net``, its ranking of blocks included.

    Returns:
        The training iteration it was written at, None where the file does not say.

    Raises:
        InputError: the file is unreadable, foreign, or of another network.
    """
    from quantsr.archs import released

    content = checkpoint.load(path)
    ours = checkpoint.metadata(content, path)
    if param_key is not None and param_key not in content and param_key == "params_ema":
        logger.warning("%s: holds no params_ema; using params", path)
    state = checkpoint.parameters(content, path, param_key)
    load_parameters(net, state, path, strict=strict)
    if ours is None:
        if released.is_released(state) and (order := released.ranking(net)) is not None:
            logger.info("%s: the released network; blocks ranked as its test script has them", path)
            net.set_ranking(order)
        return None
    if ours.get("ranking") is not None and hasattr(net, "set_ranking"):
        try:
            net.set_ranking(ours["ranking"])
        except ValueError as error:
            raise InputError(f"{path}: {error}; the checkpoint is damaged") from error
    iteration = ours.get("iteration")
    return iteration if isinstance(iteration, int) else None


def ensure_ranking(net: Any, path: str) -> None:
    """Ranks the blocks by their shortcuts (smallest kept first) where no ranking came with the checkpoint."""
    if hasattr(net, "rank_blocks") and getattr(net, "ranking", None) is None:
        logger.info("%s: no ranking of blocks in it; computed from the shortcuts", path)
        net.rank_blocks()


def initialise(net: Any, options: Options) -> None:
    """Starts training from the checkpoints in ``options.path``, if any."""
    path = options.path
    if path.pretrain_network_g is not None:
        load_checkpoint(net, path.pretrain_network_g, path.param_key_g, strict=path.strict_load_g)
        logger.info("%s: loaded", path.pretrain_network_g)
    elif path.fp_pretrain_network_g is not None:
        file = path.fp_pretrain_network_g
        if not hasattr(net, "load_float"):
            raise InputError(
                f"path.fp_pretrain_network_g: {type(net).__name__} is a float network itself; use path.pretrain_network_g"
            )
        state = checkpoint.parameters(checkpoint.load(file), file)
        try:
            report = net.load_float(state, which=path.fp_init)
        except ValueError as error:
            raise InputError(f"{file}: {error}; check path.fp_pretrain_network_g and network_g") from error
        logger.info("%s: %s", file, report)


def build_teacher(options: Options) -> nn.Module | None:
    """The float network of ``network_teacher`` with its checkpoint, in eval mode; None where there is none.

    Raises:
        InputError: no checkpoint is given for it.
    """
    teacher: NetworkOptions | None = options.network_teacher
    if teacher is None:
        return None
    file = options.path.pretrain_network_teacher
    if file is None:
        raise InputError("path.pretrain_network_teacher: missing; a teacher needs trained parameters")
    net = build_network(teacher.type, teacher.kwargs)
    load_checkpoint(net, file, options.path.param_key_teacher)
    return net.eval().requires_grad_(False)


def trained_network(options: Options) -> tuple[nn.Module, int | None]:
    """The network that a test run evaluates: ``network_g`` with the parameters of ``path.pretrain_network_g``.

    Of a packed file it is the network with fake quantization that computes what the file's codes do.

    Returns:
        The network, ranked and on the CPU, and the iteration it was trained for, None where the file does not say.

    Raises:
        InputError: no such file, one that cannot be read, or one of another network than ``network_g``.
    """
    from quantsr import loading

    path = options.path
    if path.pretrain_network_g is None:
        raise InputError("path.pretrain_network_g: missing; name the checkpoint to test")
    file = loading.resolve(path.pretrain_network_g)
    net: Any = build_for_options(options)
    if file.suffix == ".safetensors":
        from quantsr.deploy.module import to_module
        from quantsr.deploy.packing import load as load_packed

        packed = load_packed(file)
        found: Any = to_module(packed, file)
        _check_same(net, found, str(file))
        found.depth_rule = net.depth_rule
        found.depths = net.depths if packed.header.ranking is not None else packed.header.depths
        iteration = packed.header.provenance.get("iteration")
        return found, iteration if isinstance(iteration, int) else None
    ours = checkpoint.metadata(checkpoint.load(file), file)
    if path.strict_load_g and ours is not None and ours.get("arch"):
        arch = dict(ours["arch"])
        _check_same(net, build_network(arch.pop("type"), arch), str(file))
    iteration = load_checkpoint(net, str(file), path.param_key_g, strict=path.strict_load_g)
    ensure_ranking(net, str(file))
    return net, iteration


def _check_same(net: Any, trained: Any, file: str) -> None:
    """``net``, built from the options, must be what the file holds; which depths are run is the options' choice.

    Raises:
        InputError: names every argument that differs.
    """
    arch, own = trained.arch_options(), net.arch_options() if hasattr(net, "arch_options") else {}
    own.setdefault("type", type(net).__name__)
    if arch["type"] != own["type"]:
        wrong = {"type"}
    else:
        wrong = {key for key in arch if arch[key] != own.get(key)} - {"depths", "depth_rule"}
    if wrong:
        found = ", ".join(f"{key} {own.get(key)!r} instead of {arch[key]!r}" for key in sorted(wrong))
        raise InputError(
            f"{file}: was trained as another network than network_g ({found}); leave network_g out, or name another checkpoint"
        )


def title(net: nn.Module) -> str:
    """The network's name in tables: its class, with its bits where it is quantized, e.g. ``QuantSR_C W4A4``.

    Where layers outside the blocks are quantized to others, as in packed files, theirs follow: ``QuantSR_C W4A4 rest W8A8``. Where there are several protocols of what is quantized, its name too: ``QuantSR_T W4A4, 2DQuant protocol``; and where
    sub-networks are cut as the released code cuts them, that.
    """
    from quantsr.quant import FLOAT_BITS, manifest

    units = set(net.units()) if hasattr(net, "units") else set()
    blocks = tuple(f"{name}." for name, module in net.named_modules() if module in units) or ("",)
    body: set[tuple[int, int]] = set()
    rest: set[tuple[int, int]] = set()
    for record in manifest(net):
        pair = (record["bits_w"], record["bits_a"])
        if record["kind"] != "matmul" and pair != (FLOAT_BITS, FLOAT_BITS):
            (body if record["name"].startswith(blocks) else rest).add(pair)
    bits = " rest ".join(
        "/".join(f"W{w}A{a}" for w, a in sorted(pairs)) for pairs in (body, rest - body) if pairs
    )
    name = "QuantSR_C" if type(net).__name__ == "QEDSR_Ours" else type(net).__name__
    if not bits:
        return f"float {name}"
    protocol = getattr(net, "protocol", None)
    suffix = "" if protocol is None else f", {protocol} protocol"
    if getattr(net, "depth_rule", "exact") == "released":
        suffix += ", released block count (depth + 1)"
    return f"{name} {bits}{suffix}"


def log_manifest(net: nn.Module) -> None:
    """Logs what is quantized to what, layer by layer; nothing for a float network."""
    from quantsr.quant import FLOAT_BITS, manifest, manifest_table

    if any((record["bits_w"], record["bits_a"]) != (FLOAT_BITS, FLOAT_BITS) for record in manifest(net)):
        logger.info("what is quantized to what:\n%s", manifest_table(net))


def depths_to_evaluate(net: nn.Module, options: Options) -> Sequence[int] | None:
    """The depths a test run evaluates: that of ``slimmable_version``, those of ``val.depths``, or all of the network.

    Raises:
        InputError: a depth that the network does not have.
    """
    depths = getattr(net, "depths", None)
    if depths is None:
        return None
    if options.slimmable_version is not None:
        if options.slimmable_version >= len(depths):
            raise InputError(
                f"slimmable_version: {options.slimmable_version}, but the network has depths {list(depths)}"
            )
        return [depths[options.slimmable_version]]
    if options.val is not None and options.val.depths is not None:
        wrong = [depth for depth in options.val.depths if not 1 <= depth <= depths[0]]
        if wrong:
            raise InputError(f"val.depths: {wrong} outside 1..{depths[0]}; name depths of the network")
        return options.val.depths
    return depths
