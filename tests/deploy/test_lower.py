"""Lowering: modules as programs. Those of QuantSR-C and QuantSR-T are written down elsewhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantsr import Upscaler
from quantsr.archs import QuantSR_C, QuantSR_T
from quantsr.archs.dqa import DepthDynamic
from quantsr.archs.released import QEDSR_Ours
from quantsr.archs.swinir import SwinIR
from quantsr.basicsr_compat import EDSR, importable
from quantsr.deploy import operations
from quantsr.deploy.convert import convert
from quantsr.deploy.engines import onnx_model, reference
from quantsr.deploy.lower import lower, lowered
from quantsr.deploy.packed import packing, unwritten
from quantsr.deploy.packed.description import Header
from quantsr.deploy.program import PICTURE, Builder
from quantsr.errors import InputError
from quantsr.quant import Rule, quantize_layers

with importable():
    from basicsr.archs.rcan_arch import RCAN
    from basicsr.archs.rrdbnet_arch import RRDBNet
    from basicsr.archs.srresnet_arch import MSRResNet
    from basicsr.archs.srvgg_arch import SRVGGNetCompact


def header_of(net: DepthDynamic) -> Header:
    arch = net.arch_options()
    return Header(
        arch=arch,
        scale=arch["upscale"],
        depths=net.depths,
        num_block=len(net.units()),
        shortcuts=(1.0,) * len(net.units()),
        res_scale=arch.get("res_scale", 1.0),
        img_range=arch["img_range"],
        rgb_mean=tuple(arch["rgb_mean"]),
    )


def assert_written(net: DepthDynamic) -> None:
    expected = unwritten.program_of(header_of(net)).renumbered()
    assert lower(net).listing() == expected.listing()
    assert lower(net) == expected


@pytest.mark.parametrize(
    ("scale", "upsampler"),
    [*itertools.product((2, 3, 4), ("pixelshuffle", "pixelshuffledirect")), (1, "pixelshuffle")],
)
@pytest.mark.parametrize("res_scale", [1.0, 0.1])
@pytest.mark.parametrize(
    "colours", [{}, {"img_range": 1.0, "rgb_mean": (0.0, 0.0, 0.0)}, {"img_range": 3.0}], ids=str
)
def test_quantsr_c_is_what_is_written_down(scale, upsampler, res_scale, colours):
    net = QuantSR_C(
        num_feat=4, num_block=2, upscale=scale, upsampler=upsampler, res_scale=res_scale, **colours
    )
    assert_written(net)


@pytest.mark.parametrize("res_scale", [1.0, 0.1])
def test_shortcuts_around_convolutions_are_two_sums_more(res_scale):
    net = QuantSR_C(num_feat=4, num_block=2, upscale=3, shortcuts="conv", res_scale=res_scale)
    colours = {"mean": [0.4488, 0.4371, 0.404], "range": 255.0}
    build = Builder()
    x = start = build.add("conv", build.add("normalize", PICTURE, **colours), name="conv_first")
    for unit in range(2):
        inner = build.add("relu", build.add("conv", x, name=f"body.{unit}.conv1"))
        y = build.add("conv", build.add("add", x, inner), name=f"body.{unit}.conv2")
        y = build.add("add", y, inner)
        y = build.add("scale", y, factor=res_scale) if res_scale != 1 else y
        x = build.add("shortcut", x, y, unit=unit)
    x = build.add("add", build.add("conv", x, name="conv_after_body"), start)
    x = build.add("pixel_shuffle", build.add("conv", x, name="upsample.0"), factor=3)
    build.add("picture", build.add("conv", x, name="conv_last"), **colours)
    assert lower(net).listing() == build.finish().listing()
    assert lower(net) == build.finish()


@pytest.mark.parametrize(
    ("scale", "upsampler"),
    [
        (2, "pixelshuffledirect"),
        pytest.param(3, "pixelshuffle", marks=pytest.mark.integration),
        pytest.param(4, "pixelshuffle", marks=pytest.mark.integration),
    ],
)
@pytest.mark.parametrize("dqa_unit", ["rstb", "layer"])
@pytest.mark.parametrize("resi_connection", ["1conv", "3conv"])
@pytest.mark.parametrize("more", [{}, {"quantize_attention": True, "img_range": 255.0}], ids=str)
def test_quantsr_t_is_what_is_written_down(scale, upsampler, dqa_unit, resi_connection, more):
    net = QuantSR_T(
        embed_dim=8,
        num_block=2,
        layers_per_block=2,
        num_heads=2,
        window_size=3,
        upscale=scale,
        upsampler=upsampler,
        dqa_unit=dqa_unit,
        resi_connection=resi_connection,
        **more,
    )
    assert_written(net)


def parts_of(net: nn.Module) -> operations.Parts:
    layers = {
        n: tuple(m.weight.shape) for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }
    rest = {n: tuple(p.shape) for n, p in net.named_parameters() if n.rpartition(".")[0] not in layers}
    return operations.Parts(layers, {}, rest, 1)


def small_swinir() -> nn.Module:
    return SwinIR(
        upscale=2,
        window_size=4,
        img_size=8,
        embed_dim=12,
        depths=(2,),
        num_heads=(3,),
        mlp_ratio=2,
        upsampler="pixelshuffledirect",
    )


FLOAT_NETWORKS = {
    "EDSR": lambda: EDSR(num_in_ch=3, num_out_ch=3, num_feat=8, num_block=2, upscale=4, res_scale=0.5),
    "SRVGGNetCompact": lambda: SRVGGNetCompact(num_feat=8, num_conv=2, upscale=4),
    "MSRResNet": lambda: MSRResNet(3, 3, 8, 1, 4),
    "RRDBNet": lambda: RRDBNet(3, 3, 4, num_feat=8, num_block=1, num_grow_ch=4),
    "RCAN": lambda: RCAN(3, 3, num_feat=8, num_group=1, num_block=2, squeeze_factor=4, upscale=2),
    "SwinIR": small_swinir,
}


@pytest.mark.parametrize("name", FLOAT_NETWORKS)
def test_networks_of_basicsr_are_programs(name):
    net = FLOAT_NETWORKS[name]()
    program = lower(net)
    shapes = operations.check(program, parts_of(net))  # reads every parameter
    assert operations.scale_of(program, shapes) == (2 if name in ("RCAN", "SwinIR") else 4)
    assert program.multiple == (4 if name == "SwinIR" else 1)


@pytest.mark.parametrize("name", FLOAT_NETWORKS)
def test_float_networks_compute_the_same_from_a_packed_file(name, picture, tmp_path):
    torch.manual_seed(0)
    net = FLOAT_NETWORKS[name]().eval()
    packing.save(convert(net, head_tail_bits=32), tmp_path / "net.safetensors")
    found = reference.run(packing.load(tmp_path / "net.safetensors"), picture)
    with torch.inference_mode():
        expected = net(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0) * 255
    assert expected.std() > 1
    difference = np.abs(found - expected.round().clamp(0, 255).numpy())
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch", "auto"])
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("name", FLOAT_NETWORKS)
def test_every_engine_runs_networks_of_basicsr(name, bits, engine, picture):
    if engine != "auto":
        pytest.importorskip(engine)
    torch.manual_seed(0)
    model = convert(FLOAT_NETWORKS[name]().eval(), head_tail_bits=bits, calib=[picture])
    expected = reference.run(model, picture)
    difference = np.abs(Upscaler(model, engine=engine, threads=1)(picture).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.98
    if engine == "onnxruntime":
        onnx_model.build(model)


def test_subclasses_are_known_by_what_they_compute():
    plain = QEDSR_Ours(num_in_ch=3, num_out_ch=3, num_feat=4, num_block=2, nbits_w=32, nbits_a=32)
    assert convert(plain, head_tail_bits=32).written is None

    class Sharper(QuantSR_C):
        """Adds the picture's features twice."""

        def _shallow(self, x: Tensor) -> Tensor:
            """See QuantSR_C."""
            return super()._shallow(x) * 2

    other = Sharper(num_feat=4, num_block=2, nbits_w=32, nbits_a=32)
    model = convert(other, head_tail_bits=32)
    assert model.written is not None
    assert model.header.arch["type"] == "QuantSR_C"


def test_dense_connections_are_concatenated_once():
    program = lower(RRDBNet(3, 3, 4, num_feat=8, num_block=1, num_grow_ch=4))
    widths = [len(op.inputs) for op in program.operations if op.kind == "concat"]
    assert widths == [2, 3, 4, 5] * 3
    assert not any(op.kind == "slice" for op in program.operations)


class Network(nn.Module):
    """A convolution, `middle`, and a convolution."""

    def __init__(self, middle: nn.Module, feat: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, feat, 3, padding=1)
        self.middle = middle
        self.last = nn.Conv2d(feat, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) to the same."""
        return self.last(self.middle(self.first(x)))


class Function(nn.Module):
    """Calls a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """What the function gives."""
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda x: x.relu_(), ["relu"]),
        (lambda x: torch.cat(x.chunk(2, 1), 1), []),
        (lambda x: torch.cat([x[:, 4:], x[:, :4]], 1), ["slice", "slice", "concat"]),
        (lambda x: x.permute(0, 2, 3, 1).reshape(1, -1, 8).transpose(1, 2).view_as(x), []),
        (lambda x: x.roll((2, 1), (2, 3)).sigmoid().roll((-2, -1), (2, 3)), ["sigmoid"]),
        (
            lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)).expand_as(x),
            ["mean", "sigmoid", "multiply"],
        ),
        (lambda x: torch.add(x, x.tanh(), alpha=0.5), ["tanh", "scale", "add"]),
        (lambda x: x.sigmoid() - 0.5, ["scale", "tanh", "scale"]),
        (lambda x: x - nn.functional.silu(x) / 2, ["silu", "scale", "subtract"]),
        (lambda x: nn.functional.dropout(x, 0.5, training=False), []),
        (lambda x: x * torch.ones(()) * 1.0, []),
        (
            lambda x: torch.cat([torch.full((1, 2, *x.shape[2:]), 0.25), x], 1)[:, 1:9],
            ["slice", "scale", "sigmoid", "scale", "slice", "concat"],
        ),
        (lambda x: x * x[:, :2].mean(1, keepdim=True), ["slice"] * 3 + ["add", "scale", "multiply"]),
    ],
)
def test_functions_are_operations(function, kinds):
    operations = lower(Network(Function(function))).operations
    assert [op.kind for op in operations] == ["normalize", "conv", *kinds, "conv", "picture"]
    assert {op.kind for op in operations if op.name} == {"conv"}  # a reader refuses other names


@pytest.mark.parametrize("slopes", [1, 8])
def test_prelu_keeps_its_slopes(slopes):
    (op,) = [op for op in lower(Network(nn.PReLU(slopes))).operations if op.kind == "prelu"]
    assert op.name == "middle"


EACH = torch.arange(1.0, 9.0).view(8, 1, 1)


@pytest.mark.parametrize(
    ("function", "weight", "bias"),
    [
        (lambda x: x + 1, EACH * 0 + 1, EACH * 0 + 1),
        (lambda x: 2 - x, EACH * 0 + 1, EACH * 0 + 2),
        (lambda x: EACH * x, EACH, EACH * 0),
        (lambda x: x / EACH - 0.5, 1 / EACH, EACH * 0 - 0.5),
        (lambda x: (x.movedim(1, -1) * EACH.flatten()).movedim(-1, 1) + 1, EACH, EACH * 0 + 1),
    ],
)
def test_constants_for_each_channel_are_affine(function, weight, bias):
    found = lowered(Network(Function(function)))
    constants = {name: torch.from_numpy(values) for name, values in found.constants.items()}
    last = max(op.name for op in found.program.operations if op.kind == "affine")
    torch.testing.assert_close(constants[f"{last}.weight"], weight.flatten())
    torch.testing.assert_close(constants[f"{last}.bias"], bias.flatten())


def half_in_place(x: Tensor) -> Tensor:
    x[:, :4].relu_()
    return x


def test_operations_in_place_change_their_part_of_a_tensor():
    listing = lower(Network(Function(half_in_place))).listing()
    assert (
        "%3 = slice(%2) start=0 stop=4\n%4 = relu(%3)\n%5 = slice(%2) start=4 stop=8\n%6 = concat(%4, %5)"
        in listing
    )


class TokenSlopes(nn.Module):
    """A PReLU of (B, 8, h, w) as (B, w, 8, h): its slopes go with pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8, h, w) to the same."""
        return self.slopes(x[..., :8].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Subclass(nn.Conv2d):
    """A convolution of standardized weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, stride=2), "middle has stride"),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2), "middle has padding"),
        (nn.Conv2d(8, 8, 3), "middle has padding"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "middle has padding_mode reflect"),
        (nn.Conv2d(8, 8, (3, 1), padding=(1, 0)), "middle has kernel_size"),
        (Subclass(8, 8, 3, padding=1), "middle calls aten.convolution"),
        (nn.Sequential(nn.GELU(), nn.GELU("tanh")), "middle.1 computes GELU by tanh"),
        (nn.BatchNorm2d(8), "middle calls aten."),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "middle calls aten.upsample_bicubic2d"),
        (
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            "middle interpolates with align_corners",
        ),
        (TokenSlopes(), "middle.slopes has num_parameters 8"),
        (nn.MaxPool2d(3, 1, 1), "middle calls aten.max_pool2d"),
        (Function(lambda x: x + torch.arange(x.shape[3])), "middle adds a constant tensor"),
        (Function(lambda x: x * torch.arange(x.shape[3])), "middle multiplies by a constant tensor"),
        (Function(lambda x: x / torch.arange(1.0, 9.0).view(8, 1, 1, 1)), "divides by a constant tensor"),
        (Function(lambda x: x.flip(3) + x), "middle computes add of values that lie differently"),
        (Function(lambda x: x if x.sum() > 0 else -x), "middle calls aten.sum"),
        (Function(lambda x: x[..., 1:]), "last reads a part of a map"),
        (
            Function(lambda x: torch.cat([x, torch.zeros(1, 8, *x.shape[2:])], 1)),
            "middle joins values and a constant",
        ),
        (Function(lambda x: x.relu() if x.shape[2] > 14 else x), "depend on the picture's size"),
        (Function(lambda x: x.no_such_method()), "middle cannot be lowered"),
    ],
)
def test_what_has_no_operation_is_named(middle, message):
    net = Network(middle)
    forwards = {name: module.forward for name, module in net.named_modules()}
    with pytest.raises(InputError) as caught:
        lower(net)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {name: module.forward for name, module in net.named_modules()} == forwards


def test_the_network_is_left_as_it_was():
    net = quantize_layers(Network(nn.Conv2d(8, 8, 1)), [Rule("middle", 4, 4)])
    net.middle.eval()
    before = {name: sorted(vars(module)) for name, module in net.named_modules()}
    lower(net)
    assert {name: sorted(vars(module)) for name, module in net.named_modules()} == before
    assert net.training
    assert not net.middle.training
    assert not net._forward_hooks
    assert not net._forward_pre_hooks


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (lambda x: x, lambda x: x, ((0.0, 1.0), (0.0, 1.0))),
        (lambda x: (x - 0.5) / 0.5, lambda x: x * 0.5 + 0.5, ((0.5, 2.0), (0.5, 2.0))),
        (lambda x: x * 2 - 1, lambda x: (x + 1) / 2, ((0.5, 2.0), (0.5, 2.0))),
        (lambda x: x - 0.25, lambda x: x, ((0.25, 1.0), (0.0, 1.0))),
    ],
)
def test_colours_are_normalized_in_many_ways(before, after, expected):
    class Normalized(Network):
        """Normalizes its picture."""

        def forward(self, x: Tensor) -> Tensor:
            """(B, 3, h, w) to the same."""
            return after(super().forward(before(x)))

    operations = lower(Normalized(nn.Identity())).operations
    found = [(op.attributes["mean"], op.attributes["range"]) for op in (operations[0], operations[-1])]
    assert found == [([mean] * 3, size) for mean, size in expected]


def test_inference_mode_changes_nothing():
    net = FLOAT_NETWORKS["RCAN"]()
    expected = lower(net)
    with torch.inference_mode():
        assert lower(net) == expected
        assert torch.is_inference_mode_enabled()


def test_depth_is_full():
    net = QuantSR_C(num_feat=4, num_block=4)
    net.set_ranking(range(4))
    assert [op.attributes["unit"] for op in lower(net).operations if op.kind == "shortcut"] == [0, 1, 2, 3]
