"""Writing network files and training states of a run, and finding the state to resume from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from quantsr.config import Options
from quantsr.engine import training_state
from quantsr.engine.network_file import network_file
from quantsr.engine.run_folder import RunFolder
from quantsr.errors import InputError, WorkError
from quantsr.models.quantsr_model import QuantSRModel
from quantsr.trained_files import checkpoint

logger = logging.getLogger(__name__)


class Saver:
    """Writes network files and training states into the folder of a run."""

    def __init__(self, options: Options, folder: RunFolder) -> None:
        self.options = options
        self.folder = folder

    def write_network(self, model: QuantSRModel, iteration: int, label: str) -> None:
        """Writes ``models/net_g_LABEL.pth``."""
        ema = None if model.ema is None else model.ema.net
        content = network_file(model.net, ema, iteration=iteration, options=self.options.dump())
        checkpoint.save(self.folder.models / f"net_g_{label}.pth", content)

    def write_networks(self, model: QuantSRModel, iteration: int) -> None:
        """Writes the network under its iteration and as ``latest``. To be called before
        `write_state`, since a run resumes from its newest state."""
        self.write_network(model, iteration, str(iteration))
        self.write_network(model, iteration, "latest")

    def write_state(
        self,
        model: QuantSRModel,
        iteration: int,
        *,
        loader: Mapping[str, Any],
        best: Mapping[str, Any] | None,
        validation_due: bool,
    ) -> None:
        """Writes the training state, and removes older states than ``logger.keep_states``."""
        state = {
            "state_version": training_state.STATE_VERSION,
            "iteration": iteration,
            "model": model.state(),
            "loader": checkpoint.plain(loader),
            "random": training_state.random_states(),
            "best": best,
            "validation_due": validation_due,
            "config_hash": self.options.config_hash(),
        }
        checkpoint.save(self.folder.states / f"{iteration}.state", state)
        if self.options.logger.keep_states:
            training_state.keep_newest(self.folder.states, self.options.logger.keep_states)

    def rename_later_states(self, iteration: int) -> None:
        """Renames the states of this run after ``iteration``, from which it resumes: they would
        else be taken for its newest.

        Raises:
            WorkError: one cannot be renamed.
        """
        for path in training_state.states_in(self.folder.states):
            if int(path.stem) > iteration:
                other = path.with_name(f"{path.name}.left")
                try:
                    path.replace(other)
                except OSError as error:
                    raise WorkError(f"{path}: cannot be renamed ({error.strerror}); remove it") from error
                logger.info("%s: of iterations that this run does again, renamed to %s", path, other.name)

    def find_state(self, auto_resume: bool) -> dict[str, Any] | None:
        """The state named in the options, or with ``auto_resume`` the newest complete one of this
        run.

        Raises:
            InputError: the state named in the options cannot be read.
        """
        for path in training_state.states_in(self.folder.states) if auto_resume else ():
            try:
                return training_state.load_state(path)
            except InputError as error:
                logger.warning("%s; trying an earlier one", error)
        named = self.options.path.resume_state
        return None if named is None else training_state.load_state(named)
