"""Every option file runs: two iterations of training, then its test file on the trained network.

The networks keep their blocks, bits, depths, teachers and losses, but have few channels; the
pictures are tiny.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from quantsr.analysis import compare
from quantsr.analysis.evaluation import evaluate_options
from quantsr.analysis.runs import Ledger
from quantsr.basicsr_compat import ARCH_REGISTRY
from quantsr.commands.train import main as train
from quantsr.config import Options, load_options
from quantsr.config.compare import load_comparison
from quantsr.quant import get_compile, set_compile
from tests.reference.released_quantizer import ReleasedQuantSRC

ROOT = Path(__file__).parents[1]
TRAIN = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "options" / "train").glob("*/*.yml"))
COMPARE = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "options" / "compare").glob("*.yml"))
NARROW = {
    "QuantSR_C": {"num_feat": 4},
    "QEDSR_Ours": {"num_feat": 4},
    "EDSR": {"num_feat": 4},
    "QuantSR_T": {"embed_dim": 8, "num_heads": 2, "layers_per_block": 2, "window_size": 4},
}


@pytest.fixture(autouse=True)
def _one_thread_and_switches():
    mode = get_compile()
    yield
    set_compile(mode)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(2):
        noise = rng.random((6, 7, 3)).astype(np.float32) * 255
        cv2.imwrite(str(folder / f"p{i}.png"), cv2.resize(noise, (60, 72)).round())
    return folder


def narrow(network):
    changed = {**network, **NARROW.get(network["type"], {})}
    if network["type"] == "SwinIR":
        layers = [2] * len(network["depths"])
        changed |= {"embed_dim": 8, "depths": layers, "num_heads": layers, "window_size": 4, "img_size": 8}
    return changed


def shrunk(file, pictures, tmp_path, *, is_train):
    """The options of a file with narrow networks, tiny pictures and, for training, two
    iterations."""
    options = load_options(str(ROOT / file), is_train=is_train, check_paths=False).dump()
    scale = options["scale"]
    tiny = {"name": "tiny", "type": "CroppedImageDataset", "dataroot_gt": str(pictures)}
    options["network_g"] = narrow(options["network_g"])
    options["path"] |= {
        "experiments_root": str(tmp_path / "experiments"),
        "results_root": str(tmp_path / "results"),
    }
    teacher = options.get("network_teacher")
    if teacher is not None:
        options["network_teacher"] = narrow(teacher)
        weights = {k: v for k, v in options["network_teacher"].items() if k != "type"}
        torch.save(
            {"params": ARCH_REGISTRY.get(teacher["type"])(**weights).state_dict()}, tmp_path / "teacher.pth"
        )
        options["path"]["pretrain_network_teacher"] = str(tmp_path / "teacher.pth")
        if options["path"].get("fp_pretrain_network_g"):
            options["path"]["fp_pretrain_network_g"] = str(tmp_path / "teacher.pth")
    elif options["path"].get("fp_pretrain_network_g"):
        start = {**options["network_g"], "nbits_w": 32, "nbits_a": 32}
        net = ARCH_REGISTRY.get(start.pop("type"))(**start)
        torch.save({"params": net.state_dict()}, tmp_path / "start.pth")
        options["path"]["fp_pretrain_network_g"] = str(tmp_path / "start.pth")
    if is_train:
        start = options["path"].get("pretrain_network_g")
        if start is not None:  # experiments/starts/NAME.pth, the network of the option file NAME
            before = shrunk(
                Path(file).with_name(f"{Path(start).stem}.yml"), pictures, tmp_path, is_train=True
            )
            assert train(before) == 0
            options["path"]["pretrain_network_g"] = f"{before.experiment_folder}/models/net_g_latest.pth"
        soft = {"dataroot_soft": str(pictures)} if "dataroot_soft" in options["datasets"]["train"] else {}
        options["datasets"] = {"train": {**tiny, **soft, "gt_size": 8 * scale, "batch_size_per_gpu": 1}}
        options["train"] |= {"total_iter": 2, "compile": False}
        options["train"]["stage1_fraction"] = min(options["train"]["stage1_fraction"], 0.5)
        options["logger"]["use_tb_logger"] = False
    else:
        options["datasets"] = {"test_1": tiny}
        options["val"]["save_img"] = False
    options["num_gpu"] = 0
    return Options.model_validate(options)


@pytest.mark.integration
@pytest.mark.parametrize("file", TRAIN)
def test_every_training_file_trains_and_its_test_file_evaluates(file, pictures, tmp_path):
    options = shrunk(file, pictures, tmp_path, is_train=True)
    assert train(options) == 0
    written = Path(options.experiment_folder) / "models" / "net_g_latest.pth"
    assert written.exists()

    test_file = ROOT / file.replace("/train/", "/test/")
    if not test_file.exists():
        return
    tested = shrunk(str(test_file.relative_to(ROOT)), pictures, tmp_path, is_train=False)
    assert tested.path.pretrain_network_g == f"experiments/{options.name}/models/net_g_latest.pth"
    tested = Options.model_validate(
        {**tested.dump(), "path": {**tested.dump()["path"], "pretrain_network_g": str(written)}}
    )
    records = evaluate_options(tested)
    depths = {record.depth for record in records if "QuantSR" in record.network}
    assert depths >= set(tested.network_g.kwargs.get("depths") or ())
    assert all(np.isfinite(record.value) for record in records)


@pytest.mark.integration
@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_released_test_file_evaluates_a_released_checkpoint(version, pictures, tmp_path):
    torch.manual_seed(0)
    net = ReleasedQuantSRC(num_feat=4, num_block=32, upscale=4, bits_w=4, bits_a=4)
    net(torch.rand(1, 3, 12, 12))
    torch.save({"params": net.state_dict()}, tmp_path / "released.pth")
    options = shrunk("options/test/QuantSR_C/released_w4a4_x4.yml", pictures, tmp_path, is_train=False).dump()
    options["slimmable_version"] = version
    options["path"]["pretrain_network_g"] = str(tmp_path / "released.pth")
    records = evaluate_options(Options.model_validate(options))
    rows = [record for record in records if record.network != "bicubic"]
    assert {row.depth for row in rows} == {(32, 16, 8)[version]}
    assert all("released block count" in row.network for row in rows)


@pytest.mark.parametrize("file", COMPARE)
def test_every_comparison_has_three_seeds_and_equal_iterations_from_equally_long_starts(file):
    comparison = load_comparison(str(ROOT / file), check_paths=False)
    assert comparison.options.name == Path(file).stem
    assert len(comparison.options.seeds) == 3
    reference = comparison.options.difference_to
    started = [run for run in comparison.runs if run.after]
    iterations = {run.name: run.training.train.total_iter for run in comparison.runs}
    assert len({iterations[after] for run in started for after in run.after}) <= 1
    compared = started or comparison.runs
    # but for those that are only calibrated
    assert len({run.training.train.total_iter for run in compared} - {0}) == 1
    assert reference in {run.variant for run in compared}


@pytest.mark.integration
@pytest.mark.parametrize("file", COMPARE)
def test_every_comparison_runs(file, pictures, tmp_path):
    """All variants of one seed with few channels (those of its start, where the repository has one)
    and two iterations each, up to the table."""
    whole = load_comparison(str(ROOT / file), check_paths=False)
    tiny, scale = f"type: CroppedImageDataset, dataroot_gt: {pictures}", whole.runs[0].training.scale
    start = whole.runs[0].training.path.fp_pretrain_network_g
    small = {} if start is not None else NARROW[whole.runs[0].training.network_g.type]
    words = [f"base.network_g.{key}={value}" for key, value in small.items()]
    for name, changes in whole.changes.items():
        words += [f"variants.{name}.train.total_iter=2"] if changes.get("train.total_iter") else []
        if "network_teacher.type" in changes:
            words += [f"variants.{name}.network_teacher.{key}={value}" for key, value in small.items()]
    words += [
        "base.train.total_iter=2",
        "base.train.compile=false",
        "base.num_gpu=0",
        f"base.datasets.train={{name: tiny, {tiny}, gt_size: {8 * scale}, batch_size_per_gpu: 1}}",
        "seeds=[5]",
        "costs=false",
        f"experiments_root={tmp_path}",
        *(f"datasets.{key}={{name: {key}, {tiny}}}" for key in whole.options.datasets),
    ]
    comparison = load_comparison(str(ROOT / file), words)
    ledger = Ledger(comparison)
    compare.prepare(comparison, ledger)
    compare.work(comparison, ledger, resume_command="")
    records = compare.finish(comparison, ledger)
    depths = comparison.runs[0].training.network_g.kwargs["depths"]
    for variant in comparison.options.variants:
        assert [r.depth for r in records if (r.variant, r.metric) == (variant, "psnr")][
            : len(depths)
        ] == depths
    assert {record.variant for record in records} == {None, *comparison.options.variants}
