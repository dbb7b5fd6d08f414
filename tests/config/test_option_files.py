"""Every option file of the repository, and files as BasicSR and QuantSR write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from quantsr.config import load_options
from quantsr.config.docs import options_page
from quantsr.errors import OptionsError

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "options").glob("t*/**/*.yml"))

BASICSR_TRAIN = """
name: EDSR_Mx4
model_type: SRModel
scale: 4
num_gpu: 1  # set num_gpu: 0 for cpu mode
manual_seed: 10
datasets:
  train:
    name: DIV2K
    type: PairedImageDataset
    dataroot_gt: datasets/DIV2K/DIV2K_train_HR_sub.lmdb
    dataroot_lq: datasets/DIV2K/DIV2K_train_LR_bicubic_X4_sub.lmdb
    meta_info_file: basicsr/data/meta_info/meta_info_DIV2K800sub_GT.txt
    filename_tmpl: '{}'
    io_backend:
      type: lmdb
    gt_size: 192
    use_hflip: true
    use_rot: true
    use_shuffle: true
    num_worker_per_gpu: 6
    batch_size_per_gpu: 16
    dataset_enlarge_ratio: 100
    prefetch_mode: ~
  val:
    name: Set5
    type: PairedImageDataset
    dataroot_gt: datasets/Set5/GTmod12
    dataroot_lq: datasets/Set5/LRbicx4
    io_backend:
      type: disk
network_g:
  type: EDSR
  num_in_ch: 3
  num_out_ch: 3
  num_feat: 64
  num_block: 16
  upscale: 4
  res_scale: 1
  img_range: 255.
  rgb_mean: [0.4488, 0.4371, 0.4040]
path:
  pretrain_network_g: ~
  strict_load_g: true
  resume_state: ~
train:
  ema_decay: 0.999
  optim_g:
    type: Adam
    lr: !!float 1e-4
    weight_decay: 0
    betas: [0.9, 0.99]
  scheduler:
    type: MultiStepLR
    milestones: [200000]
    gamma: 0.5
  total_iter: 300000
  warmup_iter: -1  # no warm up
  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean
val:
  val_freq: !!float 5e3
  save_img: false
  pbar: False
  metrics:
    psnr: # metric name, can be arbitrary
      type: calculate_psnr
      crop_border: 4
      test_y_channel: false
      better: higher
logger:
  print_freq: 100
  save_checkpoint_freq: !!float 5e3
  use_tb_logger: true
  wandb:
    project: ~
    resume_id: ~
dist_params:
  backend: nccl
  port: 29500
"""


@pytest.mark.parametrize("file", FILES)
def test_shipped_files_load(file: str) -> None:
    options = load_options(str(ROOT / file), is_train="/train/" in file, check_paths=False)
    assert options.network_g.kwargs["upscale"] == options.scale
    assert options.val is not None
    assert [metric.crop_border for metric in options.val.metrics.values()] == [options.scale] * 2


def changes(scale: int, bits: int) -> list[str]:
    return [f"scale={scale}", f"network_g.nbits_w={bits}", f"network_g.nbits_a={bits}"]


def test_all_settings_of_the_paper_have_option_files() -> None:
    for kind in ("train", "test"):
        for bits in (2, 3, 4, 8):
            for scale in (2, 3, 4):
                name = f"w{bits}a{bits}_x{scale}"
                file = ROOT / "options" / kind / "QuantSR_C" / "paper.yml"
                options = load_options(
                    str(file), changes(scale, bits), is_train=kind == "train", check_paths=False
                )
                kwargs = options.network_g.kwargs
                assert (options.name, options.scale) == (f"QuantSR_C_{name}", scale)
                assert (kwargs["nbits_w"], kwargs["nbits_a"]) == (bits, bits)
                assert (kwargs["num_feat"], kwargs["num_block"], kwargs["depths"]) == (64, 32, [32, 16, 8])


def test_all_settings_of_quantsr_t_have_option_files() -> None:
    for kind in ("train", "test"):
        for bits in (2, 3, 4, 8):
            for scale in (2, 4):
                name = f"w{bits}a{bits}_x{scale}"
                file = ROOT / "options" / kind / "QuantSR_T" / "paper.yml"
                options = load_options(
                    str(file), changes(scale, bits), is_train=kind == "train", check_paths=False
                )
                kwargs = options.network_g.kwargs
                assert (options.name, options.scale) == (f"QuantSR_T_{name}", scale)
                assert (kwargs["nbits_w"], kwargs["nbits_a"]) == (bits, bits)
                assert (kwargs["embed_dim"], kwargs["num_block"], kwargs["depths"]) == (60, 8, [8, 4, 2])
                assert not kwargs["quantize_attention"]
                assert not kwargs["quantize_conv"]


def test_depths_of_a_transformer_count_rstbs_or_swin_layers() -> None:
    file = str(ROOT / "options" / "train" / "QuantSR_T" / "mini_w4a4_x2.yml")
    for unit, depths in (("layer", [8, 4, 2]), ("rstb", [4, 3])):
        words = [f"network_g.dqa_unit={unit}", f"network_g.depths={depths}"]
        assert load_options(file, words, check_paths=False).network_g.kwargs["depths"] == depths
    with pytest.raises(OptionsError, match=r"depth 8 is not within 1\.\.4"):
        load_options(file, ["network_g.depths=[8]"], check_paths=False)
    with pytest.raises(OptionsError, match=r"depth 9 is not within 1\.\.8"):
        load_options(file, ["network_g.depths=[9]", "network_g.dqa_unit=layer"], check_paths=False)


def test_a_test_file_reads_what_its_training_file_writes() -> None:
    for file in FILES:
        if not file.startswith("options/test/Q") or "released" in file:
            continue
        tested = load_options(str(ROOT / file), is_train=False, check_paths=False)
        trained = load_options(str(ROOT / file.replace("/test/", "/train/")), check_paths=False)
        assert tested.path.pretrain_network_g == f"{trained.experiment_folder}/models/net_g_latest.pth"
        assert tested.network_g == trained.network_g


def test_the_released_test_file_of_quantsr_loads() -> None:
    file = ROOT / "options" / "test" / "QuantSR_C" / "released_w4a4_x4.yml"
    options = load_options(str(file), is_train=False, check_paths=False)
    assert options.slimmable_version == 1
    assert options.network_g.type == "QEDSR_Ours"
    assert [dataset.name for dataset in options.evaluation_sets().values()] == [
        "Set5",
        "Set14",
        "B100",
        "Urban100",
        "Manga109",
    ]
    assert options.datasets["test_5"].filename_tmpl == "{}_LRBI_x4"


def test_a_training_file_of_basicsr_loads(tmp_path: Path) -> None:
    file = tmp_path / "edsr.yml"
    file.write_text(BASICSR_TRAIN)
    options = load_options(str(file), check_paths=False)
    assert options.train is not None
    assert options.val is not None
    assert options.val.val_freq == 5000
    assert options.logger.save_checkpoint_freq == 5000
    assert options.train.optim_g.lr == 1e-4
    assert options.datasets["train"].io_backend.type == "lmdb"
    assert options.datasets["train"].prefetch_mode is None


def test_files_are_plain_yaml_without_tags() -> None:
    for path in (ROOT / "options").glob("**/*.yml"):
        text = path.read_text(encoding="utf-8")
        assert "!!" not in text, path
        assert isinstance(yaml.safe_load(text), dict), path


def test_the_page_of_options_is_current() -> None:
    page = (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8")
    assert page == options_page() + "\n", (
        "make it again: python -m quantsr.config.docs docs/reference/options.md"
    )
