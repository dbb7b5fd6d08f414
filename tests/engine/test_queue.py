"""``quantsr queue``: networks trained one after the other in several calls, with as many iterations
as the time allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quantsr.cli import main
from quantsr.config.queue import NETWORK_FILE, QueueOptions, load_queue
from quantsr.data import store
from quantsr.engine.queue import Queue, fitted_iterations
from quantsr.engine.time_limit import TimeLimit
from quantsr.engine.trainer import Trainer
from quantsr.errors import InputError, OptionsError, WorkError
from quantsr.loading import load
from quantsr.locks import FolderLockedError, locked
from quantsr.trained_files import checkpoint


class Ticks:
    """A clock that advances by one second at every reading."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> float:
        self.now += 1
        return float(self.now)


class ChangingTicks(Ticks):
    """A clock that advances by `before` seconds at its first `count` readings, then by `after`."""

    def __init__(self, count: int, before: float, after: float) -> None:
        super().__init__()
        self.count, self.before, self.after = count, before, after

    def __call__(self) -> float:
        late = max(super().__call__() - self.count, 0)
        return (self.now - late) * self.before + late * self.after


COSINE = {"type": "CosineAnnealingRestartLR", "eta_min": 1e-7}


@pytest.fixture
def queue_file(make_options: Any, tmp_path: Path) -> Path:
    """Two entries of a tiny network: float, and 4 bits starting from it."""
    options = make_options(**{"network_g.depths": [4, 2], "train.scheduler": COSINE}).dump()
    del options["train"]["scheduler"]["periods"]  # one cycle, as long as the training
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(options))
    entries: dict[str, Any] = {
        "float": {
            "why": "the start of the other",
            "opt": str(tmp_path / "tiny.yml"),
            "set": {"network_g.nbits_w": 32, "network_g.nbits_a": 32, "train.stage1_fraction": 1},
        },
        "w4a4": {
            "why": "the network",
            "opt": str(tmp_path / "tiny.yml"),
            "start": {"path.fp_pretrain_network_g": "float"},
        },
    }
    path = tmp_path / "queue.yml"
    path.write_text(yaml.safe_dump({"entries": entries}, sort_keys=False))
    return path


def changed(path: Path, **changes: Any) -> QueueOptions:
    """The queue with changes of every entry."""
    content = yaml.safe_load(path.read_text())
    for entry in content["entries"].values():
        entry.update(changes)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_queue(str(path))


def record(folder: Path) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((folder / "queue.json").read_text())["entries"]
    return entries


def networks(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name in ("float", "w4a4")
        for key, value in checkpoint.load(folder / name / NETWORK_FILE)["params"].items()
    }


@pytest.fixture
def uninterrupted(queue_file: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    Queue(load_queue(str(queue_file)), tmp_path / "through", seconds=1e6).run()
    return networks(tmp_path / "through")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_several_calls_give_the_networks_of_a_single_call(
    queue_file: Path, uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    queue, folder = load_queue(str(queue_file)), tmp_path / "parts"
    calls = 0
    while calls == 0 or any(entry["state"] != "done" for entry in record(folder).values()) or calls < 3:
        Queue(queue, folder, seconds=45, clock=Ticks()).run()
        calls += 1
        assert calls < 30
    assert {entry["iteration"] for entry in record(folder).values()} == {8}
    assert_same(networks(folder), uninterrupted)
    kept = {str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.suffix != ".log"}
    assert kept == {"queue.json"} | {
        f"{name}/{file}" for name in ("float", "w4a4") for file in (NETWORK_FILE, "options.yml")
    }


def test_a_killed_call_is_resumed_from_a_checkpoint_written_by_time(
    queue_file: Path, uninterrupted: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: Any
) -> None:
    queue, folder = load_queue(str(queue_file)), tmp_path / "killed"
    step = Trainer._step
    stopped: list[list[str]] = []

    def killed(trainer: Trainer, monitor: Any) -> None:
        if trainer.iteration == 5 and trainer.options.name == "w4a4" and not stopped:
            stopped.append(sorted(path.name for path in trainer.folder.states.iterdir()))
            raise KeyboardInterrupt  # not caught: no checkpoint is written
        step(trainer, monitor)

    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        Queue(queue, folder, seconds=1e6, clock=Ticks(), save_every=8).run()
    assert record(folder)["w4a4"]["state"] == "unfinished"
    assert [int(name.removesuffix(".state")) for name in stopped[0]] in ([2], [3], [4], [5])
    Queue(queue, folder, seconds=1e6).run()
    assert_same(networks(folder), uninterrupted)


@pytest.mark.integration
def test_iterations_are_fitted_to_the_budget_and_the_schedule_to_them(
    queue_file: Path, tmp_path: Path
) -> None:
    queue = changed(queue_file, budget=500, set={"train.total_iter": 100000, "logger.print_freq": 1})
    folder = tmp_path / "cut"
    Queue(queue, folder, seconds=1e6, clock=Ticks(), save_every=1e6).run()
    for name, entry in record(folder).items():
        assert entry["state"] == "done"
        assert 350 <= entry["seconds"] <= 650
        assert entry["total_iter"] == entry["iteration"] < 1000
        lines = "\n".join(path.read_text() for path in sorted((folder / name / "log").iterdir()))
        last = [line for line in lines.splitlines() if f"iteration {entry['iteration']}/" in line][-1]
        assert float(last.partition("lr ")[2].split(",")[0]) < 1e-5  # from 1e-3
    assert record(folder)["w4a4"]["it_per_s"].keys() == {"1", "2"}


def test_the_last_call_fits_iterations_without_a_budget(queue_file: Path, tmp_path: Path) -> None:
    queue = changed(queue_file, set={"train.total_iter": 100000})
    Queue(queue, tmp_path / "last", seconds=200, last=True, clock=Ticks(), save_every=1e6).run()
    assert record(tmp_path / "last")["float"]["state"] == "done"
    assert 20 < record(tmp_path / "last")["float"]["iteration"] < 200


@pytest.mark.integration
@pytest.mark.parametrize(("before", "after"), [(5.0, 1.0), (1.0, 3.0)])
def test_time_is_used_where_the_machine_changes_its_speed(
    queue_file: Path, tmp_path: Path, before: float, after: float
) -> None:
    queue = changed(queue_file, set={"train.total_iter": 100000, "train.stage1_fraction": 1.0})
    del queue.entries["w4a4"]
    budget, clock = 3000.0, ChangingTicks(150, before, after)
    Queue(queue, tmp_path / "changed", seconds=budget, last=True, clock=clock, save_every=1e6).run()
    entry = record(tmp_path / "changed")["float"]
    assert 0.8 * budget <= entry["seconds"] <= budget
    assert entry["state"] == "done"


def test_independent_entries_are_trained_after_one_that_fails(queue_file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(queue_file.read_text())
    content["entries"]["float"]["set"]["datasets.train.dataroot_gt"] = "/nowhere"
    content["entries"]["alone"] = {**content["entries"]["w4a4"], "start": {}}
    queue_file.write_text(yaml.safe_dump(content, sort_keys=False))
    folder = tmp_path / "failed"
    with pytest.raises(WorkError, match=r"float: failed"):
        Queue(load_queue(str(queue_file)), folder, seconds=1e6).run()
    assert "/nowhere" in record(folder)["float"]["error"]
    assert record(folder)["alone"]["state"] == "done"
    assert "w4a4" not in record(folder)


def test_pictures_are_decoded_once_for_all_entries(
    queue_file: Path, pictures: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    load, seen = store.load_pair, []

    def counted(source: store.Source, scale: int) -> store.Pair:
        seen.append(source.gt)
        return load(source, scale)

    monkeypatch.setattr(store, "load_pair", counted)
    Queue(load_queue(str(queue_file)), tmp_path / "once", seconds=1e6).run()
    assert sorted(seen) == sorted(pictures.iterdir())
    assert store._kept is None


def test_fitted_iterations_fill_the_time(make_options: Any) -> None:
    train = make_options(**{"train.total_iter": 1000, "train.stage1_fraction": 0.5}).train

    def fitted(seconds: float, done: int = 0, **speeds: float) -> int:
        by_stage = {int(stage[-1]): speed for stage, speed in speeds.items()}
        return fitted_iterations(train, done=done, speeds=by_stage, all_depths=1.75, seconds=seconds)

    assert fitted(1e9, stage1=10) == 1000
    assert fitted(30, stage1=10, stage2=5) == 200  # 100 at 10 a second and 100 at 5
    assert fitted(27.5, stage1=10) == 200  # 100 at 10, and 100 that take 1.75 times as long
    assert fitted(10, done=200, stage1=10, stage2=5) == 250  # the whole rest is stage 2
    assert fitted(0, done=40, stage1=10) == 40


def test_a_limit_counts_parts_from_the_first_iteration() -> None:
    clock = Ticks()
    limit = TimeLimit(stop_at=1000, part=5, clock=clock)
    clock.now = 500
    assert not limit.reached()
    for _ in range(29):
        limit.stepped(1)
        assert not limit.reached()
    limit.stepped(1)
    assert limit.reached()
    assert limit.speeds() == {1: 0.5}
    assert limit.save_is_due()
    limit.saved()
    assert not limit.save_is_due()
    clock.now = 1000
    assert TimeLimit(stop_at=1000, clock=clock).reached()


def test_problems_of_a_queue_are_reported_before_training(
    queue_file: Path, tmp_path: Path, capsys: Any
) -> None:
    content = yaml.safe_load(queue_file.read_text())
    content["entries"]["float"]["set"] = {"train.total_itre": 3}
    content["entries"]["w4a4"]["set"] = {"network_g.nbits_w": 99}
    queue_file.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(OptionsError) as error:
        load_queue(str(queue_file))
    assert len(error.value.problems) == 2
    assert "entries.float" in error.value.problems[0]
    assert "total_iter" in error.value.problems[0]
    assert main(["queue", "-opt", str(queue_file), "--budget", "10", "--out", str(tmp_path / "o")]) == 2
    assert "entries.w4a4" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()

    content["entries"]["w4a4"] |= {"start": {"path.fp_pretrain_network_g": "flaot"}, "budget": 0}
    queue_file.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(OptionsError, match="budget"):
        load_queue(str(queue_file))
    content["entries"]["w4a4"]["budget"] = 5
    queue_file.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(OptionsError, match=r"no earlier entry 'flaot'; .*float"):
        load_queue(str(queue_file))


@pytest.mark.parametrize("word", ["0", "soon", "inf", "nan"])
def test_a_budget_is_a_number_of_seconds(word: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["queue", "-opt", "some.yml", "--budget", word])
    assert exit_.value.code == 2
    assert f"must be a number of seconds above 0, got '{word}'" in capsys.readouterr().err


def test_a_kept_network_loads_and_is_in_half_precision(queue_file: Path, tmp_path: Path) -> None:
    Queue(load_queue(str(queue_file)), tmp_path, seconds=1e6).run()
    kept = checkpoint.load(tmp_path / "w4a4" / NETWORK_FILE)["params"]
    net = load(tmp_path / "w4a4" / NETWORK_FILE)
    assert kept["body.0.conv1.weight"].dtype == torch.float16
    assert kept["body.0.conv1.weight_quantizer.step"].dtype == torch.float32
    for name, value in net.state_dict().items():
        assert torch.equal(value.cpu(), kept[name].to(value.dtype)), name


def test_a_damaged_record_is_named(queue_file: Path, tmp_path: Path) -> None:
    (tmp_path / "queue.json").write_text("{}")
    with pytest.raises(InputError, match=r"queue\.json: cannot be read"):
        Queue(load_queue(str(queue_file)), tmp_path, seconds=1).run()


def test_two_calls_in_one_folder_are_refused(queue_file: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(FolderLockedError):
        Queue(load_queue(str(queue_file)), tmp_path, seconds=1).run()
