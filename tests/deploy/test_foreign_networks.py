"""Structures of the package spandrel, with random weights: quantized, packed and run."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quantsr.deploy.convert import convert
from quantsr.deploy.engines import select
from quantsr.deploy.module import to_module
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.post_training import Bits, quantize
from quantsr.errors import InputError
from quantsr.loading import float_network
from tests.deploy.native import HERE
from tests.reference import program as definition

pytest.importorskip("spandrel")
pytestmark = pytest.mark.filterwarnings("ignore")


def made(module: str, name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return getattr(import_module(f"spandrel.architectures.{module}"), name)(**arguments)

    return make


def louder(make: Callable[[], nn.Module], factor: float) -> Callable[[], nn.Module]:
    """With larger weights, whose layers else would add next to nothing to the picture."""

    def made_louder() -> nn.Module:
        net = make()
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(factor)
        return net

    return made_louder


SWIN = {"depths": [2], "num_heads": [2], "embed_dim": 8, "mlp_ratio": 2, "upscale": 2}
RUN = {
    "Compact": made("Compact.__arch.SRVGG", "SRVGGNetCompact", num_feat=8, num_conv=2, upscale=2),
    "SPAN": made(
        "SPAN.__arch.span", "SPAN", num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2, norm=False
    ),
    "ESRGAN": made("ESRGAN.__arch.RRDB", "RRDBNet", num_filters=8, num_blocks=1, scale=4),
    "RCAN": made(
        "RCAN.__arch.rcan_arch", "RCAN", scale=2, n_resgroups=1, n_resblocks=1, n_feats=8, reduction=4
    ),
    "SwinIR": made("SwinIR.__arch.SwinIR", "SwinIR", window_size=8, upsampler="pixelshuffledirect", **SWIN),
    "SwinIR, 3conv": made(
        "SwinIR.__arch.SwinIR",
        "SwinIR",
        window_size=8,
        upsampler="nearest+conv",
        resi_connection="3conv",
        **{**SWIN, "upscale": 4},
    ),
    "RealPLKSR": made("PLKSR.__arch.RealPLKSR", "RealPLKSR", dim=8, n_blocks=1, upscaling_factor=2),
    "HAT": made(
        "HAT.__arch.HAT",
        "HAT",
        window_size=8,
        compress_ratio=4,
        squeeze_factor=4,
        upsampler="pixelshuffle",
        **SWIN,
    ),
    "DRCT": made(
        "DRCT.__arch.drct_arch",
        "DRCT",
        window_size=16,
        gc=8,
        img_size=16,
        upsampler="pixelshuffle",
        **SWIN,
    ),
    "SAFMN": made("SAFMN.__arch.safmn", "SAFMN", dim=8, n_blocks=1, upscaling_factor=2),
    "RealPLKSR, LayerNorm": made(
        "PLKSR.__arch.RealPLKSR", "RealPLKSR", dim=8, n_blocks=1, upscaling_factor=2, layer_norm=True
    ),
    "MoSR": made("MoSR.__arch.mosr_arch", "MoSR", dim=8, n_block=1, upscale=2),
    "MoESR": made("MoESR.__arch.MoESR", "MoESR", dim=16, n_blocks=1, n_block=1, scale=2),
    "RGT": louder(
        made(
            "RGT.__arch.rgt",
            "RGT",
            embed_dim=32,
            depth=[2],
            num_heads=[4],
            mlp_ratio=2.0,
            split_size=[8, 16],
            upscale=2,
        ),
        1.25,
    ),
    "FDAT": louder(
        made(
            "FDAT.__arch.fdat",
            "FDAT",
            scale=2,
            embed_dim=16,
            num_groups=1,
            depth_per_group=1,
            num_heads=2,
            mid_dim=8,
        ),
        4.0,
    ),
    "DAT-light": made(
        "DAT.__arch.DAT",
        "DAT",
        depth=[3],
        num_heads=[2],
        split_size=[8, 32],
        embed_dim=32,
        expansion_factor=1.0,
        upscale=2,
        upsampler="pixelshuffledirect",
    ),
    "DAT": made(
        "DAT.__arch.DAT",
        "DAT",
        depth=[2, 1],
        num_heads=[4, 4],
        split_size=[8, 16],
        embed_dim=64,
        upscale=2,
        upsampler="pixelshuffle",
    ),
    "DnCNN": made("DnCNN.__arch.network_dncnn", "DnCNN", in_nc=3, out_nc=3, nc=8, nb=5),
    "SwiftSRGAN": made(
        "SwiftSRGAN.__arch.SwiftSRGAN", "Generator", num_channels=8, num_blocks=1, upscale_factor=2
    ),
    "PLKSR": made("PLKSR.__arch.PLKSR", "PLKSR", dim=8, n_blocks=1, upscaling_factor=2),
    "NAFNet": made(
        "NAFNet.__arch.NAFNet_arch",
        "NAFNet",
        width=8,
        enc_blk_nums=[1, 1],
        middle_blk_num=1,
        dec_blk_nums=[1, 1],
    ),
    "SAFMNBCIE": made(
        "SAFMNBCIE.__arch.safmn_bcie", "SAFMN_BCIE", dim=8, n_blocks=1, num_layers=1, upscaling_factor=2
    ),
    "ESRGAN, unshuffled": made(
        "ESRGAN.__arch.RRDB", "RRDBNet", in_nc=12, num_filters=8, num_blocks=1, scale=4, shuffle_factor=2
    ),
    "FDnCNN": made(
        "DnCNN.__arch.network_dncnn", "DnCNN", in_nc=4, out_nc=3, nc=8, nb=8, act_mode="R", mode="FDnCNN"
    ),
    "DRUNet": made("DRUNet.__arch.network_unet", "DRUNet", in_nc=4, out_nc=3, nc=[8, 8, 16, 16], nb=2),
    "Swin2SR": made(
        "Swin2SR.__arch.Swin2SR",
        "Swin2SR",
        window_size=8,
        img_size=16,
        upsampler="pixelshuffledirect",
        **SWIN,
    ),
    "RetinexFormer": made(
        "RetinexFormer.__arch.retinexformer_arch", "RetinexFormer", n_feat=8, stage=1, num_blocks=[1, 1, 1]
    ),
}


NOT_NATIVE = (
    "DAT",
    "DAT-light",
    "DRCT",
    "DRUNet",
    "ESRGAN, unshuffled",
    "FDAT",
    "HAT",
    "MoESR",
    "MoSR",
    "NAFNet",
    "PLKSR",
    "RGT",
    "RealPLKSR",
    "RealPLKSR, LayerNorm",
    "RetinexFormer",
    "SAFMN",
    "SAFMNBCIE",
    "SwiftSRGAN",
    "Swin2SR",
)
NOT_NCNN = {
    **dict.fromkeys(
        ("SwinIR", "SwinIR, 3conv", "Swin2SR", "HAT", "DRCT", "DAT", "DAT-light", "FDAT", "RGT"),
        "takes windows",
    ),
    "RetinexFormer": "attends to channels",
    **dict.fromkeys(
        ("DRUNet", "ESRGAN, unshuffled", "MoESR", "NAFNet", "SAFMN", "SAFMNBCIE"), "shrinks maps"
    ),
}


def saved(make: Callable[[], nn.Module], folder: Path) -> Path:
    """A checkpoint with random weights, whose biases and norms are none of those of a fresh
    network."""
    torch.manual_seed(0)
    net = make()
    for parameter in net.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.1, 0.1)
    path = folder / "net.pth"
    torch.save(net.state_dict(), path)
    return path


SLOW = ("DAT", "DRCT", "DRUNet", "ESRGAN", "ESRGAN, unshuffled", "RCAN", "RGT", "RetinexFormer", "SPAN")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.integration) if name in SLOW else name for name in RUN],
)
def network(request, tmp_path_factory) -> tuple[str, nn.Module, PackedModel]:
    path = saved(RUN[request.param], tmp_path_factory.mktemp("net"))
    net = float_network(path, None)[0]
    return request.param, net, packed(net, Bits(8, 8), path.with_suffix(".safetensors"))


def packed(net: nn.Module, bits: Bits, file: Path) -> PackedModel:
    """The network with few bits, from its file."""
    pictures = [np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)]
    packing.save(convert(quantize(net, bits, pictures), calib=pictures), file)
    return packing.load(file)


IMAGE = np.random.default_rng(2).integers(0, 256, (9, 11, 3), np.uint8)


def test_it_is_quantized_and_gives_nearly_the_float_networks_pictures(network) -> None:
    name, net, model = network
    with torch.inference_mode():
        x = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float() / 255
        wanted = 255 * net(x).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    found = definition.run(model, IMAGE, 1).astype(float)
    assert wanted.std() > 5
    assert np.abs(found - wanted).mean() < (1.5 if name == "SPAN" else 0.8)


def test_its_torch_module_gives_what_the_definition_gives(network) -> None:
    _, _, model = network
    module = to_module(model)
    with torch.inference_mode():
        x = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float() / 255
        found = (255 * module(x)[0].permute(1, 2, 0)).clamp(0, 255).round().numpy()
    difference = np.abs(found - definition.run(model, IMAGE, 1))
    assert (difference <= 1).mean() > 0.99
    assert difference.mean() < 0.1


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "ncnn", "torch", "native"])
def test_engines_give_what_the_definition_gives(network, engine) -> None:
    name, _, model = network
    if engine == "native" and HERE is None:
        pytest.skip("the kernels were not compiled")
    if engine == "native" and name in NOT_NATIVE:
        with pytest.raises(InputError, match="engine native: cannot run this network"):
            select.create(engine, model)
        return
    if engine != "native":
        pytest.importorskip(engine)
    if engine == "ncnn" and name in NOT_NCNN:
        with pytest.raises(InputError, match=f"ncnn: has no layer that {NOT_NCNN[name]}"):
            select.create(engine, model, threads=1)
        return
    check_engine(engine, model)


def check_engine(engine: str, model: PackedModel) -> None:
    """It gives what the definition gives, but for a code next to the edge between two, which may
    fall to either side, as in any network."""
    found = select.create(engine, model, threads=1).run(IMAGE[None])[0].astype(int)
    difference = np.abs(found - definition.run(model, IMAGE, 1))
    assert (difference <= 1).mean() > 0.99
    assert difference.mean() < 0.1


@pytest.mark.integration
def test_four_bits_run_in_dat(tmp_path) -> None:
    net = float_network(saved(RUN["DAT-light"], tmp_path), None)[0]
    model = packed(net, Bits(4, 4), tmp_path / "net.safetensors")
    for engine in ("openvino", "onnxruntime", "torch"):
        pytest.importorskip(engine)
        check_engine(engine, model)
