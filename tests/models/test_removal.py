"""QSA: when blocks are removed and which, and trainings in which they are."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quantsr
from quantsr.deploy import convert
from quantsr.deploy.engines import reference as integer_reference
from quantsr.engine.trainer import Trainer
from quantsr.models.removal import Removal
from quantsr.trained_files import checkpoint
from tests.models.test_quantsr_model import batch, make_model
from tests.reference.removal import removals


def simulate(total: int, blocks: int, left: int, psnr: dict[int, float], shortcuts: list[float]):
    """The removals of a training loop like the trainer's, interrupted after every iteration."""
    removal, found = Removal(iterations=total, blocks=blocks, left=left), []
    for iteration in range(1, total + 1):
        resumed = Removal(iterations=total, blocks=blocks, left=left)
        resumed.load_state(removal.state())
        removal = resumed
        due = iteration in psnr and removal.validated(iteration, psnr[iteration])
        if due or removal.starts(iteration):
            found.append((iteration, removal.remove(iteration, shortcuts)))
    return found, removal


@pytest.mark.parametrize("seed", range(20))
def test_removals_are_those_of_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    blocks = rng.choice([2, 4, 8, 32])
    total, freq = rng.choice([100, 400, 1000]), rng.choice([1, 3, 10, 20])
    shortcuts = [rng.choice([0.8, 1.0, 1.1, 1.3]) for _ in range(blocks)]
    psnr = {i: 30 + rng.random() for i in range(freq, total + 1, freq)}
    found, removal = simulate(total, blocks, blocks // 2, psnr, shortcuts)
    assert found == removals(total, blocks, blocks // 2, psnr, shortcuts)
    assert len(found) == blocks // 2
    assert sorted(removal.ranking) == list(range(blocks))
    assert removal.ranking[blocks // 2 :] == tuple(block for _, block in reversed(found))


def test_a_validation_above_the_last_one_before_the_removal_removes_at_once() -> None:
    removal = Removal(iterations=1000, blocks=8, left=4)
    assert not removal.validated(190, 30.0)  # nothing is removed before the start
    assert removal.starts(200)
    assert removal.remove(200, [1, 1, 3, 1, 2, 1, 1, 1]) == 2
    assert not removal.validated(210, 29.9)
    assert removal.validated(220, 30.0)
    assert removal.remove(220, [1, 1, 3, 1, 2, 1, 1, 1]) == 4
    assert removal.ranking == (0, 1, 3, 5, 6, 7, 4, 2)


NETWORKS = {
    "C": {},
    "T": {
        "network_g": {
            "type": "QuantSR_T",
            "upscale": 2,
            "embed_dim": 12,
            "num_block": 4,
            "layers_per_block": 2,
            "num_heads": 3,
            "window_size": 4,
            "nbits_w": 4,
            "nbits_a": 4,
        }
    },
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_removed_block_is_skipped_and_no_longer_trained(make_options: Any, kind: str) -> None:
    changes = {"train.final_depth": 2, "train.stage1_fraction": 1, "train.mismatch_weight": 1e-3}
    model = make_model(make_options(**changes, **NETWORKS[kind]))
    data, units = batch(), model.net.units()
    model.feed_data(data)
    model.optimize_parameters(1)  # optimizers have moments, which would move parameters without gradients
    units[2].shortcut.data.fill_(1.5)
    assert model.remove_block(2) == 2
    assert model.depth == 3
    before = {name: p.detach().clone() for name, p in units[2].named_parameters()}
    assert before["shortcut"].item() == 1
    assert model.ema.net.units()[2].shortcut.item() == 1
    wanted = (model.net.run_units(data["lq"], [frozenset({0, 1, 3})])[0] - data["gt"]).abs().mean()
    model.optimize_parameters(2)
    assert model.get_current_log()["l_pix"] == pytest.approx(wanted.item())
    for name, parameter in units[2].named_parameters():
        assert torch.equal(parameter, before[name]), name
    for name, parameter in units[1].named_parameters():
        assert parameter.grad is not None, name


@pytest.fixture
def shrinking(make_options: Any, pictures: Path) -> Any:
    """A function to options of a training that ends with two of four blocks."""

    def make(**overrides: Any) -> Any:
        val = {"name": "val", "type": "PairedImageDataset", "dataroot_gt": str(pictures)}
        changes = {
            "train.total_iter": 20,
            "train.stage1_fraction": 1,
            "train.final_depth": 2,
            "network_g.depths": [4, 2],
            "datasets.val": val,
            "val": {"val_freq": 2, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}},
            "logger.save_checkpoint_freq": 1000,
        }
        return make_options(**(changes | overrides))

    return make


def test_a_training_ends_at_the_lower_depth_and_its_network_exports(shrinking: Any, caplog: Any) -> None:
    options = shrinking()
    caplog.set_level("INFO")
    records = Trainer(options).run()
    assert {record.depth for record in records if record.network != "bicubic"} >= {2}
    lines = [record.getMessage() for record in caplog.records]
    removed = [line for line in lines if " removed, " in line]
    assert removed[0].startswith("iteration 4: block ")
    assert [line.split(", ")[-1] for line in removed] == ["3 blocks left", "2 blocks left"]
    path = Path(options.experiment_folder) / "models" / "net_g_latest.pth"
    ranking = checkpoint.load(path)["quantsr"]["ranking"]
    assert list(reversed(ranking[2:])) == [int(line.split("block ")[1].split()[0]) for line in removed]
    net = quantsr.load(path).eval()
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    x = torch.tensor(picture).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        y = net(x, depth=2)[0].clamp(0, 1).permute(1, 2, 0)
    made = integer_reference.run(convert.convert(net, head_tail_bits=32), picture, 2)
    assert np.abs(made.astype(int) - (y * 255).round().to(torch.uint8).numpy()).max() <= 1


def test_a_resumed_training_removes_the_same_blocks(shrinking: Any) -> None:
    whole = shrinking()
    Trainer(whole).run()
    part = shrinking(**{"name": "part", "train.total_iter": 20, "logger.save_checkpoint_freq": 7})
    trainer = Trainer(part)
    original = trainer._step

    def step(monitor: Any) -> None:
        if trainer.iteration == 7:
            raise KeyboardInterrupt
        original(monitor)

    trainer._step = step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    Trainer(part, auto_resume=True).run()
    nets = [checkpoint.load(Path(o.experiment_folder) / "models" / "net_g_latest.pth") for o in (whole, part)]
    assert nets[0]["quantsr"]["ranking"] == nets[1]["quantsr"]["ranking"]
    for name, value in nets[0]["params"].items():
        assert torch.equal(value, nets[1]["params"][name]), name
