"""Commands beside another process that takes processor time: what is left of their speed.

    python -m benchmarks.bench_busy                            # all commands, results/busy.csv
    python -m benchmarks.bench_busy --work train --settings default spinning "one thread"
    python -m benchmarks.bench_busy --checkout ../before --output busy_before.csv

Each command runs alone, beside one process that computes in a loop on one core, and beside a torch
process with two threads. A training is measured in seconds per iteration, from its log after the
first iterations; the other commands are timed as whole processes. ``share`` is the speed beside the
other process divided by that alone (medians). With two threads on two cores, fair scheduling gives
2/3 beside a thread and 1/2 beside two.

``spinning`` is what OpenMP does unless told otherwise: a thread that waits keeps its core busy.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import timing
from quantsr.timing import load_per_core, machine

ROOT = Path(__file__).resolve().parents[1]
MINI = "options/train/QuantSR_C/mini_w4a4_x2.yml"

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "spinning": {"GOMP_SPINCOUNT": "300000"},  # libgomp's own default
    "active": {"OMP_WAIT_POLICY": "active"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
}
"""Environment variables that are set for the measured command."""

_UNTIL_ORPHANED = "import os; parent = os.getppid()\nwhile os.getppid() == parent:"
COMPETITORS = {
    "alone": None,
    "beside a loop": f"{_UNTIL_ORPHANED}\n    for _ in range(10**5): pass",
    "beside two-threaded torch": (
        f"import torch; torch.set_num_threads(2); a = torch.rand(600, 600)\n{_UNTIL_ORPHANED} a @ a"
    ),
}
"""Python code of the other process."""

_SKIPPED = 3
"""First iterations of a training that are not counted: they compile and allocate."""

Times = dict[tuple[str, str], list[float]]
"""Seconds by setting and by what runs beside."""


@contextlib.contextmanager
def competing(code: str | None) -> Iterator[None]:
    """Another process that runs ``code``, where there is any."""
    if code is None:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", code])
    time.sleep(4)  # until torch is imported
    try:
        yield
    finally:
        other.kill()
        other.wait()


def _environment(checkout: Path, setting: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), **SETTINGS[setting]}


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "quantsr", *words]


class Training:
    """The default training in a process of its own, suspended while it is not measured."""

    def __init__(self, checkout: Path, folder: Path, setting: str) -> None:
        changes = [
            f"name={setting.replace(' ', '_')}",
            "logger.print_freq=1",
            "logger.use_tb_logger=false",
            f"path.experiments_root={folder}",
        ]
        words = ["-opt", MINI, *(word for change in changes for word in ("--set", change))]
        self._process = subprocess.Popen(
            _command("train", *words),
            cwd=checkout,
            env=_environment(checkout, setting),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self._times: list[float] = []
        self._lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if " iteration " in line and " it/s" in line:
                self._times.append(time.perf_counter())
            else:
                self._lines.append(line)

    def _wait_for(self, count: int, *, until: float = math.inf) -> None:
        while len(self._times) < count and time.perf_counter() < until:
            if self._process.poll() is not None:
                raise SystemExit(f"the training has ended: {''.join(self._lines[-5:])}")
            time.sleep(0.01)

    def warm_up(self) -> None:
        """Waits for the first iterations, and suspends the process."""
        self._wait_for(_SKIPPED)
        self._process.send_signal(signal.SIGSTOP)

    def measure(self, seconds: float) -> float:
        """Seconds per iteration, over at least ``seconds`` and two iterations, or six times as long
        without these."""
        self._process.send_signal(signal.SIGCONT)
        begin, first = time.perf_counter(), len(self._times)
        self._wait_for(first + 1, until=begin + 6 * seconds)  # the one that was interrupted
        start = time.perf_counter()
        self._wait_for(first + 3, until=begin + 6 * seconds)
        time.sleep(max(0.0, start + seconds - time.perf_counter()))
        self._process.send_signal(signal.SIGSTOP)
        times = self._times[first:]
        if len(times) > 1:
            return (times[-1] - times[0]) / (len(times) - 1)
        return time.perf_counter() - begin  # of one iteration at most

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def _times_of_training(
    checkout: Path, folder: Path, settings: Sequence[str], rounds: int, seconds: float
) -> Times:
    trainings = {setting: Training(checkout, folder, setting) for setting in settings}
    times: Times = {}
    try:
        for training in trainings.values():
            training.warm_up()
        for _ in range(rounds):
            for beside, code in COMPETITORS.items():
                with competing(code):
                    for setting, training in trainings.items():
                        times.setdefault((setting, beside), []).append(training.measure(seconds))
    finally:
        for training in trainings.values():
            training.end()
    return times


WHOLE = {
    "test": (
        *("test", "-opt", "options/test/shipped.yml", "--set", "val.save_img=false"),
        *("--set", "path.pretrain_network_g=quantsr_c_small_x3_w4a6"),
        *("--set", "path.results_root={folder}", "--set", "val.engine={engine}"),
    ),
    "upscale": (
        *("upscale", "datasets/mini/casa-mila.webp", "-o", "{folder}/upscaled.png", "--force"),
        *("--model", "quantsr_c_x2_w4a4", "--depth", "4", "--engine", "{engine}"),
    ),
}
"""Commands that are timed as whole processes: the small x3 network on three pictures, and the x2
network on one."""


def _times_of_command(
    checkout: Path, folder: Path, words: Sequence[str], settings: Sequence[str], rounds: int
) -> Times:
    def run(setting: str) -> float:
        begin = time.perf_counter()
        subprocess.run(
            _command(*words),
            cwd=checkout,
            env=_environment(checkout, setting),
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - begin

    times: Times = {}
    run(settings[0])  # reads files
    for _ in range(rounds):
        for beside, code in COMPETITORS.items():
            with competing(code):
                for setting in settings:
                    times.setdefault((setting, beside), []).append(run(setting))
    return times


def _records(name: str, times: Times) -> Iterator[dict[str, Any]]:
    for (setting, beside), found in times.items():
        median, alone = statistics.median(found), statistics.median(times[setting, "alone"])
        yield {
            "command": name,
            "setting": setting,
            "beside": beside,
            "seconds": round(median, 3),
            "min_s": round(min(found), 3),
            "max_s": round(max(found), 3),
            "share": round(alone / median, 3),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["train", "test", "upscale"]
    parser.add_argument("--work", nargs="+", choices=names, default=names)
    parser.add_argument("--engines", nargs="+", default=["native", "openvino", "onnxruntime", "torch"])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["default", "spinning"])
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose code is measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="how long a training is observed each time")
    parser.add_argument("--output", default="busy.csv", help="in benchmarks/results")
    args = parser.parse_args()
    print(f"{machine()}; {load_per_core():.2f} runnable processes per core in the last minute")
    records: list[dict[str, Any]] = []
    checkout = args.checkout.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "train" in args.work:
            times = _times_of_training(checkout, folder, args.settings, args.rounds, args.seconds)
            records += _records("train", times)
        for work in (work for work in args.work if work in WHOLE):
            for engine in args.engines:
                words = [word.format(folder=folder, engine=engine) for word in WHOLE[work]]
                times = _times_of_command(checkout, folder, words, args.settings, args.rounds)
                records += _records(f"{work}, {engine}", times)
    print(timing.table(records))
    print(f"written to {timing.write_csv(args.output, records)}")


if __name__ == "__main__":
    main()
