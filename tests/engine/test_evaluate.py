"""The evaluation loop gives BasicSR's values, for networks and for functions, at every depth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from quantsr import quant
from quantsr.basicsr_compat import EDSR, calculate_psnr, calculate_ssim, img2tensor, tensor2img
from quantsr.data.resize import imresize_uint8
from quantsr.engine import build
from quantsr.engine.evaluate import EvalSet, Saving, bicubic, evaluate, to_picture, to_tensor
from quantsr.engine.results import Record, markdown, read_results, table, write_results
from quantsr.engine.selfensemble import inverse, self_ensemble, transform
from quantsr.engine.strips import forward_in_strips, receptive_radius
from quantsr.errors import InputError
from tests.engine.conftest import smooth_picture

METRICS = {
    "psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True},
    "ssim": {"type": "calculate_ssim", "crop_border": 2, "test_y_channel": True},
}


@pytest.fixture(scope="module")
def small_set() -> EvalSet:
    items = []
    for seed, (height, width) in enumerate([(24, 30), (31, 22)]):
        gt = smooth_picture(seed, 2 * height, 2 * width)
        items.append({"name": f"p{seed}", "gt": gt, "lq": imresize_uint8(gt, 0.5)})
    return EvalSet("Small", 2, items)


def network(num_block: int = 4) -> nn.Module:
    net = build.build_network("QuantSR_C", {"num_feat": 8, "num_block": num_block, "upscale": 2})
    net = quant.calibrate(net, [torch.rand(2, 3, 12, 12)])
    with torch.no_grad():
        for index, block in enumerate(net.body):
            block.shortcut.fill_(1.0 + 0.1 * ((7 * index) % num_block))
    net.rank_blocks()
    return net


def basicsr_values(net: nn.Module, dataset: EvalSet, **kwargs: Any) -> tuple[float, float]:
    """PSNR and SSIM by the steps of BasicSR's SRModel.nondist_validation on pictures read by OpenCV
    (BGR, [0, 1])."""
    psnr = ssim = 0.0
    for item in dataset.pictures:
        lq = item["lq"][..., ::-1].astype(np.float32) / 255.0
        gt = item["gt"][..., ::-1].astype(np.float32) / 255.0
        lq_t, gt_t = img2tensor(
            [np.ascontiguousarray(lq), np.ascontiguousarray(gt)], bgr2rgb=True, float32=True
        )
        with torch.no_grad():
            out = net(lq_t.unsqueeze(0), **kwargs)
        pair = {"img": tensor2img([out]), "img2": tensor2img([gt_t.unsqueeze(0)])}
        psnr += calculate_psnr(**pair, crop_border=2, test_y_channel=True)
        ssim += calculate_ssim(**pair, crop_border=2, test_y_channel=True)
    return psnr / len(dataset.pictures), ssim / len(dataset.pictures)


def test_values_of_a_network_are_basicsrs(small_set: EvalSet) -> None:
    net = network()
    records = evaluate(net, [small_set], metrics=METRICS, name="QuantSR_C W4A4")
    assert [(r.depth, r.metric) for r in records] == [(d, m) for d in (4, 2, 1) for m in ("psnr", "ssim")]
    for depth in (4, 2, 1):
        wanted = basicsr_values(net.eval(), small_set, depth=depth)
        found = [r.value for r in records if r.depth == depth]
        assert found == pytest.approx(wanted, abs=1e-12)
    assert records[0].pictures == 2


def test_values_of_a_float_network_are_basicsrs(small_set: EvalSet) -> None:
    net = EDSR(3, 3, num_feat=8, num_block=2, upscale=2, img_range=255.0)
    records = evaluate(net, [small_set], metrics=METRICS, name="float EDSR")
    assert [r.depth for r in records] == [None, None]
    assert [r.value for r in records] == pytest.approx(basicsr_values(net.eval(), small_set), abs=1e-12)


def test_the_values_of_bicubic_are_basicsrs(small_set: EvalSet) -> None:
    records = bicubic([small_set], metrics=METRICS)
    wanted = [
        calculate_psnr(imresize_uint8(i["lq"], 2)[..., ::-1], i["gt"][..., ::-1], 2, test_y_channel=True)
        for i in small_set.pictures
    ]
    assert records[0].network == "bicubic"
    assert records[0].value == pytest.approx(sum(wanted) / 2, abs=1e-12)


def test_conversions_are_inverse_and_basicsrs() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    x = to_tensor(picture, torch.device("cpu"))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(to_picture(x), picture)
    noisy = torch.randn(1, 3, 40, 40) * 0.6 + 0.5
    assert np.array_equal(to_picture(noisy), tensor2img(noisy)[..., ::-1])


def test_evaluation_restores_modes_and_changes_no_parameter(small_set: EvalSet) -> None:
    net = network().train()
    net.conv_last.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    evaluate(net, [small_set], metrics=METRICS, name="x", depths=[2])
    assert net.training
    assert not net.conv_last.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    # no tensor of the inference mode is left in the network
    net(torch.rand(1, 3, 5, 5)).sum().backward()


def test_transforms_are_the_eight_symmetries_and_invert() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    seen = {(tuple(t.shape), tuple(t.flatten().tolist())) for t in (transform(x, i) for i in range(8))}
    assert len(seen) == 8
    for index in range(8):
        assert torch.equal(inverse(transform(x, index), index), x)


def test_self_ensemble_is_equivariant() -> None:
    """f(T x) = T f(x) for every symmetry T, which does not hold for the network alone."""
    net = network().eval()
    x = torch.rand(1, 3, 9, 6)

    def once(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(net(y, depth=(4, 1)))

    with torch.no_grad():
        base = self_ensemble(once, x)
        assert not torch.allclose(once(transform(x, 5))[0], transform(once(x)[0], 5), atol=1e-3)
        for index in range(8):
            for a, b in zip(self_ensemble(once, transform(x, index)), base, strict=True):
                torch.testing.assert_close(a, transform(b, index), rtol=0, atol=1e-5)


def test_self_ensemble_of_a_symmetric_upscaler_changes_nothing(small_set: EvalSet) -> None:
    def repeat(picture: np.ndarray) -> np.ndarray:
        return picture.repeat(2, 0).repeat(2, 1)

    plain = evaluate(repeat, [small_set], metrics=METRICS, name="repeat")
    eight = evaluate(repeat, [small_set], metrics=METRICS, name="repeat", ensemble=True)
    assert [r.value for r in plain] == [r.value for r in eight]
    assert eight[0].row == "repeat, self-ensemble"


def test_self_ensemble_of_a_network_is_the_mean_of_eight_outputs(small_set: EvalSet) -> None:
    net = network()
    records = evaluate(net, [small_set], metrics=METRICS, name="x", depths=[2], ensemble=True)
    wanted = []
    for item in small_set.pictures:
        x = to_tensor(item["lq"], torch.device("cpu"))
        with torch.no_grad():
            outs = [inverse(net.eval()(transform(x, i).contiguous(), depth=2), i) for i in range(8)]
        sr = tensor2img(torch.stack(outs).mean(0))
        wanted.append(calculate_psnr(sr, item["gt"][..., ::-1], 2, test_y_channel=True))
    assert records[0].value == pytest.approx(sum(wanted) / 2, abs=1e-3)


def test_strips_equal_the_whole_picture() -> None:
    net = network(num_block=2).eval()
    x = torch.rand(1, 3, 150, 20)
    calls = []

    def forward(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(y.shape[-2])
        return tuple(net(y, depth=(2, 1)))

    with torch.no_grad():
        whole = forward(x)
        parts = forward_in_strips(net, forward, x, 2, max_output_pixels=4 * 20 * 60)
    assert receptive_radius(net) == 8  # 2 blocks of two convs, and four around them
    assert calls == [150, 52, 60, 60, 26]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_sizes_that_do_not_fit_are_named(small_set: EvalSet) -> None:
    with pytest.raises(InputError, match="upscaled picture is 30x24, ground truth 60x48"):
        evaluate(lambda picture: picture, [small_set], metrics=METRICS, name="x")
    with pytest.raises(InputError, match="Empty: holds no pictures"):
        evaluate(lambda picture: picture, [EvalSet("Empty", 2, [])], metrics=METRICS, name="x")


def test_pictures_are_saved_up_to_the_limit(small_set: EvalSet, tmp_path: Path) -> None:
    net = network()
    evaluate(net, [small_set], metrics=METRICS, name="x", depths=[4, 1], saving=Saving(tmp_path, "mine", 1))
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png"))
    assert names == ["Small/p0_mine_depth1.png", "Small/p0_mine_depth4.png"]
    with torch.no_grad():
        out = net.eval()(to_tensor(small_set.pictures[0]["lq"], torch.device("cpu")), depth=1)
    assert np.array_equal(cv2.imread(str(tmp_path / names[0])), tensor2img(out))


def record(**changes: Any) -> Record:
    base = {"set": "Set5", "scale": 4, "network": "QuantSR_C W4A4", "depth": 32, "metric": "psnr"}
    return Record(**{**base, "value": 31.23456, "pictures": 5, **changes})


def test_result_files_are_written_and_read(tmp_path: Path) -> None:
    records = [
        record(network="bicubic", depth=None, value=28.43, engine="numpy"),
        record(network="bicubic", depth=None, metric="ssim", value=0.8111, engine="numpy"),
        record(),
        record(metric="ssim", value=0.87),
        record(depth=8, value=math.inf),
        record(set="B100", depth=8, value=26.0),
    ]
    write_results(records, tmp_path)
    assert read_results(tmp_path / "results.json") == records
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows[2]["value"] == 31.23456  # in full; the table rounds
    assert rows[4]["value"] == "inf"
    assert (tmp_path / "results.md").read_text() == markdown(records)
    assert table(records, "Set5").splitlines() == [
        "| network                  |  PSNR |   SSIM |",
        "|--------------------------|------:|-------:|",
        "| bicubic                  | 28.43 | 0.8111 |",
        "| QuantSR_C W4A4, depth 32 | 31.23 | 0.8700 |",
        "| QuantSR_C W4A4, depth 8  |   inf |      - |",
    ]
    assert "## B100, x4, 5 pictures" in markdown(records)
