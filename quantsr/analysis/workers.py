"""Processes of one machine that work on one comparison, and how a process becomes one of them."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from quantsr.analysis.runs import Ledger
from quantsr.config.comparison import Comparison
from quantsr.cpu import cores, environment_of_user
from quantsr.engine.run_folder import StopRequest
from quantsr.errors import StopError, WorkError
from quantsr.hardware.processes import World

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_REPORT_EVERY = 10  # polls
_MOST_FRUITLESS = 20
"""So many processes may end in a row, by a failure or killed, without any run's state changing."""


class Workers:
    """Starts processes that `compare.work`, restarts those that die, and reports what they finish.

    Args:
        command: the command line of a worker.
        count: number of processes side by side. CPU cores are divided among them, unless
            ``OMP_NUM_THREADS`` is set; GPUs are assigned in turn.
        ledger: the state of the runs.
    """

    def __init__(self, command: Sequence[str], count: int, comparison: Comparison, ledger: Ledger) -> None:
        self._command = list(command)
        self._comparison = comparison
        self._ledger = ledger
        self._environments = [_environment(number, count) for number in range(count)]
        self._logs = [ledger.folder / "log" / f"worker_{number + 1}.log" for number in range(count)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._reported: set[str] = set()
        self._fruitless = 0
        self._seen = ""

    def run(self, resume_command: str) -> None:
        """Returns when every run is finished or has failed.

        Raises:
            StopError: stopped by a signal; the workers have written their states.
            WorkError: workers end again and again without a result.
        """
        self._reported = {run.name for run in self._comparison.runs if self._ledger.is_done(run)}
        with StopRequest() as stop:
            try:
                for number in range(len(self._logs)):
                    self._start(number)
                polls = 0
                while self._processes and stop.name is None:
                    time.sleep(_POLL_S)
                    self._look_after()
                    polls += 1
                    if polls % _REPORT_EVERY == 0:
                        self._report()
                self._report()
            finally:
                self._end()
        if stop.name is not None:
            raise StopError(f"stopped by {stop.name}; finished runs are kept; go on with: {resume_command}")

    def _start(self, number: int) -> None:
        path = self._logs[number]
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as log:
            # A session of its own: Ctrl-C reaches this process only, which passes it on. The worker
            # stops when the pipe to its standard input closes, as it does if this process dies.
            self._processes[number] = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environments[number],
                start_new_session=True,
            )

    def _look_after(self) -> None:
        for number, process in list(self._processes.items()):
            code = process.poll()
            if code is None:
                continue
            del self._processes[number]
            _close(process)
            self._ledger.read()
            if code == 0 or all(map(self._ledger.is_done, self._comparison.runs)):
                continue
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._count_fruitless(how, self._logs[number])
            logger.warning(
                "worker %d ended by %s and is started again; its log is %s",
                number + 1,
                how,
                self._logs[number],
            )
            self._start(number)

    def _count_fruitless(self, how: str, log: Path) -> None:
        states = "; ".join(f"{run.name} {self._ledger.entry(run)}" for run in self._comparison.runs)
        self._fruitless = self._fruitless + 1 if states == self._seen else 0
        self._seen = states
        if self._fruitless >= _MOST_FRUITLESS:
            raise WorkError(f"{_MOST_FRUITLESS} workers ended without a result, the last by {how}; see {log}")

    def _report(self) -> None:
        self._ledger.read()
        total = len(self._comparison.runs)
        for run in self._comparison.runs:
            if run.name in self._reported or not self._ledger.is_done(run):
                continue
            self._reported.add(run.name)
            failure = self._ledger.failure(run)
            end = "finished" if failure is None else f"failed: {failure[0]}"
            logger.info("%d of %d runs, %s: %s", len(self._reported), total, run.name, end)

    def _end(self) -> None:
        """Stops the workers that are left: each writes its state first."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self._processes.values():
            process.wait()
            _close(process)
        self._processes.clear()


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()


def _environment(number: int, count: int) -> dict[str, str]:
    """The environment of one of ``count`` workers."""
    environment = environment_of_user()
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    devices = _devices(environment)
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return environment


def _devices(environment: Mapping[str, str]) -> list[str]:
    """The names of the GPUs that this process may use."""
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count()
    return visible[:count] if visible else [str(index) for index in range(count)]


def stop_with_parent() -> None:
    """Makes this process stop, as by SIGTERM, when its standard input ends, which the parent holds
    open."""
    handle = os.dup(sys.stdin.fileno())

    def wait() -> None:
        # not `sys.stdin`, whose lock this thread would still hold when Python shuts down
        with contextlib.suppress(OSError):
            while os.read(handle, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="stop with parent", daemon=True).start()


def leave_group(world: World) -> None:
    """Makes a process of torchrun work for itself, on the GPU of its local rank: trainings that it
    runs are not distributed."""
    devices = _devices(os.environ)
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[world.local_rank % len(devices)]
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
