"""Workers of a comparison as an array of Slurm jobs, through the package submitit."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from quantsr.errors import InputError, WorkError

# Names of submitit that hold for every kind of cluster; other names are sbatch's.
_COMMON = frozenset(
    {"name", "timeout_min", "mem_gb", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node"}
)


class Worker:
    """What a job runs: a worker of the comparison, by its command line."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Runs the worker; it stops with this process (`workers.stop_with_parent`).

        Raises:
            WorkError: it ended with another exit code than 0.
        """
        self._process = subprocess.Popen(self.command, stdin=subprocess.PIPE, start_new_session=True)
        if code := self._process.wait():
            raise WorkError(f"{shlex.join(self.command)}: exit code {code}")

    def checkpoint(self) -> Any:
        """Called by submitit when the job's time is over: the worker writes its state and stops,
        and is submitted again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        return DelayedSubmission(Worker(self.command))


def parse_parameters(words: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` words as submitit's parameters: names that submitit has for every cluster as
    they are, others with its prefix ``slurm_``.

    Raises:
        InputError: a word without ``=``.
    """
    parameters = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"--slurm: {word!r} is not KEY=VALUE, such as partition=gpu or timeout_min=600")
        name = key if key in _COMMON or key.startswith("slurm_") else f"slurm_{key}"
        try:
            parameters[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--slurm: {word!r}: {error}") from error
    return parameters


def submit(command: Sequence[str], *, count: int, parameters: Mapping[str, Any], folder: Path) -> list[str]:
    """Submits ``count`` workers as one job array, and returns the names of the jobs.

    Args:
        command: the command line of a worker.
        count: number of workers, which may run side by side.
        parameters: see `parse_parameters`.
        folder: for the jobs' scripts and logs.

    Raises:
        InputError: submitit is not installed, there is no Slurm, or it does not take the
            parameters.
    """
    # else the import would close every log handler of this process
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            '--slurm: needs submitit; install it with: pip install "quantsr[cluster]"'
        ) from error
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(slurm_array_parallelism=count, **parameters)
        with executor.batch():
            jobs = [executor.submit(Worker(command)) for _ in range(count)]
    except (RuntimeError, ValueError, TypeError, NameError, OSError) as error:
        text = str(error).strip() or type(error).__name__
        raise InputError(
            f"--slurm: {text.splitlines()[0]}; see 'sbatch --help' for names and values"
        ) from error
    return [str(job.job_id) for job in jobs]
