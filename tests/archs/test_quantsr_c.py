"""QuantSR-C compared with the released formulation, float EDSR, and itself at other depths."""

import pytest
import torch

from quantsr.archs import QEDSR_Ours, QuantSR_C
from quantsr.archs.released import convert_state_dict, is_released
from quantsr.basicsr_compat import ARCH_REGISTRY, EDSR, MSRResNet
from quantsr.quant import calibrate
from tests.reference.released_quantizer import ReleasedQuantSRC

SMALL = {"num_feat": 8, "num_block": 8, "upscale": 4}


def net(**options):
    torch.manual_seed(0)
    return QuantSR_C(**{**SMALL, **options})


def calibrated(**options):
    model = net(**options)
    calibrate(model, [torch.rand(2, 3, 12, 12)])
    for i, block in enumerate(model.body):
        block.shortcut.data.fill_(1 + 0.01 * ((i * 5) % 8))
    model.rank_blocks()
    return model


@pytest.fixture(params=[(4, 4), (2, 2), (3, 8)], ids=str)
def pair(request):
    """Our network and the released one with equal parameters, after the initialisation of steps."""
    bits_w, bits_a = request.param
    torch.manual_seed(0)
    theirs = ReleasedQuantSRC(num_feat=8, num_block=8, upscale=4, bits_w=bits_w, bits_a=bits_a)
    theirs(torch.rand(2, 3, 12, 12))
    for block in theirs.body:
        torch.nn.init.normal_(block.learnable_shortcut, 1, 0.05)
        for conv in (block.conv1, block.conv2):
            torch.nn.init.normal_(conv.channel_threshold, 0, 0.5)
    ours = QEDSR_Ours(num_in_ch=3, num_out_ch=3, num_feat=8, num_block=8, nbits_w=bits_w, nbits_a=bits_a)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_released_state_dict_gives_the_released_numbers_and_gradients(pair):
    ours, theirs = pair
    x, y = torch.rand(2, 3, 10, 9), torch.rand(2, 3, 40, 36)
    a, b = ours(x), theirs(x)
    torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    (a - y).abs().mean().backward()
    (b - y).abs().mean().backward()
    expected = convert_state_dict({n: p.grad for n, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        scale = expected[name].abs().max().item() + 1e-8
        torch.testing.assert_close(
            parameter.grad / scale, expected[name] / scale, rtol=0, atol=1e-4, msg=name
        )


@pytest.mark.parametrize("version", [0, 1, 2])
def test_released_versions_keep_one_block_more(pair, version):
    ours, theirs = pair
    order = [7, 6, 0, 3, 1, 2, 5, 4]
    ours.set_ranking(order)
    ours.depth_rule = "released"
    x = torch.rand(1, 3, 7, 8)
    depth = 8 >> version
    assert len(ours.blocks_kept(depth)) == (depth if version == 0 else depth + 1)
    torch.testing.assert_close(ours(x, depth=depth), theirs(x, version, order), rtol=0, atol=2e-6)


def test_calibration_is_the_released_first_step():
    torch.manual_seed(0)
    theirs = ReleasedQuantSRC(num_feat=8, num_block=4, upscale=2, bits_w=4, bits_a=4)
    ours = QuantSR_C(num_feat=8, num_block=4, upscale=2)
    weights = {k: v for k, v in theirs.state_dict().items() if k.endswith(("weight", "bias"))}
    ours.load_state_dict(weights, strict=False)
    x = torch.rand(2, 3, 12, 12)
    theirs(x)
    calibrate(ours, [x])
    expected = convert_state_dict(theirs.state_dict())
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value.float(), expected[name].float(), rtol=1e-5, atol=1e-7, msg=name)


def test_released_names_are_recognised():
    theirs = ReleasedQuantSRC(num_feat=4, num_block=2, upscale=2, bits_w=4, bits_a=4)
    assert is_released(theirs.state_dict())
    assert not is_released(net().state_dict())


def test_both_names_are_registered():
    assert ARCH_REGISTRY.get("QuantSR_C") is QuantSR_C
    assert issubclass(ARCH_REGISTRY.get("QEDSR_Ours"), QuantSR_C)


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_with_32_bits_it_is_edsr(upscale):
    torch.manual_seed(0)
    edsr = EDSR(3, 3, num_feat=8, num_block=4, upscale=upscale)
    ours = QuantSR_C(num_feat=8, num_block=4, upscale=upscale, nbits_w=32, nbits_a=32)
    report = ours.load_float(edsr.state_dict())
    assert not report.unmatched
    x = torch.rand(1, 3, 9, 7)
    torch.testing.assert_close(ours(x), edsr(x), rtol=0, atol=1e-6)


def test_a_direct_tail_is_one_convolution_and_a_shuffle():
    torch.manual_seed(0)
    model = QuantSR_C(
        num_feat=8, num_block=4, upscale=3, upsampler="pixelshuffledirect", nbits_w=32, nbits_a=32
    )
    tail = [
        (name, tuple(p.shape))
        for name, p in model.named_parameters()
        if name.startswith(("upsample", "conv_last"))
    ]
    assert tail == [("upsample.0.weight", (27, 8, 3, 3)), ("upsample.0.bias", (27,))]
    seen = []
    model.upsample.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = torch.rand(2, 3, 5, 4)
    out = model(x)
    conv = torch.nn.functional.conv2d(seen[0], model.upsample[0].weight, model.upsample[0].bias, padding=1)
    picture = torch.nn.functional.pixel_shuffle(conv, 3) / 255 + model.mean
    assert out.shape == (2, 3, 15, 12)
    torch.testing.assert_close(out, picture, rtol=0, atol=1e-6)
    assert torch.equal(model.train()(x), out)


def test_load_float_head_and_tail_only_as_released():
    torch.manual_seed(1)
    edsr = EDSR(3, 3, num_feat=8, num_block=8, upscale=4)
    model = net()
    report = model.load_float(edsr.state_dict(), which="head_tail")
    assert {n.split(".")[0] for n in report.copied} == {"conv_last", "conv_after_body", "upsample"}
    assert torch.equal(model.conv_last.weight, edsr.conv_last.weight)
    assert not torch.equal(model.body[0].conv1.weight, edsr.body[0].conv1.weight)


def test_a_deepened_network_has_the_same_output_and_gradients_in_every_block():
    torch.manual_seed(2)
    edsr = EDSR(3, 3, num_feat=8, num_block=3, upscale=2)
    model = QuantSR_C(num_feat=8, num_block=8, upscale=2, nbits_w=32, nbits_a=32)
    report = model.load_float(edsr.state_dict(), which="deepen")
    assert not report.unmatched
    for old, new in enumerate((0, 2, 5)):
        assert torch.equal(model.body[new].conv1.weight, edsr.body[old].conv1.weight)
    x = torch.rand(1, 3, 9, 7)
    torch.testing.assert_close(model(x), edsr(x), rtol=0, atol=1e-6)
    model(x).square().sum().backward()
    assert all(block.conv2.weight.grad.abs().max() > 0 for block in model.body)
    with pytest.raises(ValueError, match="3 blocks, which cannot be deepened to 2"):
        net(num_block=2).load_float(edsr.state_dict(), which="deepen")
    with pytest.raises(ValueError, match="deepen is for shortcuts: block"):
        net(shortcuts="conv").load_float(edsr.state_dict(), which="deepen")


def test_a_deepened_quantized_network_keeps_its_quantizers_and_adds_little():
    shallow = calibrated(depths=[8])
    model = net(num_block=12, depths=[12])
    report = model.load_float(shallow.state_dict(), which="deepen")
    assert not report.unmatched
    x = torch.rand(2, 3, 12, 12)
    calibrate(model, [x], only_missing=True)
    added = {2, 5, 8, 11}
    old = [index for index in range(12) if index not in added]
    for index, block in zip(old, shallow.body, strict=True):
        for key, value in block.state_dict().items():
            assert torch.equal(model.body[index].state_dict()[key], value), key
    assert all(model.body[index].conv2.weight_quantizer.step > 1e-5 for index in added)
    assert (model(x) - shallow(x)).abs().mean() < 0.05 * shallow(x).std()
    calibrate(model, [x])  # all of them
    assert not torch.equal(
        model.body[0].conv1.input_quantizer.step, shallow.body[0].conv1.input_quantizer.step
    )


def test_a_float_start_deepened_with_bits_gets_steps_and_other_quantizers_are_an_error():
    edsr = EDSR(3, 3, num_feat=8, num_block=8, upscale=4)
    model = net(num_block=12)
    model.load_float(edsr.state_dict(), which="deepen")
    calibrate(model, [torch.rand(1, 3, 12, 12)])
    assert all(block.conv2.weight_quantizer.step > 1e-5 for block in model.body)
    with pytest.raises(ValueError, match=r"body\.0\.conv1 differ"):
        net(num_block=12, weight_granularity="channel").load_float(calibrated().state_dict(), which="deepen")
    bare = net(num_block=12, nbits_w=32, nbits_a=32)
    assert not bare.load_float(calibrated().state_dict(), which="deepen").unmatched


def test_load_float_reports_tensors_that_did_not_match():
    report = net(num_block=4).load_float(MSRResNet(num_feat=8, num_block=4, upscale=4).state_dict())
    assert "conv_hr.weight" in report.unmatched
    assert "upsample.2.weight" in report.copied
    with pytest.raises(ValueError, match="no tensor"):
        net().load_float({"nothing": torch.zeros(1)})


def test_shortcuts_around_convolutions_add_what_each_of_them_reads():
    model = net(shortcuts="conv", nbits_w=32, nbits_a=32, num_block=2, upscale=2, res_scale=0.5)
    x = torch.rand(1, 3, 9, 7)
    shallow = features = model.conv_first((x - model.mean) * 255)
    for factor, block in zip((0.9, 1.1), model.body, strict=True):
        block.shortcut.data.fill_(factor)
        branch = torch.relu(block.conv1(features))
        branch = branch + block.conv2(features + branch)
        features = factor * features + 0.5 * branch
    features = model.conv_after_body(features) + shallow
    expected = model.conv_last(model.upsample(features)) / 255 + model.mean
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)


def test_files_of_networks_without_them_do_not_mention_shortcuts_around_convolutions():
    assert "shortcuts" not in net().arch_options()
    assert net(shortcuts="conv").arch_options()["shortcuts"] == "conv"


@pytest.mark.parametrize(
    "options", [{"quantizer": "RLQ"}, {"quantizer": "LSQ"}, {"shortcuts": "conv"}], ids=str
)
def test_several_depths_in_one_pass_equal_one_by_one(options):
    model = calibrated(**options)
    x = torch.rand(2, 3, 6, 11)
    together = model(x, depth=(8, 4, 2))
    for depth, out in zip((8, 4, 2), together, strict=True):
        assert torch.equal(out, model(x, depth=depth))


def test_gradients_of_several_depths_add_up():
    model = calibrated()
    x = torch.rand(2, 3, 6, 6)
    sum(out.square().mean() for out in model(x, depth=model.depths)).backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for depth in model.depths:
        model(x, depth=depth).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_depth_runs_the_blocks_with_the_smallest_shortcuts():
    model = calibrated()
    order = sorted(range(8), key=lambda i: model.body[i].shortcut.item())
    assert model.ranking == tuple(order)
    assert model.blocks_kept(4) == tuple(sorted(order[:4]))
    assert model.blocks_kept(None) == tuple(range(8))


def test_the_shortcut_of_a_skipped_block_is_applied():
    model = calibrated()
    x = torch.rand(1, 3, 5, 5)
    before = model(x, depth=2)
    skipped = next(i for i in range(8) if i not in model.blocks_kept(2))
    model.body[skipped].shortcut.data.mul_(1.5)
    assert not torch.equal(before, model(x, depth=2))


def test_depth_needs_a_ranking_and_a_range():
    model = net()
    with pytest.raises(ValueError, match="not ranked"):
        model.blocks_kept(4)
    for _ in range(2):
        for depth in (-1, 0, 9):
            with pytest.raises(ValueError, match=r"depth must be 1\.\.8"):
                model.blocks_kept(depth)
        model.set_ranking(range(8))
    with pytest.raises(ValueError, match="each of the 8 blocks once"):
        model.set_ranking([0] * 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nbits_w": 9}, "nbits_w"),
        ({"nbits_a": 1}, "nbits_a"),
        ({"depths": [16]}, r"1\.\.8"),
        ({"depths": [4, 2]}, "full depth 8"),
        ({"upscale": 5}, "upscale"),
        ({"upsampler": "nearest+conv"}, "upsampler"),
        ({"rgb_mean": [0.1, 0.2]}, "rgb_mean"),
        ({"quantizer": "nope"}, "not registered"),
        ({"depth_rule": "relased"}, "depth_rule"),
        ({"shortcuts": "convs"}, "shortcuts must be one of"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        net(**options)


def test_arch_options_rebuild_the_network():
    model = calibrated(nbits_w=3, weight_granularity="channel")
    options = model.arch_options()
    rebuilt = ARCH_REGISTRY.get(options.pop("type"))(**options)
    rebuilt.load_state_dict(model.state_dict())
    rebuilt.set_ranking(model.ranking)
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(rebuilt(x, depth=4), model(x, depth=4))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3)])
@pytest.mark.parametrize("upscale", [1, 2, 3, 4])
def test_any_input_size_is_upscaled(shape, upscale):
    model = calibrated(upscale=upscale)
    out = model(torch.rand(2, 3, *shape), depth=4)
    assert out.shape == (2, 3, shape[0] * upscale, shape[1] * upscale)


def test_the_output_under_autocast_is_close():
    model = calibrated()
    x = torch.rand(2, 3, 16, 16)
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = model(x)
    assert fast.dtype == torch.bfloat16 or fast.dtype == torch.float32
    assert (fast.float() - exact).abs().mean() < 0.01
