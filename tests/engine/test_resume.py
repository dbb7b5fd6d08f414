"""An interrupted and resumed training equals an uninterrupted one: parameters, EMA and optimizer,
bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quantsr.engine import training_state
from quantsr.engine.run_folder import RunFolder
from quantsr.engine.trainer import Trainer
from quantsr.errors import InputError, WorkError
from quantsr.trained_files import checkpoint


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flatten(item, f"{prefix}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in flatten(item, f"{prefix}/{i}").items()}
    return {prefix: value}


def assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    first, second = flatten(a), flatten(b)
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
        else:
            assert value == second[key], key


class StopAt(Trainer):
    """A run that receives a signal in iteration ``stop_at``."""

    stop_at = 3

    def _step(self, monitor: Any) -> None:
        super()._step(monitor)
        if self.iteration == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("stop_at", "precision", "step_lr", "ranking"),
    [
        (3, "bf16", "absolute", "shortcut"),
        (4, "fp32", "absolute", "loss"),
        (6, "bf16", "relative", "shortcut"),
        (6, "fp32", "relative", "loss"),
    ],
)
def test_resumed_equals_uninterrupted(
    make_options: Any, stop_at: int, precision: str, step_lr: str, ranking: str
) -> None:
    """Stops in stage 1, at the change of stage and in stage 2, with warm-up, accumulation, clipping
    and EMA on."""
    common = {
        "train.precision": precision,
        "train.warmup_iter": 4,
        "train.accumulate": 2,
        "train.grad_clip_norm": 0.5,
        "train.step_lr_mult": 0.1,
        "train.step_lr": step_lr,
        "train.ranking": ranking,
    }
    through = make_options(name="through", **common)
    Trainer(through).run()

    broken = make_options(name="broken", **common)
    first = StopAt(broken, resume_command="quantsr train -opt some.yml --auto-resume")
    first.stop_at = stop_at
    with pytest.raises(WorkError, match=f"iteration {stop_at}.*quantsr train -opt some.yml --auto-resume"):
        first.run()
    torch.manual_seed(1234)  # the state of the process before must not matter
    Trainer(broken, auto_resume=True).run()

    states = [
        checkpoint.load(Path(options.experiment_folder) / "training_states" / "8.state")
        for options in (through, broken)
    ]
    for state in states:
        del state["config_hash"]  # the names differ
    assert_same_state(*states)
    files = [
        checkpoint.load(Path(options.experiment_folder) / "models" / "net_g_latest.pth")
        for options in (through, broken)
    ]
    for file in files:
        del file["quantsr"]["options"]
    assert_same_state(*files)


def test_worker_processes_do_not_change_the_run(make_options: Any) -> None:
    runs = [
        make_options(name=f"workers{n}", **{"datasets.train.num_worker_per_gpu": n, "train.total_iter": 3})
        for n in (0, 1)
    ]
    found = []
    for options in runs:
        Trainer(options).run()
        found.append(checkpoint.load(Path(options.experiment_folder) / "models" / "net_g_latest.pth"))
    assert_same_state(found[0]["params"], found[1]["params"])


def test_resume_skips_a_truncated_state(make_options: Any, caplog: pytest.LogCaptureFixture) -> None:
    options = make_options(**{"logger.save_checkpoint_freq": 2, "logger.keep_states": 0})
    Trainer(options).run()
    states = RunFolder(Path(options.experiment_folder)).states
    wanted = checkpoint.load(states / "8.state")
    newest = states / "8.state"
    newest.write_bytes(newest.read_bytes()[:-500])
    Trainer(options, auto_resume=True).run()
    assert "8.state: truncated" in caplog.text
    again = checkpoint.load(states / "8.state")
    assert_same_state(wanted["model"], again["model"])


def test_auto_resume_without_a_state_starts_a_new_run(make_options: Any) -> None:
    options = make_options(**{"train.total_iter": 1})
    Trainer(options, auto_resume=True).run()
    assert (Path(options.experiment_folder) / "training_states" / "1.state").exists()


def test_an_earlier_run_is_set_aside(make_options: Any) -> None:
    options = make_options(**{"train.total_iter": 1})
    Trainer(options).run()
    marker = Path(options.experiment_folder) / "mine.txt"
    marker.write_text("kept")
    Trainer(options).run()
    (archived,) = Path(options.experiment_folder).parent.glob("run_archived_*")
    assert (archived / "mine.txt").read_text() == "kept"
    assert not marker.exists()


def test_only_the_newest_states_are_kept(make_options: Any) -> None:
    options = make_options(**{"logger.save_checkpoint_freq": 1, "logger.keep_states": 2})
    Trainer(options).run()
    root = Path(options.experiment_folder)
    assert sorted(p.name for p in (root / "training_states").iterdir()) == ["7.state", "8.state"]
    assert len(list((root / "models").glob("net_g_[0-9]*.pth"))) == 8


def test_states_after_the_resumed_one_are_set_aside(make_options: Any) -> None:
    """Else they would be taken for the newest of this run: its own would be removed, and it would
    resume from them."""
    some = {"logger.save_checkpoint_freq": 1, "logger.keep_states": 2}
    Trainer(make_options(**some, **{"train.total_iter": 4})).run()
    states = RunFolder(Path(make_options().experiment_folder)).states
    Trainer(
        make_options(**some, **{"train.total_iter": 4, "path.resume_state": str(states / "3.state")})
    ).run()
    assert sorted(p.name for p in states.iterdir()) == ["3.state", "4.state", "4.state.left"]
    first, second = (checkpoint.load(states / f"4.state{tail}") for tail in (".left", ""))
    assert_same_state(first["model"], second["model"])


def test_parameters_that_are_not_finite_are_not_written(make_options: Any) -> None:
    """Although the loss is finite: a gradient may overflow, in this or another process."""
    options = make_options(**{"logger.save_checkpoint_freq": 1, "train.total_iter": 4})

    class Overflowing(Trainer):
        def _step(self, monitor: Any) -> None:
            super()._step(monitor)
            if self.iteration == 3:
                with torch.no_grad():
                    self.model.net.conv_last.bias[0] = float("inf")

    with pytest.raises(WorkError, match="the network's parameters are not finite"):
        Overflowing(options).run()
    states = RunFolder(Path(options.experiment_folder)).states
    assert sorted(p.name for p in states.iterdir()) == ["1.state", "2.state"]


def test_a_state_of_another_network_is_refused(make_options: Any) -> None:
    Trainer(make_options(**{"train.total_iter": 1})).run()
    other = make_options(**{"network_g.num_feat": 6, "train.total_iter": 2})
    with pytest.raises(InputError, match=r"iteration 1 does not fit these options"):
        Trainer(other, auto_resume=True).run()


def test_a_finished_run_is_not_resumed_with_other_training_options(make_options: Any) -> None:
    """Nothing would be trained with them; options without an effect on the network may differ."""
    Trainer(make_options(**{"train.total_iter": 1})).run()
    changes = {"train.total_iter": 1, "train.optim_g.lr": 0.5, "train.ema_decay": 0.25}
    other = make_options(**changes)
    with pytest.raises(
        InputError, match=r"iteration 1 with other options \(train.ema_decay, train.optim_g.lr\)"
    ):
        Trainer(other, auto_resume=True).run()
    recorded = yaml.safe_load((Path(other.experiment_folder) / "options.yml").read_text())
    assert recorded["train"]["optim_g"]["lr"] != 0.5
    Trainer(make_options(**{"train.total_iter": 1, "logger.print_freq": 7}), auto_resume=True).run()
    Trainer(make_options(**changes | {"train.total_iter": 2}), auto_resume=True).run()


def test_a_loss_that_is_not_finite_stops_the_run(make_options: Any) -> None:
    """The iteration is named, and no file of the network is written."""
    options = make_options(**{"logger.save_checkpoint_freq": 1})

    class Broken(Trainer):
        def _step(self, monitor: Any) -> None:
            if self.iteration == 2:
                with torch.no_grad():
                    self.model.net.conv_first.weight.fill_(float("nan"))
            super()._step(monitor)

    with pytest.raises(WorkError, match="iteration 3: the loss is not finite"):
        Broken(options).run()
    states = RunFolder(Path(options.experiment_folder)).states
    assert [path.name for path in training_state.states_in(states)] == ["2.state", "1.state"]
