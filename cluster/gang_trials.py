"""Trials that several processes train together: each a gang, which one process drives."""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from cluster import folders
from cluster.config import GangConfig
from cluster.interface import TaskFailedError, Trial
from cluster.logs import of_this_process
from cluster.standing_gang import StandingGang, is_out_of_memory

_POINTER = "gang.json"
_FOLDER = "gangs"
_KEPT = 2
"""Newest states of a configuration: who saves is remembered to have saved the one before."""


@dataclass(frozen=True)
class Shared:
    """What all ranks of all trials are given, placed once per node."""

    reference: Any
    """Of Ray; within a dataclass it stays one until a rank asks for its value."""


class GangTrial:
    """Implements `cluster.interface.Trial` by calling one on every rank of a gang.

    Each configuration has a gang of its own: its memory is free when it ends, whatever the library
    that spreads the training holds on to. A gang that runs out of memory is started again, goes on
    from the last epoch that was saved, and its trial is told.
    """

    def __init__(
        self,
        shared: Shared,
        *,
        factory: Callable[[Any], Trial],
        gang: GangConfig,
        directory: str,
        log: Path,
    ) -> None:
        """Start nothing yet.

        Args:
            shared: handed to `factory` on each rank.
            factory: makes the trial of a rank.
            gang: of a fixed size.
            directory: a folder or URL that every node sees.
            log: beside it the ranks write theirs.
        """
        self._make = partial(_TrialOfRank, factory, shared)
        self._gang_config, self._directory = gang, directory
        self._log = of_this_process(log)
        self._gang: StandingGang | None = None
        self._saved: list[str] = []
        self.is_finished = False

    def start(self, hyperparameters: Mapping[str, Any], *, halvings: int = 0) -> None:
        """Begin a configuration with a new gang."""
        self.forget()  # the configuration before has ended
        self._point, self._halvings = dict(hyperparameters), halvings
        self._begin()

    def step(self) -> dict[str, float]:
        """Train one epoch on all ranks; the first one's metrics."""
        metrics = dict(self._call("step"))
        if self.is_finished:
            self.close()  # what it holds is free for others
        return metrics

    def save(self, directory: Path) -> None:
        """Have the ranks write to a folder that all see; `directory` says which."""
        name = uuid.uuid4().hex
        self._call("save", self._folder(name))
        self._saved.append(name)
        pointer = json.dumps({"folder": name, "halvings": self._halvings})
        (directory / _POINTER).write_text(pointer, encoding="utf-8")
        self.forget(_KEPT)

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote."""
        pointer = json.loads((directory / _POINTER).read_text(encoding="utf-8"))
        folder = self._folder(pointer["folder"])
        if not folders.exists(folder):
            raise FileNotFoundError(f"a trial's checkpoint is gone: {folder}")
        if pointer["halvings"] > self._halvings:
            self._halvings = pointer["halvings"]
            self._begin()
        self._call("load", folder)
        self._saved.append(pointer["folder"])

    def forget(self, kept: int = 0) -> None:
        """Remove all but the newest states of this configuration."""
        while len(self._saved) > kept:
            folders.remove(self._folder(self._saved.pop(0)))

    def close(self) -> None:
        """End the gang."""
        gang, self._gang = self._gang, None
        if gang is not None:
            gang.close()

    def _begin(self) -> None:
        self.close()
        self._gang = StandingGang(
            self._make, self._gang_config, directory=self._directory, log=self._log
        )
        self._call("start", self._point, self._halvings)

    def _call(self, method: str, *args: Any) -> Any:
        """On all ranks, with less memory where it did not suffice; what the first returned."""
        while True:
            assert self._gang is not None, "a trial is started before it is asked for anything"
            try:
                value, self.is_finished = self._gang.call(method, *args)
            except TaskFailedError as error:
                if method != "step" or not is_out_of_memory(error):
                    raise
            else:
                return value
            self._halvings += 1
            self._begin()
            if self._saved:
                self._call("load", self._folder(self._saved[-1]))

    def _folder(self, name: str) -> str:
        return f"{self._directory}/{_FOLDER}/{name}"


class _TrialOfRank:
    """A trial as the gang calls it: each answer says whether the trial is finished, too."""

    def __init__(self, factory: Callable[[Any], Trial], shared: Shared) -> None:
        self._trial = factory(ray.get(shared.reference))

    def start(self, point: Mapping[str, Any], halvings: int) -> tuple[None, bool]:
        self._trial.start(point, halvings=halvings)
        return None, self._trial.is_finished

    def step(self) -> tuple[dict[str, float], bool]:
        return self._trial.step(), self._trial.is_finished

    def save(self, folder: str) -> tuple[None, bool]:
        folders.write(folder, self._trial.save)
        return None, self._trial.is_finished

    def load(self, folder: str) -> tuple[None, bool]:
        folders.read(folder, self._trial.load)
        return None, self._trial.is_finished
