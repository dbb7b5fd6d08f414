"""The training run, in order: folder, data, network, calibration, stage 1, ranking, stage 2,
results."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from quantsr import quant
from quantsr.config import Options
from quantsr.engine import build, start, training_state
from quantsr.engine.evaluate import build_sets
from quantsr.engine.monitor import Monitor
from quantsr.engine.results import Record, write_results
from quantsr.engine.run_folder import RunFolder, StopRequest, log_file, owned, owned_anew
from quantsr.engine.saving import Saver
from quantsr.engine.time_limit import TimeLimit
from quantsr.engine.validation import Stopped, Validation, left_out, metric_arguments
from quantsr.errors import InputError, StopError, WorkError
from quantsr.hardware import processes
from quantsr.hardware.device import resolve_device, seed_everything
from quantsr.models.quantsr_model import QuantSRModel

logger = logging.getLogger(__name__)

BAR_REFRESH_ON_GPU = 20
"""Iterations between readings of the loss for the progress bar, each of which waits for the GPU."""


class Trainer:
    """One training run in this process.

    Args:
        options: with a ``train`` section and a ``train`` data set.
        auto_resume: resume from the newest complete state of this run, if there is one.
        resume_command: the command that resumes the run, for the message of an interrupted run.
        launcher: see `processes.detect`.
        limit: when the run stops, and how often it writes a checkpoint by time; None for no limit.

    Raises:
        InputError: sections are missing, or a checkpoint does not fit.
    """

    def __init__(
        self,
        options: Options,
        *,
        auto_resume: bool = False,
        resume_command: str | None = None,
        launcher: str = "none",
        limit: TimeLimit | None = None,
    ) -> None:
        if options.train is None:
            raise InputError("train: missing; a training run needs this section")
        if "train" not in options.datasets:
            raise InputError("datasets.train: missing; a training run needs this data set")
        self.options = options
        self.train_options = options.train
        self.auto_resume = auto_resume or options.auto_resume
        self.resume_command = resume_command or "quantsr train -opt FILE --auto-resume"
        self.world = processes.detect(launcher)
        self.limit = limit
        self.folder = RunFolder(Path(options.experiment_folder))
        self.saver = Saver(options, self.folder)
        self.iteration = 0
        self.best: dict[str, Any] | None = None
        self.dead: set[str] = set()

    # Running

    def run(self) -> list[Record]:
        """Trains to the end and returns the last validation's records, bicubic first.

        Raises:
            InputError: files that the options name are missing or do not fit.
            WorkError: the loss is not finite or a file cannot be written; `StopError` after a
                signal or at the time limit.
        """
        self.device = resolve_device(self.options.num_gpu, self.world)
        group = self.options.dist_params
        backend = group.backend if self.device.type == "cuda" else "gloo"
        processes.join(self.world, backend=backend, port=group.port)
        try:
            with StopRequest() as self.stop, contextlib.ExitStack() as locks:
                state = self._enter_folder(locks)
                with self._logging(), logging_redirect_tqdm():
                    return self._run(state)
        finally:
            processes.leave()

    def _enter_folder(self, locks: contextlib.ExitStack) -> dict[str, Any] | None:
        """The main process locks the run's folder and prepares it while the others wait; returns
        the state to resume from, None for a new run.

        Raises:
            FolderLockedError: another process has locked it.
            InputError, WorkError: a state cannot be read, the folder cannot be written, or the main
                process failed.
        """
        state: dict[str, Any] | None = None
        failure: InputError | WorkError | None = None
        if self.world.is_main:
            try:
                locks.enter_context(owned(self.folder.root))
                state = self.saver.find_state(self.auto_resume)
                if state is not None and self.options.path.resume_state is None:
                    self.saver.refuse_finished(state)
                if state is None:
                    locks.enter_context(owned_anew(self.folder.root))
                self.folder.create(self.options)
                if state is not None:
                    self.saver.rename_later_states(int(state["iteration"]))
            except (InputError, WorkError) as error:
                failure = error
        if processes.agree(failure is not None, self.device):
            raise failure or WorkError(
                f"{self.folder.root}: the first process cannot use it; see its message"
            )
        return state if self.world.is_main else self.saver.find_state(self.auto_resume)

    def _logging(self) -> contextlib.AbstractContextManager[None]:
        """The main process logs to a file too; the others log only warnings."""
        if self.world.is_main:
            return log_file(self.folder.log_path(self.options.name))
        logging.getLogger("quantsr").setLevel(logging.WARNING)
        return contextlib.nullcontext()

    def _run(self, state: Mapping[str, Any] | None) -> list[Record]:
        start.set_modes(self.train_options, self.world)
        seed_everything(self.options.manual_seed + self.world.rank)
        self.loader = start.train_loader(self.options, self.world, self.device)
        metrics = metric_arguments(self.options)
        sets = build_sets(self.options.sets("val"), self.options.scale, metrics, left_out)
        self.validation = Validation(self.options, sets, self.folder, self.world)
        net = build.build_for_options(self.options).to(self.device)
        if state is None:
            build.initialise(net, self.options)
            start.calibrate(net, self.loader, self.train_options, self.device)
        kind = build.model_class(self.options.model_type)
        self.model: QuantSRModel = kind(
            self.options,
            net=net,
            device=self.device,
            world=self.world,
            teacher=build.build_teacher(self.options) if self.train_options.distill is not None else None,
        )
        due = self._restore(state) if state is not None else False
        self._log_start(net)
        monitor = Monitor(
            total=self.train_options.total_iter,
            start=self.iteration,
            tensorboard=self.folder.tensorboard if self.options.logger.use_tb_logger else None,
            active=self.world.is_main,
        )
        try:
            return self._train(monitor, validation_due=due)
        finally:
            monitor.close()
            self.loader.close()

    def _train(self, monitor: Monitor, *, validation_due: bool) -> list[Record]:
        total, print_freq = self.train_options.total_iter, self.options.logger.print_freq
        records: list[Record] = []
        if total == 0:
            self._save(validation_due=bool(self.validation.sets))
        if validation_due or self.iteration >= total:
            records = self._validate(monitor)
        if validation_due:
            self._save_state()
        monitor.resume()
        while self.iteration < total:
            self._exit_if_signalled(validation_due=False)
            if (
                self.iteration >= self.train_options.stage1_iter
                and self.model.stage == 1
                and self.model.depths
            ):
                self._start_stage2(monitor)
            if self.model.removal is not None and self.model.removal.starts(self.iteration):
                self._remove_block()
            self._step(monitor)
            done = self.iteration == total
            if self.iteration % print_freq == 0 or done:
                self.model.check_finite()
                log = self.model.get_current_log()
                monitor.report(self.iteration, self.model.stage, self.model.get_current_learning_rate(), log)
                monitor.steps_of(self.model.net, self.iteration)
            validate = bool(self.validation.sets) and (done or self._validation_falls_due())
            save = done or self._checkpoint_is_due()
            # before the validation, so that no iterations are lost if it fails
            if save:
                self._save(validation_due=validate)
            if validate:
                records = self._validate(monitor)
                if save:
                    self._save_state()  # with the result of the validation
        summary = monitor.summary()
        logger.info(
            "trained to iteration %d: %.0f s in this session, %.2f %% of it waiting for data",
            self.iteration,
            summary["seconds"],
            100 * summary["data_wait"],
        )
        if self.best is not None:
            logger.info(
                "best %(metric)s %(value).4f, the mean over sets and depths, at iteration %(iteration)d",
                self.best,
            )
        return self._finish(records)

    def _step(self, monitor: Monitor) -> None:
        """One iteration: data, learning rate, update."""
        begin = time.perf_counter()
        batches = [next(self.loader) for _ in range(self.train_options.accumulate)]
        monitor.waited(time.perf_counter() - begin)
        self.iteration += 1
        self.model.update_learning_rate(self.iteration, self.train_options.warmup_iter)
        self.model.feed_data(batches)
        self.model.optimize_parameters(self.iteration)
        loss = None
        if self.device.type == "cpu":
            self.model.check_finite()
        if self.device.type == "cpu" or self.iteration % BAR_REFRESH_ON_GPU == 0:
            loss = float(sum(self.model.loss_terms.values()))
        monitor.stepped(loss, self.model.stage)
        if self.limit is not None:
            self.limit.stepped(self.model.stage)

    def _log_start(self, net: nn.Module) -> None:
        count = sum(parameter.numel() for parameter in net.parameters())
        logger.info(
            "%s, x%d, %s parameters, depths %s, on %s, %s, options %s",
            build.title(net),
            self.options.scale,
            f"{count:,}",
            list(self.model.depths) or "one",
            self.device,
            self.model.precision,
            self.options.config_hash(),
        )
        build.log_manifest(net)

    # Stages, validation, stopping

    def _start_stage2(self, monitor: Monitor) -> None:
        monitor.pause()
        batches = [next(self.loader) for _ in range(self.model.ranking_batches)]
        if batches:
            logger.info("ranking the blocks by the loss without them, on %d batches", len(batches))
        ranking = self.model.start_stage2(batches)
        logger.info(
            "iteration %d: stage 2, depths %s; blocks ranked, kept first: %s",
            self.iteration,
            list(self.model.depths),
            " ".join(map(str, ranking)),
        )
        monitor.resume()

    def _validation_falls_due(self) -> bool:
        freq = self.options.val.val_freq if self.options.val is not None else None
        return freq is not None and self.iteration % freq == 0

    def _validate(self, monitor: Monitor) -> list[Record]:
        """Evaluates in all processes; the main one writes the best network and returns records."""
        self.model.check_finite(weights=True)
        if not self.validation.sets:
            return []
        monitor.pause()
        try:
            records = self.validation.run(
                self.model.evaluated_net,
                self.iteration,
                self.model.stage,
                self._stop_if_signalled,
                self.model.depth,
            )
        except Stopped:
            self._exit_if_signalled(validation_due=True)
            raise
        removal = self.model.removal
        remove = removal is not None and removal.validated(self.iteration, self.validation.merit(records))
        remove = remove and self.iteration < self.train_options.total_iter
        if self.world.is_main:
            self._note(monitor, records)
        if remove:
            self._remove_block()
        monitor.resume()
        return records if self.world.is_main else []

    def _note(self, monitor: Monitor, records: Sequence[Record]) -> None:
        """Logs a validation's records, and writes the network where it is the best."""
        monitor.records(records, self.iteration)
        if monitor.writer is not None:
            for name, row in self.validation.picture_rows(self.model.evaluated_net, self.model.depth):
                monitor.pictures(name, row, self.iteration)
        best = self.validation.new_best(self.best, records, self.iteration, self.model.stage)
        if best is not None:
            self.best = best
            self.saver.write_network(self.model, self.iteration, "best")

    def _remove_block(self) -> None:
        """Removes a block; the best network so far, which has it, is no longer compared."""
        block = self.model.remove_block(self.iteration)
        logger.info("iteration %d: block %d removed, %d blocks left", self.iteration, block, self.model.depth)
        self.best = None

    @property
    def _stop_reason(self) -> str | None:
        """The signal or limit at which this process must write a checkpoint and stop; None where it
        continues."""
        if self.stop.name is not None:
            return self.stop.name
        return "the time limit" if self.limit is not None and self.limit.reached() else None

    def _stop_if_signalled(self, line: str) -> None:
        if self._stop_reason is not None and self.world.size == 1:
            raise Stopped

    def _exit_if_signalled(self, *, validation_due: bool) -> None:
        """After a signal or at the time limit, writes a checkpoint and raises `StopError`."""
        must_stop = self._stop_reason is not None
        if self.world.size > 1 and not validation_due:
            must_stop = self.iteration % 10 == 0 and processes.agree(must_stop, self.device)
        if not must_stop:
            return
        self._save(validation_due=validation_due)
        raise StopError(
            f"stopped by {self._stop_reason or 'a signal'} at iteration {self.iteration}, checkpoint written; "
            f"go on with: {self.resume_command}"
        )

    def _finish(self, records: Sequence[Record]) -> list[Record]:
        if not self.world.is_main or not self.validation.sets:
            return list(records)
        records = [*self.validation.baseline(), *records]
        write_results(records, self.folder.root)
        return records

    # Checkpoints

    def _checkpoint_is_due(self) -> bool:
        by_time = self.limit is not None and self.limit.save_is_due()
        return by_time or self.iteration % self.options.logger.save_checkpoint_freq == 0

    def _save(self, *, validation_due: bool = False) -> None:
        self.model.check_finite(weights=True)
        self._report_dead()
        if self.world.is_main:
            self.saver.write_networks(self.model, self.iteration)
        self._save_state(validation_due=validation_due)
        logger.info("iteration %d: checkpoint written to %s", self.iteration, self.folder.root)

    def _save_state(self, *, validation_due: bool = False) -> None:
        if self.world.is_main:
            self.saver.write_state(
                self.model,
                self.iteration,
                loader=self.loader.state_dict(),
                best=self.best,
                validation_due=validation_due,
            )
        if self.limit is not None:
            self.limit.saved()

    def _report_dead(self) -> None:
        """Logs a warning for each layer whose quantizer has become dead since the last call."""
        if not self.world.is_main:
            return
        dead = quant.dead_quantizers(self.model.net)
        if new := {name: fault for name, fault in dead.items() if name not in self.dead}:
            logger.warning(
                "iteration %d: dead quantizers, whose layers output almost 0, or NaN: %s; lower train.step_lr_mult or train.optim_g.lr",
                self.iteration,
                quant.describe_dead(new),
            )
        self.dead = set(dead)

    def _restore(self, state: Mapping[str, Any]) -> bool:
        """Restores model, data position and random states; returns whether a validation is due."""
        self.iteration = int(state["iteration"])
        try:
            self.model.load_state(state["model"])
            self.loader.load_state_dict(state["loader"])
            training_state.set_random_states(state["random"])
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            first = [*str(error).strip().splitlines(), type(error).__name__][0]
            raise InputError(
                f"{state['path']}: training state of iteration {self.iteration} does not fit these options ({first}); train "
                "under another name, or without --auto-resume"
            ) from error
        if state["config_hash"] != self.options.config_hash():
            logger.warning("options changed since this run was begun; going on with the present ones")
        self.best = state["best"]
        logger.info("resumed at iteration %d", self.iteration)
        return bool(state["validation_due"])
