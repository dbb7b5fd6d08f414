"""Building networks from options through the registry, and loading checkpoints of every supported
kind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quantsr.archs import QuantSR_C, contract, released
from quantsr.archs.constructors import build_network
from quantsr.archs.prepared import changes, prepare
from quantsr.config import NetworkOptions, Options, registries
from quantsr.config.networks import check_network
from quantsr.config.problems import Problems
from quantsr.errors import InputError
from quantsr.models.quantsr_model import QuantSRModel
from quantsr.quant import FLOAT_BITS, dead_quantizers, describe_dead, manifest, manifest_table, uncalibrated
from quantsr.trained_files import checkpoint, foreign

logger = logging.getLogger(__name__)


def build_described(arch: Mapping[str, Any], path: str | Path) -> nn.Module:
    """The network that a file's ``quantsr.arch`` describes, randomly initialised.

    Raises:
        InputError: it describes no network; names the file and the problem.
    """
    problems = Problems(str(path))
    check_network("quantsr.arch", dict(arch), None, problems)
    if problems.lines:
        raise InputError(next(iter(problems.lines)))
    try:
        return build_network(str(arch["type"]), {key: value for key, value in arch.items() if key != "type"})
    except InputError as error:
        raise InputError(f"{path}: quantsr.arch: {error}") from error


def build_for_options(options: Options) -> nn.Module:
    """The network of ``network_g``; with ``slimmable_version`` its depths count blocks as the
    released code does."""
    network = options.network_g
    net = build_network(network.type, network.kwargs)
    dynamic = contract.of(net).depth_dynamic
    if options.slimmable_version is not None and dynamic is not None:
        dynamic.depth_rule = "released"
    return net


def model_class(name: str) -> Callable[..., QuantSRModel]:
    """The model class registered as ``name``, which implements the training step.

    Raises:
        InputError: no such class.
    """
    known = registries.models()
    if name not in known:
        raise InputError(f"model_type: no model class {name!r}; choose from {', '.join(sorted(known))}")
    return known[name]


def load_parameters(net: nn.Module, state: Mapping[str, Tensor], path: str, *, strict: bool = True) -> None:
    """Loads a state dict with the names of this project, BasicSR, the released QuantSR or
    EDSR-PyTorch.

    Buffers that are computed from the constructor's arguments are not loaded: those of BasicSR's
    SwinIR are for one picture size.

    Raises:
        InputError: names or shapes do not fit; lists the first few. Without ``strict``: no tensor
            fits.
    """
    own = net.state_dict()
    try:
        state = renamed(net, state, path)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}; check network_g") from error
    needed = {name for name in own if not foreign.is_derived(name)}
    found = {name: tensor for name, tensor in state.items() if not foreign.is_derived(name)}
    missing, unknown = sorted(needed - found.keys()), sorted(found.keys() - own.keys())
    shaped = sorted(name for name in needed & found.keys() if own[name].shape != found[name].shape)
    if strict and (missing or unknown or shaped):
        parts = [
            f"{label} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
            for label, names in (("missing", missing), ("unknown", unknown), ("of another shape", shaped))
            if names
        ]
        project = foreign.naming(found) if unknown else None
        whose = f"; its names are those of {project}" if project is not None else ""
        raise InputError(
            f"{path}: not a checkpoint of this {type(net).__name__} ({'; '.join(parts)}{whose}); check network_g, or start "
            "a quantized network from a float one with path.fp_pretrain_network_g"
        )
    fitting = {name: tensor for name, tensor in found.items() if name in own and name not in shaped}
    if not fitting:
        raise InputError(
            f"{path}: no tensor of a name and shape of this {type(net).__name__}; check network_g"
        )
    if not strict:
        for label, names in (("kept as built", missing), ("not used", unknown), ("of another shape", shaped)):
            if names:
                logger.warning("%s: %d tensors %s: %s", path, len(names), label, ", ".join(names[:8]))
    net.load_state_dict(fitting, strict=False)


def renamed(net: nn.Module, state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """A state dict under the names of ``net``, where the project that wrote it is recognized.

    Raises:
        RuntimeError, ValueError: tensors do not fit their names or this network.
    """
    state = foreign.without_prefix(state, net.state_dict().keys())
    if released.is_released(state):
        logger.info("%s: parameters named as in the released QuantSR", path)
        return released.convert_state_dict(state)
    if foreign.is_edsr_pytorch(state):
        logger.info("%s: parameters named as in EDSR-PyTorch", path)
        return foreign.from_edsr_pytorch(state, net)
    dynamic = contract.of(net).depth_dynamic
    return dict(state) if dynamic is None else dict(dynamic.convert_state_dict(state))


def require_steps(net: nn.Module, path: str | Path) -> None:
    """Checks that all quantizers of a network have steps, so that it can run.

    Raises:
        InputError: some have none; names the first layers.
    """
    if names := list(uncalibrated(net)):
        raise InputError(
            f"{path}: has no steps for the quantizers of {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}; "
            "train it, or name a trained checkpoint"
        )


def warn_of_dead(net: nn.Module, path: str | Path) -> None:
    """Logs a warning with the names of the layers whose quantizers are dead: their output is almost
    0, or NaN."""
    if dead := dead_quantizers(net):
        logger.warning(
            "%s: dead quantizers, whose layers output almost 0, or NaN: %s", path, describe_dead(dead)
        )


def load_checkpoint(
    net: nn.Module, path: str, param_key: str | None = "params", *, strict: bool = True
) -> int | None:
    """Loads a network file into ``net``, its ranking of blocks included.

    Returns:
        The training iteration of the file, None where the file does not have it.

    Raises:
        InputError: the file is unreadable, of another format, or of another network.
    """
    return load_content(net, checkpoint.load(path), path, param_key, strict=strict)


def load_content(
    net: nn.Module,
    content: Mapping[str, Any],
    path: str,
    param_key: str | None = "params",
    *,
    strict: bool = True,
) -> int | None:
    """`load_checkpoint` for content that was read before; ``path`` is for messages."""
    ours = checkpoint.metadata(content, path)
    if param_key is not None and param_key not in content and param_key == "params_ema":
        logger.warning("%s: holds no params_ema; using params", path)
    state = checkpoint.parameters(content, path, param_key)
    load_parameters(net, state, path, strict=strict)
    warn_of_dead(net, path)
    dynamic = contract.of(net).depth_dynamic
    if ours is None:
        if released.is_released(state) and isinstance(net, QuantSR_C) and (order := released.ranking(net)):
            logger.info("%s: the released network; blocks ranked as its test script has them", path)
            net.set_ranking(order)
        return None
    if ours.get("ranking") is not None and dynamic is not None:
        try:
            dynamic.set_ranking(ours["ranking"])
        except ValueError as error:
            raise InputError(f"{path}: quantsr.ranking: {error}; the checkpoint is damaged") from error
    iteration = ours.get("iteration")
    return iteration if isinstance(iteration, int) else None


def ensure_ranking(net: nn.Module, path: str) -> None:
    """Ranks the blocks by their shortcuts (the smallest is kept first) where the checkpoint has no
    ranking."""
    dynamic = contract.of(net).depth_dynamic
    if dynamic is not None and dynamic.ranking is None:
        logger.info("%s: no ranking of blocks in it; computed from the shortcuts", path)
        dynamic.rank_blocks()


def initialise(net: nn.Module, options: Options) -> None:
    """Starts training from the checkpoints in ``options.path``, if any."""
    path = options.path
    if path.pretrain_network_g is not None:
        load_checkpoint(net, path.pretrain_network_g, path.param_key_g, strict=path.strict_load_g)
        logger.info("%s: loaded", path.pretrain_network_g)
    elif path.fp_pretrain_network_g is not None:
        file = path.fp_pretrain_network_g
        dynamic = contract.of(net).depth_dynamic
        if dynamic is None:
            raise InputError(
                f"path.fp_pretrain_network_g: {type(net).__name__} is a float network itself; use path.pretrain_network_g"
            )
        content = checkpoint.load(file)
        state = checkpoint.parameters(content, file)
        _check_shortcuts(dynamic, checkpoint.metadata(content, file), file)
        try:
            float_state = _as_prepared(net, _named_as_float(net, state, file), file)
            report = dynamic.load_float(float_state, which=path.fp_init)
        except (RuntimeError, ValueError) as error:
            project = foreign.naming(state)
            whose = f"; its names are those of {project}" if project is not None else ""
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{file}: {reason}{whose}; check path.fp_pretrain_network_g and network_g"
            ) from error
        logger.info("%s: %s", file, report)


def _check_shortcuts(net: nn.Module, ours: Mapping[str, Any] | None, path: str) -> None:
    """Raises InputError where the float network has shortcuts around other parts than ``net``,
    which its tensors do not show."""
    if not isinstance(net, QuantSR_C):
        return
    theirs = ((ours or {}).get("arch") or {}).get("shortcuts", "block")
    if theirs != net.shortcuts:
        raise InputError(
            f"{path}: a network with a shortcut around every {theirs}, not {net.shortcuts}; set network_g.shortcuts: "
            f"{theirs}, or train a float network with {net.shortcuts} first"
        )


def _named_as_float(net: nn.Module, state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """As `renamed`, for a float network, which ``net.load_float`` will convert."""
    state = foreign.without_prefix(state, net.state_dict().keys())
    if not foreign.is_edsr_pytorch(state):
        return dict(state)
    logger.info("%s: parameters named as in EDSR-PyTorch", path)
    return foreign.from_edsr_pytorch(state, net)


def _as_prepared(net: nn.Module, state: Mapping[str, Tensor], path: str) -> Mapping[str, Tensor]:
    """The state dict of a float network as `Quantized` has it, its layers merged; others as they
    are."""
    inner = contract.of(net).arch.get("network")
    if not isinstance(inner, Mapping):
        return state
    original = build_network(str(inner["type"]), {k: v for k, v in inner.items() if k != "type"})
    if not changes(original):
        return state
    load_parameters(original, state, path)
    return prepare(original).state_dict()


def build_teacher(options: Options) -> nn.Module | None:
    """The float network of ``network_teacher`` with its checkpoint, in eval mode; None where there
    is none.

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


def title(net: nn.Module) -> str:
    """The network's name in tables: its class, with its bits where it is quantized, e.g.
    ``QuantSR_C W4A4``.

    Where layers outside the blocks have other bits, as in packed files, these follow: ``QuantSR_C
    W4A4 rest W8A8``. Where there are several protocols for the quantized layers, the name of the
    protocol follows: ``QuantSR_T W4A4, 2DQuant protocol``; and a note where depths count blocks as
    in the released code.
    """
    network = contract.of(net)
    units = set(network.depth_dynamic.units()) if network.depth_dynamic is not None else set()
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
    suffix = "" if network.protocol is None else f", {network.protocol} protocol"
    if network.depth_dynamic is not None and network.depth_dynamic.depth_rule == "released":
        suffix += ", released block count (depth + 1)"
    return f"{name} {bits}{suffix}"


def log_manifest(net: nn.Module) -> None:
    """Logs the quantization of each layer; nothing for a float network."""
    if any((record["bits_w"], record["bits_a"]) != (FLOAT_BITS, FLOAT_BITS) for record in manifest(net)):
        logger.info("quantization of each layer:\n%s", manifest_table(net, contract.of(net).protocol))


def depths_to_evaluate(net: nn.Module, options: Options) -> Sequence[int] | None:
    """The depths that a test run evaluates: that of ``slimmable_version``, those of ``val.depths``,
    or all of the network.

    Raises:
        InputError: a depth that the network does not have.
    """
    depths = contract.of(net).depths
    if not depths:
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
