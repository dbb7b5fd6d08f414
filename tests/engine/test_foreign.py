"""Checkpoints of other programs are loaded where the mapping is unambiguous; else the project of
their names is named. For damaged checkpoints the entry is named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantsr import quant
from quantsr.basicsr_compat import EDSR
from quantsr.engine import build
from quantsr.engine.network_file import network_file
from quantsr.errors import InputError
from quantsr.loading import load
from quantsr.trained_files import checkpoint

State = dict[str, Tensor]


def small() -> nn.Module:
    torch.manual_seed(1)
    net = build.build_network("QuantSR_C", {"num_feat": 4, "num_block": 4, "upscale": 2})
    return quant.calibrate(net, [torch.rand(1, 3, 6, 6)])


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPERS: dict[str, Callable[[State], dict[str, Any]]] = {
    "compiled": lambda s: {"params": prefixed("_orig_mod.", s)},
    "compiled, then parallel": lambda s: {"params": prefixed("module._orig_mod.", s)},
    "parallel, then compiled": lambda s: {"params": prefixed("_orig_mod.module.", s)},
    "parallel twice": lambda s: prefixed("module.module.", s),
    "a part compiled": lambda s: {"params": {n.replace("body.", "body._orig_mod."): t for n, t in s.items()}},
    "averaged": lambda s: {"params": {"n_averaged": torch.tensor(3), **prefixed("module.", s)}},
    "averaged and compiled": lambda s: {
        "params": {"n_averaged": torch.tensor(3), **prefixed("module._orig_mod.", s)}
    },
    "one attribute of a trainer": lambda s: {"params": prefixed("net_g.", s)},
    "Lightning": lambda s: {"state_dict": prefixed("model.", s), "epoch": 3, "optimizer_states": [{}]},
    "beside a discriminator": lambda s: {
        "state_dict": {**prefixed("generator.", s), "discriminator.0.weight": torch.zeros(2)}
    },
    "bare": lambda s: s,
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_prefixes_of_wrappers_are_removed(kind: str, tmp_path: Path) -> None:
    trained, net = small(), build.build_network("QuantSR_C", {"num_feat": 4, "num_block": 4, "upscale": 2})
    build.load_checkpoint(net, saved(tmp_path / "a.pth", WRAPPERS[kind](trained.state_dict())))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor), name


def test_names_with_and_without_a_prefix_are_refused(tmp_path: Path) -> None:
    state = small().state_dict()
    both = {**prefixed("_orig_mod.", state), **state}
    with pytest.raises(InputError, match=r"a\.pth: params: it holds parameters twice"):
        build.load_checkpoint(small(), saved(tmp_path / "a.pth", {"params": both}))


def test_a_misspelt_key_is_not_replaced_by_another(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.pth", {"params": small().state_dict()})
    with pytest.raises(InputError, match="no entry 'params_emma', only params"):
        build.load_checkpoint(small(), file, "params_emma")


def swinir(size: int) -> nn.Module:
    return build.build_network(
        "SwinIR",
        {
            "upscale": 2,
            "img_size": size,
            "window_size": 4,
            "depths": [2],
            "embed_dim": 8,
            "num_heads": [2],
            "mlp_ratio": 2,
            "upsampler": "pixelshuffledirect",
        },
    )


def test_buffers_computed_from_the_patch_size_are_not_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, net = swinir(8), swinir(16)
    masks = [name for name in net.state_dict() if name.endswith("attn_mask")]
    assert masks
    built = {name: net.state_dict()[name].clone() for name in masks}
    build.load_checkpoint(net, saved(tmp_path / "a.pth", {"params": source.state_dict()}))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, built[name] if name in masks else source.state_dict()[name]), name
    x = torch.rand(1, 3, 12, 20)
    with torch.no_grad():
        assert torch.allclose(source.eval()(x), net.eval()(x), atol=1e-6)


def edsr_pytorch(net: nn.Module, mean: float = 0.0) -> State:
    """The parameters of BasicSR's EDSR with two blocks under EDSR-PyTorch's names."""
    names = {
        "conv_first.": "head.0.",
        "conv_after_body.": "body.2.",
        "upsample.": "tail.0.",
        "conv_last.": "tail.1.",
    }
    found: State = {}
    for name, tensor in net.state_dict().items():
        new = name.replace(".conv1.", ".body.0.").replace(".conv2.", ".body.2.")
        for ours, theirs in names.items():
            new = theirs + new[len(ours) :] if new.startswith(ours) else new
        found[new] = tensor
    bias = -255 * torch.tensor([0.4488, 0.4371, 0.4040]) + mean
    return {
        **found,
        "sub_mean.weight": torch.eye(3)[..., None, None],
        "sub_mean.bias": bias,
        "add_mean.bias": -bias,
    }


def test_edsr_pytorch_is_loaded_where_its_mean_is_that_of_the_network(tmp_path: Path) -> None:
    sizes = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 2, "upscale": 4}
    source, net = EDSR(**sizes), EDSR(**sizes)
    file = saved(tmp_path / "edsr.pt", edsr_pytorch(source))
    build.load_checkpoint(net, file)
    for name, tensor in source.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor), name
    other = saved(tmp_path / "other.pt", edsr_pytorch(source, mean=3.0))
    with pytest.raises(
        InputError, match=r"other\.pt: its names are those of EDSR-PyTorch .* set network_g\.rgb_mean"
    ):
        build.load_checkpoint(net, other)


def test_the_project_whose_names_do_not_fit_is_named(tmp_path: Path) -> None:
    state = {"model.0.weight": torch.zeros(4, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": torch.zeros(1)}
    with pytest.raises(InputError, match="its names are those of the first ESRGAN code"):
        build.load_checkpoint(small(), saved(tmp_path / "a.pth", {"params": state}))


def test_without_strict_at_least_one_tensor_must_fit(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.pth", {"params": {"x": torch.zeros(1)}})
    with pytest.raises(InputError, match="no tensor of a name and shape of this QuantSR_C"):
        build.load_checkpoint(small(), file, strict=False)


ODD_TENSORS = {
    "sparse": torch.ones(4).to_sparse(),
    "complex": torch.ones(4, dtype=torch.complex64),
    "text": "x",
    "none": None,
    "mostly absent": torch.zeros(1).expand(10**12),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_an_entry_that_is_no_tensor_of_numbers_is_named(kind: str, tmp_path: Path) -> None:
    state = {**small().state_dict(), "conv_first.bias": ODD_TENSORS[kind]}
    with pytest.raises(
        InputError, match=r"a\.pth: params: 'conv_first\.bias' is .* not a tensor of numbers"
    ) as caught:
        build.load_checkpoint(small(), saved(tmp_path / "a.pth", {"params": state}))
    assert "\n" not in str(caught.value)


def set_arch(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["quantsr"]["arch"].update(changes)


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "number as a name": (lambda c: c["params"].update({5: torch.zeros(2)}), "params: 5 is no name"),
    "number as a name at the top": (lambda c: c.update({5: 1}), "the entry 5 has no name"),
    "no type": (lambda c: c["quantsr"]["arch"].pop("type"), "quantsr.arch.type is a NoneType"),
    "type of another kind": (set_arch(type=["x"]), "quantsr.arch.type is a list"),
    "text for a number": (set_arch(res_scale=""), "quantsr.arch.res_scale: must be a number, got ''"),
    "far too many blocks": (set_arch(num_block=10**9), "quantsr.arch.num_block: must be at most 4096"),
    "far too large": (set_arch(num_feat=4096, num_block=4096), "quantsr.arch: is too large to be built"),
    "an argument that is unknown": (set_arch(x=1), "quantsr.arch.x: unknown option of QuantSR_C"),
    "arch is a list": (lambda c: c["quantsr"].update(arch=[1]), "quantsr.arch is a list, not the dict"),
    "ranking of text": (
        lambda c: c["quantsr"].update(ranking=["a"]),
        "quantsr.ranking is not a list of whole",
    ),
    "ranking of others": (
        lambda c: c["quantsr"].update(ranking=[0, 0]),
        "quantsr.ranking: ranking must name",
    ),
    "tensor as iteration": (
        lambda c: c["quantsr"].update(iteration=torch.ones(2)),
        "quantsr.iteration is a Tensor",
    ),
    "tensor in options": (
        lambda c: c["quantsr"].update(options={"a": torch.ones(2)}),
        "quantsr.options is a dict",
    ),
    "version": (lambda c: c["quantsr"].update(format_version="x"), "checkpoint format 'x'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_entry_is_named(kind: str, tmp_path: Path) -> None:
    content = network_file(small(), None, iteration=1)
    change, expected = DAMAGE[kind]
    change(content)
    with pytest.raises(InputError) as caught:
        load(saved(tmp_path / "a.pth", content))
    assert str(caught.value).startswith(f"{tmp_path / 'a.pth'}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(InputError, match=r"bomb\.pth: is a compressed archive"):
        checkpoint.load(tmp_path / "bomb.pth")


def test_a_network_without_steps_is_refused(tmp_path: Path) -> None:
    net = build.build_network("QuantSR_C", {"num_feat": 4, "num_block": 4, "upscale": 2})
    file = saved(tmp_path / "a.pth", network_file(net, None, iteration=1))
    with pytest.raises(InputError, match=r"a\.pth: has no steps for the quantizers of body\.0\.conv1"):
        load(file)


def test_dead_quantizers_are_reported_when_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = small()
    file = saved(tmp_path / "valid.pth", network_file(net, None, iteration=1))
    load(file)
    assert "dead" not in caplog.text
    with torch.no_grad():
        net.get_parameter("body.0.conv1.weight_quantizer.step").fill_(-1e-3)
        net.get_parameter("body.2.conv2.input_quantizer.step").fill_(0.0)
        net.get_parameter("body.3.conv1.input_quantizer.tau")[2] = torch.nan
    with caplog.at_level(logging.WARNING):
        load(saved(tmp_path / "dead.pth", network_file(net, None, iteration=1)))
    assert (
        "dead.pth: dead quantizers, whose layers output almost 0, or NaN: body.0.conv1 (weight step at or below zero), "
        "body.2.conv2 (input step at or below zero), body.3.conv1 (input quantizer not finite)"
    ) in caplog.text


def test_weights_that_are_zero_need_no_step() -> None:
    net = small()
    with torch.no_grad():
        net.get_parameter("body.1.conv2.weight").zero_()
        net.get_parameter("body.1.conv2.weight_quantizer.step").fill_(1e-8)
    assert quant.dead_quantizers(net) == {}
