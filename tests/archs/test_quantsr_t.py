"""QuantSR-T compared with float SwinIR and itself at other depths; its quantization protocols."""

import pytest
import torch
import torch.nn.functional as F

from quantsr.archs import QuantSR_T
from quantsr.archs.swinir import convert_swinir, is_swinir
from quantsr.basicsr_compat import ARCH_REGISTRY, SwinIR
from quantsr.engine import build
from quantsr.engine.network_file import network_file
from quantsr.quant import calibrate, manifest, manifest_table
from quantsr.trained_files import checkpoint

SMALL = {
    **{"embed_dim": 12, "num_block": 4, "layers_per_block": 2, "num_heads": 3},
    **{"window_size": 4, "upscale": 2},
}
EVERYTHING = {"quantize_attention": True, "quantize_conv": True}


def net(**options):
    torch.manual_seed(0)
    return QuantSR_T(**{**SMALL, **options})


def calibrated(**options):
    model = net(**options)
    calibrate(model, [torch.rand(2, 3, 8, 8)])
    units = model.units()
    for i, unit in enumerate(units):
        unit.shortcut.data.fill_(1 + 0.01 * ((i * 5) % len(units)))
    model.rank_blocks()
    return model


def swinir(*, blocks=2, layers=2, seed=0, **options):
    """BasicSR's SwinIR with random weights, also where they are initialised to zeros and ones."""
    torch.manual_seed(seed)
    options = {"upscale": 2, "upsampler": "pixelshuffledirect", "img_size": 64, "embed_dim": 12, **options}
    model = SwinIR(
        depths=[layers] * blocks, num_heads=[3] * blocks, window_size=4, mlp_ratio=2, img_range=1.0, **options
    ).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


def float_network(theirs, **options):
    """QuantSR-T with 32 bits and the parameters of a SwinIR, each of which must be used."""
    ours = net(num_block=2, nbits_w=32, nbits_a=32, **options)
    converted = convert_swinir(theirs.state_dict())
    missing, unexpected = ours.load_state_dict(converted, strict=False)
    assert unexpected == []
    assert all(name.endswith(".shortcut") for name in missing)
    assert len(converted) == len(list(theirs.parameters()))
    return ours.eval()


# --- SwinIR ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"upscale": 2},
        {"upscale": 3},
        {"upscale": 4, "upsampler": "pixelshuffle"},
        {"upscale": 2, "resi_connection": "3conv"},
        {"upscale": 2, "dqa_unit": "layer"},
    ],
    ids=str,
)
def test_with_32_bits_it_is_swinir(options):
    theirs = swinir(**{k: v for k, v in options.items() if k != "dqa_unit"})
    ours = float_network(theirs, **options)
    for size in [(8, 8), (4, 12), (64, 64)]:
        x = torch.rand(2 if size[0] < 64 else 1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 6), (7, 8), (3, 5)])
def test_other_sizes_are_padded_as_in_swinirs_test(size):
    theirs = swinir()
    ours = float_network(theirs)
    x = torch.rand(1, 3, *size)
    height, width = size
    padded = F.pad(x, (0, -width % 4, 0, -height % 4), mode="reflect")
    with torch.no_grad():
        expected = theirs(padded)[..., : 2 * height, : 2 * width]
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5)


def test_gradients_with_32_bits_are_swinirs():
    theirs = swinir()
    ours = float_network(theirs)
    x = torch.rand(1, 3, 8, 12)
    theirs(x).square().mean().backward()
    ours(x).square().mean().backward()
    expected = convert_swinir({n: p.grad for n, p in theirs.named_parameters()})
    own = dict(ours.named_parameters())
    for name, gradient in expected.items():
        torch.testing.assert_close(own[name].grad, gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_load_float_takes_all_of_a_smaller_swinir():
    theirs = swinir()
    model = net()
    assert is_swinir(theirs.state_dict())
    assert not is_swinir(model.state_dict())
    report = model.load_float(theirs.state_dict())
    assert not report.unmatched
    assert len(report.copied) == len(list(theirs.parameters()))
    qkv = theirs.layers[1].residual_group.blocks[0].attn.qkv.weight
    assert torch.equal(model.layers[1].blocks[0].attn.qkv.weight, qkv)


def test_load_float_head_and_tail_only():
    report = net().load_float(swinir().state_dict(), which="head_tail")
    assert {name.split(".")[0] for name in report.copied} == {"conv_after_body", "upsample"}
    with pytest.raises(ValueError, match="no tensor"):
        net().load_float({"nothing": torch.zeros(1)})


def test_a_state_dict_of_quantsr_t_is_not_converted():
    model = net()
    own = model.state_dict()
    assert convert_swinir(own).keys() == own.keys()


@pytest.mark.parametrize("shifted", [False, True])
def test_fused_attention_is_the_same(shifted):
    attention = net().layers[0].blocks[1].attn
    q, k, v = torch.randn(3, 2 * 4, 16, 12).unbind()  # two pictures of four windows
    bias = torch.randn(4, 3, 16, 16) if shifted else torch.randn(3, 16, 16)
    expected = attention._attend(q, k, v, bias)
    torch.testing.assert_close(attention._attend_fused(q, k, v, bias), expected, rtol=0, atol=1e-5)


# --- depth ----------------------------------------------------------------------------------------

UNITS = [("rstb", (4, 2, 1)), ("layer", (8, 4, 2))]


@pytest.mark.parametrize(("unit", "depths"), UNITS)
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["linear", "everything"])
def test_several_depths_in_one_pass_equal_one_by_one(unit, depths, options):
    model = calibrated(dqa_unit=unit, **options)
    assert model.depths == depths
    x = torch.rand(2, 3, 6, 9)
    with torch.no_grad():
        outputs = model(x, depth=depths)
        for depth, out in zip(depths, outputs, strict=True):
            assert torch.equal(out, model(x, depth=depth))
        # Ranking by the loss gives the units instead of a depth.
        for out, again in zip(
            outputs, model.run_units(x, [frozenset(model.blocks_kept(d)) for d in depths]), strict=True
        ):
            assert torch.equal(out, again)


@pytest.mark.parametrize(("unit", "depths"), UNITS)
def test_gradients_of_several_depths_add_up(unit, depths):
    model = calibrated(dqa_unit=unit, **EVERYTHING)
    x = torch.rand(2, 3, 8, 8)
    sum(out.square().mean() for out in model(x, depth=depths)).backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for depth in depths:
        model(x, depth=depth).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("unit", "depths"), UNITS)
def test_a_skipped_unit_only_scales(unit, depths):
    """With shortcut 1 and branches of output 0, skipping changes nothing; another shortcut does."""
    model = net(dqa_unit=unit, nbits_w=32, nbits_a=32)
    model.set_ranking(range(depths[0])[::-1])
    skipped = model.units()[0]  # not the last: the LayerNorm after it cancels any factor
    for name, parameter in skipped.named_parameters():
        if name.startswith(("conv", "attn.proj", "mlp.fc2")):
            parameter.data.zero_()
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(x, depth=depths[0] - 1), rtol=0, atol=1e-6)
        before = model(x, depth=depths[0] - 1)
        skipped.shortcut.fill_(1.5)
        assert (model(x, depth=depths[0] - 1) - before).abs().max() > 1e-4


def test_depth_runs_the_units_with_the_smallest_shortcuts():
    model = calibrated(dqa_unit="layer")
    order = sorted(range(8), key=lambda i: model.units()[i].shortcut.item())
    assert model.ranking == tuple(order)
    assert model.blocks_kept(3) == tuple(sorted(order[:3]))
    assert [name for name, _ in model.named_parameters() if name.endswith("shortcut")] == [
        f"layers.{i}.blocks.{j}.shortcut" for i in range(4) for j in range(2)
    ]


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (5, 13)])
@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_any_input_size_is_upscaled(size, upscale):
    model = calibrated(upscale=upscale)
    with torch.no_grad():
        outputs = model(torch.rand(2, 3, *size), depth=(4, 1))
    assert [out.shape for out in outputs] == [(2, 3, size[0] * upscale, size[1] * upscale)] * 2
    assert all(out.isfinite().all() for out in outputs)


# --- quantized layers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "protocol", "kinds"),
    [
        ({}, "QuantSR", {"qkv", "proj", "fc1", "fc2"}),
        (
            {"quantize_attention": True},
            "2DQuant",
            {"qkv", "proj", "fc1", "fc2", "scores", "mixture"},
        ),
        (EVERYTHING, "QuantSR+", {"qkv", "proj", "fc1", "fc2", "scores", "mixture", "conv"}),
    ],
)
def test_protocols_quantize_their_layers_and_are_named(options, protocol, kinds):
    model = calibrated(nbits_w=3, nbits_a=4, **options)
    records = manifest(model, model.protocol)
    quantized = [r for r in records if r["quantizer"] is not None]
    assert {r["name"].split(".")[-1] for r in quantized} == kinds
    per_layer = {"qkv", "proj", "fc1", "fc2", "scores", "mixture"} & kinds
    assert len(quantized) == 8 * len(per_layer) + 4 * ("conv" in kinds)
    expected = {True: {(4, 4)}, False: {(3, 4)}}
    for kind in {r["kind"] for r in quantized}:
        bits = {(r["bits_w"], r["bits_a"]) for r in quantized if r["kind"] == kind}
        assert bits == expected[kind == "matmul"]
    assert {r["protocol"] for r in records} == {protocol}
    assert manifest_table(model, model.protocol).startswith(f"protocol: {protocol}\n")
    assert build.title(model) == f"QuantSR_T W3A4, {protocol} protocol"
    floats = {r["name"] for r in records if r["quantizer"] is None}
    assert {"conv_first", "conv_after_body", "upsample.0"} <= floats
    assert ("layers.0.conv" in floats) == ("conv" not in kinds)


def test_a_float_network_has_no_protocol():
    model = net(nbits_w=32, nbits_a=32)
    assert model.protocol is None
    assert build.title(model) == "float QuantSR_T"


def test_three_convolutions_can_be_quantized():
    model = calibrated(resi_connection="3conv", **EVERYTHING)
    names = [r["name"] for r in manifest(model) if r["kind"] == "conv" and r["quantizer"]]
    assert names == [f"layers.{i}.conv.{j}" for i in range(4) for j in (0, 2, 4)]


def test_signs_follow_calibration():
    signs = {
        r["name"].split(".")[-1]: r["signed"] for r in manifest(calibrated(**EVERYTHING)) if r["quantizer"]
    }
    assert signs == {
        **dict.fromkeys(("qkv", "proj", "fc1", "fc2", "scores", "conv"), True),
        "mixture": False,
    }


def test_an_uncalibrated_network_refuses_to_run():
    with pytest.raises(RuntimeError, match="not calibrated"):
        net()(torch.rand(1, 3, 4, 4))


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("quantizer", ["RLQ", "LSQ"])
def test_gradients_reach_every_parameter(amp, quantizer):
    model = calibrated(nbits_w=4, nbits_a=4, quantizer=quantizer, **EVERYTHING)
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        outputs = model(x, depth=model.depths)
    sum((out.float() - y).abs().mean() for out in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["linear", "everything"])
def test_the_output_under_autocast_is_close(options):
    model = calibrated(nbits_w=8, nbits_a=8, **options)
    x = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fast = model(x)
    assert (fast.float() - exact).abs().mean() < 0.01


def test_channels_last_gives_the_same():
    model = calibrated(**EVERYTHING)
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            model(x.contiguous(memory_format=torch.channels_last)), expected, rtol=0, atol=1e-5
        )


# --- building and saving --------------------------------------------------------------------------


def test_it_is_registered():
    assert ARCH_REGISTRY.get("QuantSR_T") is QuantSR_T


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nbits_w": 9}, "nbits_w"),
        ({"nbits_a": 1}, "nbits_a"),
        ({"depths": [8]}, r"1\.\.4"),
        ({"depths": [2, 1]}, "full depth 4"),
        ({"dqa_unit": "layer", "depths": [4]}, "full depth 8"),
        ({"dqa_unit": "head"}, "dqa_unit"),
        ({"upscale": 5}, "upscale"),
        ({"num_heads": 5}, "num_heads"),
        ({"num_heads": 0}, "num_heads"),
        ({"window_size": 1}, "window_size"),
        ({"rgb_mean": [0.1, 0.2]}, "rgb_mean"),
        ({"upsampler": "nearest+conv"}, "upsampler"),
        ({"resi_connection": "2conv"}, "resi_connection"),
        ({"quantizer": "nope"}, "not registered"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        net(**options)


@pytest.mark.parametrize("unit", ["rstb", "layer"])
def test_a_checkpoint_rebuilds_the_network(unit, tmp_path):
    model = calibrated(nbits_w=3, weight_granularity="channel", dqa_unit=unit, **EVERYTHING)
    file = tmp_path / "net.pth"
    checkpoint.save(file, network_file(model, None, iteration=7))
    entry = checkpoint.metadata(checkpoint.load(file), file)
    arch = entry["arch"]
    rebuilt = build.build_network(arch.pop("type"), arch)
    assert build.load_checkpoint(rebuilt, str(file)) == 7
    assert rebuilt.ranking == model.ranking
    assert entry["manifest"][0]["protocol"] == "QuantSR+"
    x = torch.rand(1, 3, 5, 6)
    with torch.no_grad():
        for depth in model.depths:
            assert torch.equal(rebuilt(x, depth=depth), model(x, depth=depth))
