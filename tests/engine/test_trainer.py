"""Training runs: files, validation, best network, stages, signals, starts from checkpoints."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from quantsr.basicsr_compat import EDSR, MODEL_REGISTRY, BaseModel
from quantsr.config import Options, load_options, registries
from quantsr.engine import validation
from quantsr.engine.results import Record, read_results
from quantsr.engine.run_folder import RunFolder, StopRequest
from quantsr.engine.trainer import Trainer
from quantsr.engine.validation import Validation
from quantsr.errors import InputError, WorkError
from quantsr.loading import load
from quantsr.models.quantsr_model import QuantSRModel
from quantsr.trained_files import checkpoint


def test_the_files_and_logs_of_a_whole_run(
    make_options: Any, validated: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Every file exists, with the expected content."""
    caplog.set_level(logging.INFO, "quantsr")
    options = make_options(**validated, **{"logger.use_tb_logger": True, "logger.save_checkpoint_freq": 4})
    records = Trainer(options).run()
    root = Path(options.experiment_folder)
    assert {p.name for p in (root / "models").iterdir()} == {
        f"net_g_{label}.pth" for label in ("4", "8", "latest", "best")
    }
    assert {p.name for p in (root / "training_states").iterdir()} == {"4.state", "8.state"}

    assert [(r.row, r.metric) for r in records if r.metric == "psnr"] == [
        (row, "psnr")
        for row in ("bicubic", *(f"QuantSR_C W4A4, depth {d}" for d in (4, 2, 1)))
    ]  # fmt: skip
    assert read_results(root / "results.json") == records
    assert records[-1].config_hash == options.config_hash()
    assert records[-1].iteration == 8

    assert load_options(str(root / "options.yml"), check_paths=False) == options
    (log,) = (root / "log").iterdir()
    text = log.read_text()
    for wanted in (
        "iteration 4/8, stage 1",
        "stage 2, depths [4, 2, 1]; blocks ranked, kept first:",
        "iteration 8/8, stage 2",
        "data wait",
        "RLQ/tensor",
        "| bicubic",
    ):
        assert wanted in text, wanted

    events = EventAccumulator(str(root / "tb_logger"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/lr", "val/tinyval/psnr/depth1", "quantizers/body.0.conv1/step_w"} <= set(
        tags["scalars"]
    )
    assert len(tags["images"]) == 2

    best = checkpoint.load(root / "training_states" / "8.state")["best"]
    assert (best["metric"], best["stage"], best["iteration"]) == ("psnr", 2, 8)
    latest = load(root / "models" / "net_g_latest.pth")
    assert latest.ranking is not None
    assert latest(torch.rand(1, 3, 4, 4), depth=1).shape == (1, 3, 8, 8)


@pytest.fixture(autouse=True)
def _small_validation_set(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    """The tiny training pictures replace those of scikit-image, which take a second."""
    from quantsr.engine import evaluate

    def build(datasets: dict[str, Any], scale: int, *_: Any) -> list[evaluate.EvalSet]:
        from quantsr.data.evaluation import build_eval_dataset

        made = {"name": "tinyval", "type": "PairedImageDataset", "dataroot_gt": str(pictures)}
        return [evaluate.EvalSet(d.name, scale, build_eval_dataset(made, scale)) for d in datasets.values()]

    monkeypatch.setattr("quantsr.engine.trainer.build_sets", build)


def test_stage_2_starts_after_its_fraction_of_the_iterations(make_options: Any) -> None:
    """One loss at full depth for stage1_fraction of the iterations, then a loss for each depth."""
    seen = []

    class Spy(Trainer):
        def _step(self, monitor: Any) -> None:
            super()._step(monitor)
            seen.append((self.iteration, self.model.stage, len(self.model.loss_terms)))

    Spy(make_options(**{"train.stage1_fraction": 0.25})).run()
    assert seen == [(i, 1, 1) if i <= 2 else (i, 2, 3) for i in range(1, 9)]


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_run_can_have_one_stage_only(make_options: Any, fraction: float) -> None:
    trainer = Trainer(make_options(**{"train.stage1_fraction": fraction, "train.total_iter": 2}))
    trainer.run()
    assert trainer.model.stage == (2 if fraction == 0 else 1)


def test_best_compares_within_a_stage(make_options: Any, validated: dict[str, Any], tmp_path: Path) -> None:
    validator = Validation(make_options(**validated), [], RunFolder(tmp_path))

    def records(*values: float) -> list[Record]:
        return [Record("s", 2, "n", d, "psnr", v, 1) for d, v in enumerate(values)]

    first = validator.new_best(None, records(30.0), 4, 1)
    assert first == {"metric": "psnr", "value": 30.0, "iteration": 4, "stage": 1}
    assert validator.new_best(first, records(29.0), 8, 1) is None
    assert validator.new_best(first, records(31.0), 8, 1) is not None
    second = validator.new_best(first, records(20.0, 22.0), 8, 2)
    assert second is not None
    assert second["value"] == 21.0
    assert validator.new_best({**first, "metric": "ssim", "value": 40.0}, records(20.0), 8, 1) is not None


def test_training_starts_from_a_float_network(make_options: Any, tmp_path: Path) -> None:
    file = tmp_path / "edsr.pth"
    torch.manual_seed(99)  # not the run's own seed, which would draw the same numbers
    edsr = EDSR(3, 3, num_feat=8, num_block=2, upscale=2)
    torch.save({"params": edsr.state_dict()}, file)
    started: dict[str, torch.Tensor] = {}

    class Spy(Trainer):
        def _log_start(self, net: torch.nn.Module) -> None:
            started.update(checkpoint.cpu_state(net))
            raise KeyboardInterrupt

    for which, same in (("all", True), ("head_tail", False)):
        options = make_options(**{"path.fp_pretrain_network_g": str(file), "path.fp_init": which})
        with pytest.raises(KeyboardInterrupt):
            Spy(options).run()
        for name in ("conv_last.weight", "body.1.conv2.weight"):
            assert torch.equal(started[name], edsr.state_dict()[name]) == (same or name == "conv_last.weight")


def test_a_start_has_the_same_shortcuts(make_options: Any, tmp_path: Path) -> None:
    conv = {"network_g.shortcuts": "conv", "train.total_iter": 1}
    bits = {"network_g.nbits_w": 32, "network_g.nbits_a": 32}
    first = make_options(name="float", **conv, **bits)
    Trainer(first).run()
    start = str(Path(first.experiment_folder) / "models" / "net_g_latest.pth")
    records = Trainer(make_options(name="bits", **conv, **{"path.fp_pretrain_network_g": start})).run()
    assert all(r.value > 0 for r in records if r.metric == "psnr")

    with pytest.raises(
        InputError, match=r"a shortcut around every conv, not block; set network_g\.shortcuts"
    ):
        Trainer(make_options(name="block", **{"path.fp_pretrain_network_g": start})).run()
    edsr = tmp_path / "edsr.pth"
    torch.save({"params": EDSR(3, 3, num_feat=8, num_block=2, upscale=2).state_dict()}, edsr)
    with pytest.raises(InputError, match="a shortcut around every block, not conv"):
        Trainer(make_options(name="conv", **conv, **{"path.fp_pretrain_network_g": str(edsr)})).run()


def test_training_from_a_trained_network_keeps_its_parameters(make_options: Any) -> None:
    """Steps and signs of the checkpoint are kept: it is not calibrated again."""
    first = make_options(name="first", **{"train.total_iter": 2})
    Trainer(first).run()
    file = Path(first.experiment_folder) / "models" / "net_g_latest.pth"
    wanted = checkpoint.load(file)["params"]
    started: dict[str, torch.Tensor] = {}

    class Spy(Trainer):
        def _log_start(self, net: torch.nn.Module) -> None:
            started.update({k: v.clone() for k, v in checkpoint.cpu_state(net).items()})

    Spy(make_options(name="second", **{"path.pretrain_network_g": str(file), "train.total_iter": 1})).run()
    assert all(torch.equal(started[name], value) for name, value in wanted.items())


def test_calibration_takes_no_batches_from_the_training(make_options: Any) -> None:
    """The loader is at its first sample after the calibration."""
    options = make_options(**{"train.calibration_batches": 3})
    positions = []

    class Spy(Trainer):
        def _log_start(self, net: torch.nn.Module) -> None:
            positions.append(self.loader.position)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Spy(options).run()
    assert positions == [0]


def test_a_validation_stopped_by_a_signal_is_repeated(
    make_options: Any, validated: dict[str, Any], monkeypatch: Any
) -> None:
    """The state records that the validation is due; the resumed run repeats it, with the same best
    network."""
    through = make_options(name="through", **validated)
    Trainer(through).run()

    broken = make_options(name="broken", **validated)
    real = validation.evaluate

    def interrupted(*args: Any, progress: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args, progress=progress, **kwargs)

    monkeypatch.setattr(validation, "evaluate", interrupted)
    with pytest.raises(WorkError, match="stopped by SIGINT at iteration 4"):
        Trainer(broken).run()
    monkeypatch.setattr(validation, "evaluate", real)
    state = Path(broken.experiment_folder) / "training_states" / "4.state"
    assert checkpoint.load(state)["validation_due"] is True
    Trainer(broken, auto_resume=True).run()
    ends = [
        checkpoint.load(Path(o.experiment_folder) / "training_states" / "8.state") for o in (through, broken)
    ]
    assert ends[0]["best"] == ends[1]["best"]
    assert all(
        torch.equal(a, b)
        for a, b in zip(ends[0]["model"]["params"].values(), ends[1]["model"]["params"].values(), strict=True)
    )


def test_a_second_signal_interrupts() -> None:
    # a shell's background job ignores it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_missing_sections_are_named(make_options: Any) -> None:
    options = make_options()
    plain = options.dump()
    del plain["train"]
    with pytest.raises(InputError, match="train: missing"):
        Trainer(Options.model_validate(plain))
    plain = options.dump()
    del plain["datasets"]["train"]
    with pytest.raises(InputError, match=r"datasets\.train: missing"):
        Trainer(Options.model_validate(plain))
    with pytest.raises(InputError, match=r"path\.pretrain_network_teacher: missing"):
        Trainer(
            make_options(
                **{"network_teacher": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "upscale": 2}},
                **{"train.distill": {"output_weight": 1.0}},
            )
        ).run()


def test_a_registered_model_class_trains(make_options: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A class registered in BasicSR's registry and named in an option file implements the step."""
    monkeypatch.setattr(MODEL_REGISTRY, "_obj_map", dict(MODEL_REGISTRY._obj_map))

    @MODEL_REGISTRY.register()
    class HalfLossModel(QuantSRModel):
        def _losses(self, batch: Any) -> dict[str, torch.Tensor]:
            return {name: value / 2 for name, value in super()._losses(batch).items()}

    losses = {}
    for kind in ("QuantSRModel", "SRModel", "HalfLossModel"):
        made = make_options(name=kind, model_type=kind, **{"train.total_iter": 2, "logger.print_freq": 1})
        file = tmp_path / f"{kind}.yml"
        file.write_text(yaml.safe_dump(made.dump()))
        trainer = Trainer(load_options(str(file)))
        trainer.run()
        assert trainer.iteration == 2
        losses[type(trainer.model).__name__, kind] = float(trainer.model.loss_terms["l_pix"])
    assert list(losses) == [
        ("QuantSRModel", "QuantSRModel"),
        ("QuantSRModel", "SRModel"),
        ("HalfLossModel", "HalfLossModel"),
    ]
    own, theirs, half = losses.values()
    assert own == theirs
    # Adam's step hardly depends on a factor of the loss
    assert half == pytest.approx(own / 2, rel=0.05)


def test_model_classes_are_subclasses_of_quantsr_model(make_options: Any, monkeypatch: Any) -> None:
    """BasicSR's own models need BasicSR's trainer; its class SRModel is never used."""
    assert MODEL_REGISTRY.get("SRModel") is QuantSRModel
    foreign = {
        "SRModel": type("SRModel", (BaseModel,), {}),
        "ESRGANModel": type("ESRGANModel", (BaseModel,), {}),
    }
    monkeypatch.setattr(MODEL_REGISTRY, "_obj_map", {**MODEL_REGISTRY._obj_map, **foreign})
    assert registries.models() == {"QuantSRModel": QuantSRModel, "SRModel": QuantSRModel}
    with pytest.raises(
        InputError, match=r"model_type: no model class 'ESRGANModel'; choose from QuantSRModel, SRM"
    ):
        Trainer(make_options(model_type="ESRGANModel")).run()


def test_the_options_file_of_a_run_loads_to_equal_options(make_options: Any) -> None:
    options = make_options(**{"train.total_iter": 1})
    Trainer(options).run()
    text = (Path(options.experiment_folder) / "options.yml").read_text()
    assert Options.model_validate(yaml.safe_load(text)) == options


def test_dead_quantizers_are_reported_once(make_options: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A learning rate that is far too high makes steps negative."""
    changes = {"train.total_iter": 12, "logger.save_checkpoint_freq": 4, "train.step_lr_mult": 3000}
    with caplog.at_level("WARNING"):
        Trainer(make_options(**changes)).run()
    lines = [line for line in caplog.messages if "dead quantizers" in line]
    assert lines
    assert "body.0.conv1 (weight step at or below zero" in "".join(lines)
    assert "; lower train.step_lr_mult or train.optim_g.lr" in lines[0]
    assert "".join(lines).count("body.0.conv1 (") == 1


@pytest.mark.parametrize("cosine", [False, True])
def test_no_iterations_save_the_calibrated_start(
    make_options: Any, validated: dict[str, Any], cosine: bool
) -> None:
    schedule = {"type": "CosineAnnealingRestartLR"} if cosine else {"type": "MultiStepLR", "milestones": [6]}
    trained = make_options(**{"train.total_iter": 1, "train.optim_g": {"type": "Adam", "lr": 1e-30}})
    Trainer(trained).run()
    options = make_options(
        **validated,
        **{"name": "none", "train": {**trained.train.model_dump(), "total_iter": 0, "scheduler": schedule}},
    )
    records = Trainer(options).run()
    files = [Path(o.experiment_folder) / "models" / "net_g_latest.pth" for o in (trained, options)]
    one, none = (checkpoint.load(file)["params"] for file in files)
    for name, value in none.items():
        torch.testing.assert_close(value, one[name], msg=name)
    assert checkpoint.load(files[1])["quantsr"]["iteration"] == 0
    assert {r.iteration for r in records if r.network != "bicubic"} == {0}
    load(files[1])(torch.rand(1, 3, 8, 8))  # quantizers that are not calibrated would refuse
