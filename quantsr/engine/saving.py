"""Writing network files and training states of a run, and finding the state to resume from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from quantsr.config import Options
from quantsr.config.compare import flat
from quantsr.engine import training_state
from quantsr.engine.network_file import network_file
from quantsr.engine.run_folder import RunFolder
from quantsr.errors import InputError, WorkError
from quantsr.models.quantsr_model import QuantSRModel
from quantsr.trained_files import checkpoint

logger = logging.getLogger(__name__)

_OF_TRAINING = (
    "scale",
    "model_type",
    "manual_seed",
    "network_g",
    "network_teacher",
    "train",
    "datasets.train",
)
_WITHOUT_EFFECT = ("train.total_iter", "train.compile")  # on a network that is trained already


def _changed(before: Options, now: Options) -> list[str]:
    """The options that decide what is trained and that differ, by their dotted names."""
    old, new = flat(before.dump()), flat(now.dump())
    return sorted(
        key
        for key in old.keys() | new.keys()
        if any(key == part or key.startswith(f"{part}.") for part in _OF_TRAINING)
        and key not in _WITHOUT_EFFECT
        and old.get(key) != new.get(key)
    )


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

    def refuse_finished(self, state: Mapping[str, Any]) -> None:
        """Refuses to resume a finished training by other options: nothing would be trained by them,
        and ``options.yml`` would name options that the network was not trained with.

        Raises:
            InputError: names the options.
        """
        train, iteration = self.options.train, int(state["iteration"])
        finished = train is not None and iteration >= train.total_iter
        if not finished or state["config_hash"] == self.options.config_hash():
            return
        changed = _changed(self._options_of(iteration), self.options)
        if changed:
            raise InputError(
                f"{self.folder.root}: was trained to iteration {iteration} with other options ({', '.join(changed)}); "
                "train under another name, without --auto-resume, or to a higher train.total_iter"
            )

    def _options_of(self, iteration: int) -> Options:
        """The options in the network file of an iteration, else the present ones."""
        path = self.folder.models / f"net_g_{iteration}.pth"
        try:
            ours = checkpoint.metadata(checkpoint.load(path), path) or {}
            return Options.model_validate(ours["options"])
        except (InputError, KeyError, ValidationError):
            return self.options

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
