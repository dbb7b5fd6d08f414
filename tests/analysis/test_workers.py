"""Several processes that work on one comparison: claims, failures, deaths, and the commands that
start them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantsr.analysis import cluster, workers
from quantsr.analysis import compare as command
from quantsr.analysis.runs import MOST_DEATHS, Ledger
from quantsr.cli import main
from quantsr.config.comparison import Comparison, Run
from quantsr.engine.results import Record, read_results
from quantsr.errors import InputError, WorkError
from quantsr.hardware.processes import World

ROOT = Path(__file__).resolve().parents[2]
Load = Callable[..., Comparison]


def python(code: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *words], stdin=subprocess.PIPE)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "waited 300 seconds in vain"
        time.sleep(0.02)


def test_a_claim_excludes_others_and_ends_with_its_process(load: Load, valid: dict[str, Any]) -> None:
    ledger = Ledger(load(valid))
    run = ledger.runs["float_seed3"]
    place = ledger.folder / "claims" / run.name
    other = python(
        """
        import sys, time
        from pathlib import Path
        from quantsr.locks import locked
        with locked(Path(sys.argv[1])):
            Path(sys.argv[2]).touch()
            time.sleep(600)
        """,
        str(place),
        str(place.with_name("taken")),
    )
    wait_for(place.with_name("taken").exists)
    with ledger.claimed(run) as mine:
        assert not mine
    with ledger.claimed(ledger.runs["rlq_seed3"]) as mine:
        assert mine
    other.kill()
    other.wait()
    with ledger.claimed(run) as mine:
        assert mine
        with Ledger(load(valid)).claimed(run) as again:
            assert not again


def test_what_is_raised_inside_a_claim_passes_through(load: Load, valid: dict[str, Any]) -> None:
    ledger = Ledger(load(valid))
    with pytest.raises(WorkError, match="inside"), ledger.claimed(ledger.runs["float_seed3"]):
        raise WorkError("inside")
    assert not (ledger.folder / "claims").exists()


def test_a_run_at_which_processes_die_without_progress_fails(load: Load, valid: dict[str, Any]) -> None:
    comparison = load(valid)
    run = comparison.runs[0]
    for _ in range(MOST_DEATHS):
        ledger = Ledger(comparison)  # of a process that dies after `begin`
        with ledger.exclusive():
            assert ledger.begin(run).failed == ""
    with ledger.exclusive():
        assert f"ended {MOST_DEATHS} times at iteration 0" in ledger.begin(run).failed
    assert Ledger(comparison).failure(run) == (ledger.state(run).failed, False)


def test_a_process_that_stops_by_itself_is_no_death(load: Load, valid: dict[str, Any]) -> None:
    comparison = load(valid)
    ledger = Ledger(comparison)
    for _ in range(MOST_DEATHS + 2):
        with ledger.exclusive():
            assert ledger.begin(comparison.runs[0]).failed == ""
            ledger.release(comparison.runs[0])


def test_a_failure_blocks_dependent_runs_until_it_is_forgotten(load: Load, valid: dict[str, Any]) -> None:
    comparison = load(valid)
    ledger, other = Ledger(comparison), Ledger(comparison)
    with ledger.exclusive():
        ledger.fail(ledger.runs["float_seed3"], "no data", bad_input=True)
    other.read()
    failures = {name: other.failure(run) for name, run in other.runs.items()}
    assert failures == {
        "float_seed3": ("no data", True),
        "rlq_seed3": ("starts from float_seed3, which failed", False),
        "float_seed7": None,
        "rlq_seed7": None,
    }
    command.prepare(comparison, other, again=False)
    assert other.failure(other.runs["float_seed3"]) is not None
    command.prepare(comparison, other)
    assert other.failure(other.runs["float_seed3"]) is None


def test_other_options_make_a_failure_void(load: Load, valid: dict[str, Any]) -> None:
    ledger = Ledger(load(valid))
    with ledger.exclusive():
        ledger.fail(ledger.runs["float_seed3"], "no data")
    changed = Ledger(load(valid, "variants.float.train.total_iter=6"))
    assert changed.failure(changed.runs["float_seed3"]) is None


def test_a_process_waits_for_runs_that_others_have_claimed(
    load: Load, valid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While ``float_seed3`` is claimed, this process trains what does not depend on it, and waits;
    then the other process fails at it."""
    comparison = load(valid)
    ledger = Ledger(comparison)
    trained: list[str] = []
    polls: list[float] = []

    def train(run: Run, resume_command: str) -> None:
        trained.append(run.name)
        raise WorkError("ends here")

    monkeypatch.setattr(command, "_train", train)
    other = Ledger(comparison)
    with other.claimed(other.runs["float_seed3"]) as mine:
        assert mine

        def sleep(seconds: float) -> None:
            polls.append(seconds)
            with other.exclusive():
                other.fail(other.runs["float_seed3"], "broken")

        monkeypatch.setattr(command.time, "sleep", sleep)
        command.work(comparison, ledger, resume_command="again")
    assert trained == ["float_seed7"]
    assert len(polls) == 1
    monkeypatch.setattr(command, "_baseline", lambda comparison: [])
    with pytest.raises(
        WorkError, match=r"4 of 4 runs failed.*float_seed3: broken; rlq_seed3: starts from float"
    ):
        command.finish(comparison, ledger)


def test_bad_input_of_a_run_fails_it_alone(
    load: Load, valid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = load(valid)

    def train(run: Run, resume_command: str) -> None:
        raise InputError(f"{run.name}.lmdb: not there")

    monkeypatch.setattr(command, "_train", train)
    monkeypatch.setattr(command, "_baseline", lambda comparison: [])
    ledger = Ledger(comparison)
    command.work(comparison, ledger, resume_command="again")
    with pytest.raises(InputError, match=r"float_seed7: float_seed7\.lmdb: not there"):
        command.finish(comparison, ledger)


def test_cores_and_gpus_are_divided_among_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 8)
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "environ", {})
    found = [workers._environment(number, 3) for number in range(3)]
    assert [e["OMP_NUM_THREADS"] for e in found] == ["2"] * 3
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0", "1", "0"]
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "5", "CUDA_VISIBLE_DEVICES": "3,7"})
    found = [workers._environment(number, 3) for number in range(3)]
    assert [(e["OMP_NUM_THREADS"], e["CUDA_VISIBLE_DEVICES"]) for e in found] == [
        ("5", "3"),
        ("5", "7"),
        ("5", "3"),
    ]


def test_a_process_of_torchrun_leaves_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: 2)
    workers.leave_group(World(3, 4, 1))
    assert environment == {"CUDA_VISIBLE_DEVICES": "1"}


def test_a_worker_stops_when_its_parent_dies(tmp_path: Path) -> None:
    child = python(
        """
        import sys, time
        from pathlib import Path
        from quantsr.analysis.workers import stop_with_parent
        stop_with_parent()
        Path(sys.argv[1]).touch()
        time.sleep(600)
        """,
        str(tmp_path / "begun"),
    )
    wait_for((tmp_path / "begun").exists)
    assert child.poll() is None
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(60) == -signal.SIGTERM


def test_slurm_parameters() -> None:
    words = ["partition=gpu", "gpus_per_node=1", "timeout_min=600", "slurm_qos=low"]
    assert cluster.parse_parameters(words) == {
        "slurm_partition": "gpu",
        "gpus_per_node": 1,
        "timeout_min": 600,
        "slurm_qos": "low",
    }
    with pytest.raises(InputError, match="'gpu' is not KEY=VALUE"):
        cluster.parse_parameters(["gpu"])


def test_workers_are_refused_in_one_line(
    load: Load,
    valid: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(valid)
    words = ["compare", "-opt", str(tmp_path / "compare.yml")]
    with pytest.raises(SystemExit):
        main([*words, "--workers", "0"])
    assert "at least 1, got '0'" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*words, "--slurm", "partition=gpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --slurm: ")
    assert "slurm" in error.lower()


SBATCH = """#!/bin/sh
# Runs each job of an array in the background, as Slurm would.
script=$1
tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "$tasks"); do
    SLURM_JOB_ID=7$task SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 \\
        SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=here sh "$script" > /dev/null 2>&1 &
done
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/sh
# Runs its command here, without its own options.
while [ "${1#--}" != "$1" ]; do
    case $1 in --output|--error) shift ;; esac
    shift
done
exec "$@"
"""


@pytest.mark.integration
@pytest.mark.parametrize("how", ["workers", "slurm", "torchrun"])
def test_processes_side_by_side_end_in_the_table_of_one(
    how: str,
    load: Load,
    valid: dict[str, Any],
    training: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that sums have one order
    load(valid)
    folder = Path(valid["experiments_root"])
    words = [sys.executable, "-m", "quantsr", "compare", "-opt", str(tmp_path / "compare.yml")]
    subprocess.run([*words, "--set", "name=alone"], check=True, stdout=subprocess.DEVNULL)
    if how == "workers":
        subprocess.run([*words, "--workers", "2"], check=True)
    elif how == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        subprocess.run([*torchrun, *words[1:]], check=True)
    else:
        pytest.importorskip("submitit")
        for name, text in (("sbatch", SBATCH), ("srun", SRUN)):
            (tmp_path / "bin").mkdir(exist_ok=True)
            (tmp_path / "bin" / name).write_text(text)
            (tmp_path / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        done = subprocess.run(
            [*words, "--workers", "2", "--slurm", "timeout_min=5"], check=True, capture_output=True, text=True
        )
        assert done.stdout.startswith("submitted 7_0, 7_1; ")
        comparison = load(valid)
        wait_for(lambda: all(Ledger(comparison).state(run).evaluated for run in comparison.runs))
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)

    def values(name: str) -> list[tuple[Any, ...]]:
        records: list[Record] = read_results(folder / f"compare_{name}" / "results.json")
        return [(r.variant, r.seed, r.depth, r.metric, r.value) for r in records]

    assert values("try") == values("alone")
    assert len(values("try")) > 8
    costs = (folder / "compare_try" / "results.csv").read_text().splitlines()
    assert costs[0].endswith("packed_bytes,gbitops,ms")
    assert all(float(line.rsplit(",", 1)[1]) > 0 for line in costs[1:])
