"""Processes of a search: each tries one configuration after another, as a trainable of Ray Tune."""

import json
import math
import time
import traceback
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from cluster import stages
from cluster.gang_trials import GangTrial
from cluster.interface import Metrics, TaskFailedError, Trial, WorkerLostError
from cluster.logs import mark_trial, of_this_process, redirected
from cluster.results import ERROR, FINISHED, POINT, SCORE, WORST_SCORE
from cluster.stages import Course, Stages

LINEAGE = "lineage"
"""Key in Tune's results: points by the epoch after which they began to hold."""
_LINEAGE_FILE = "lineage.json"
_COST_OF_STATES = 0.1
"""Share of a trial's time that keeping its states may take."""


class Slot(tune.Trainable):  # type: ignore[misc]
    """Tries one configuration after another in one process; what one raises ends it alone."""

    def setup(
        self,
        config: dict[str, Any],
        factory: Callable[[Any], Trial],
        shared: Any,
        metric: str,
        sign: float,
        log: Path,
        **settings: Any,
    ) -> None:
        """Make the process ready: imports, weights and data, once for all configurations."""
        self._metric, self._sign = metric, sign
        self._log = of_this_process(log)
        self._failure: str | None = None
        self._is_named = False
        self._settle(**settings)
        with redirected(self._log):
            self._trial = factory(shared)
        self._start(config[POINT])

    def _settle(self, **settings: Any) -> None:
        """Take what a kind of slot needs beside a trial."""

    @abstractmethod
    def _start(self, point: Mapping[str, Any]) -> None:
        """Forget the configuration before; begin with the next step: what is lost there is tried
        again by Tune, what is lost here is not.
        """

    @abstractmethod
    def _epoch(self) -> tuple[Metrics, bool]:
        """One epoch's metrics, and whether it was the last."""

    def _told(self) -> dict[str, Any]:
        """What else is told of an epoch."""
        return {}

    def step(self) -> dict[str, Any]:
        """Train one epoch."""
        metrics: dict[str, float] = {}
        finished = False

        def train() -> None:
            nonlocal finished
            found, finished = self._epoch()
            metrics.update(found)

        self._guarded(train)
        score = self._sign * metrics.get(self._metric, math.nan)
        failed = self._failure is not None
        return {
            "metrics": metrics,
            SCORE: WORST_SCORE if failed else score,
            ERROR: self._failure,
            FINISHED: finished and not failed,
            "done": failed or finished,
            **self._told(),
        }

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next configuration in the same process."""
        self._failure = None
        self._is_named = False
        self._start(new_config[POINT])
        return True

    def cleanup(self) -> None:
        """End what the slot holds beside its own process."""
        if isinstance(self._trial, GangTrial):
            self._trial.close()

    def _trained(self) -> dict[str, float]:
        """Metrics of one more epoch; one that is no number ends the trial."""
        metrics = self._trial.step()
        if not all(math.isfinite(value) for value in metrics.values()):
            self._failure = f"a metric is not finite: {metrics}"
        return metrics

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run a piece of the trial; what it raises ends this trial and no other.

        Raises:
            WorkerLostError: what the cluster broke, or the storage refused, is tried again.
        """
        with redirected(self._log):
            if not self._is_named:
                self._is_named = True
                mark_trial(self.trial_id)
            try:
                action()
            except WorkerLostError:
                traceback.print_exc()
                raise
            except TaskFailedError as error:
                traceback.print_exc()
                self._failure = str(error)
            except Exception as error:  # a border: the trial's code is not ours to trust
                traceback.print_exc()
                told = f"{type(error).__name__}: {error}"
                if _may_pass(error):
                    raise WorkerLostError(told) from error
                self._failure = told


def _may_pass(error: Exception) -> bool:
    """Whether the machine or the storage refused something for the moment."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


class StagedSlot(Slot):
    """Trains no stage that is known: neither those of trials before nor, begun again, its own."""

    def _settle(self, *, stages: Stages, course: Course) -> None:  # type: ignore[override]
        self._stages, self._course = stages, course
        self._keys: Sequence[str] = ()
        self._state_at = 0
        self._needless: str | None = None
        """Key of the state of the trial before, which nobody goes on from."""
        self._cost_s: float | None = None
        """Of the state that was saved last."""

    def _start(self, point: Mapping[str, Any]) -> None:
        if self._state_at:
            self._needless = self._keys[self._state_at - 1]
        self._point = dict(point)
        self._keys = stages.keys_of(self._course, point)
        self._known: list[Metrics] | None = None
        self._told_epochs = 0
        self._has_begun = False
        self._state_at = 0

    def _epoch(self) -> tuple[Metrics, bool]:
        if self._known is None:
            self._known = self._look()
        self._told_epochs += 1
        if self._told_epochs <= len(self._known):
            metrics = self._known[self._told_epochs - 1]
        else:
            metrics = self._trained_further()
        return metrics, self._told_epochs == len(self._keys)

    def _look(self) -> list[Metrics]:
        """Metrics of the stages that need not be trained."""
        self._drop(self._needless)
        self._needless = None
        known = self._stages.histories(self._keys)
        if self._is_gang and len(known) < len(self._keys):
            # Where its memory runs out, a gang counts on its last epoch's state.
            known = known[: self._stages.epoch_of_state(self._keys[: len(known)])]
        return known

    @property
    def _is_gang(self) -> bool:
        return isinstance(self._trial, GangTrial)

    def _drop(self, key: str | None) -> None:
        """Remove a state; one that stays for once takes room, and nothing else."""
        if key is not None:
            try:
                self._stages.drop(key)
            except OSError:
                traceback.print_exc()

    def _trained_further(self) -> Metrics:
        before = self._told_epochs - 1
        if not self._has_begun:
            self._begin(before)
            self._has_begun = True
        metrics = self._trained()
        if self._failure is None:
            self._keep(self._told_epochs, metrics)
        return metrics

    def _begin(self, epochs: int) -> None:
        """Bring the trial to where it is after so many epochs, from the last state on the way."""
        started = time.monotonic()
        self._trial.start(self._point)
        first = self._state_at = self._load(self._keys[:epochs])
        self._kept_at = time.monotonic()
        if self._cost_s is None:  # until a state was saved, this stands for it
            self._cost_s = self._kept_at - started
        for epoch in range(first + 1, epochs + 1):  # whose metrics are known
            metrics = self._trial.step()
            if self._is_gang:
                self._keep(epoch, metrics)

    def _load(self, keys: Sequence[str]) -> int:
        try:
            return self._stages.load(keys, self._trial.load)
        except WorkerLostError:
            raise
        except Exception as error:
            if _may_pass(error):
                raise
            traceback.print_exc()  # the state is gone, or torn by whoever was killed
            self._stages.release(keys[self._stages.epoch_of_state(keys) - 1])
            self._trial.start(self._point)
            return 0

    def _keep(self, epoch: int, metrics: Metrics) -> None:
        """Write the stage down; its state where somebody else needs it, or much would be lost."""
        now, cost_s = time.monotonic(), self._cost_s or 0.0
        key, is_last = self._keys[epoch - 1], epoch == len(self._keys)
        # A gang that memory does not suffice goes on from the last epoch, by its state.
        is_due = self._is_gang or (now - self._kept_at) * _COST_OF_STATES >= cost_s
        if key not in self._stages.forks and (is_last or not is_due):
            self._stages.write(key, metrics)
            return
        self._stages.write(key, metrics, self._trial.save)
        if self._state_at:
            self._drop(self._keys[self._state_at - 1])
        self._state_at, self._kept_at = epoch, time.monotonic()
        self._cost_s = self._kept_at - now

    def cleanup(self) -> None:
        """Leave nothing of trials that came to their end."""
        super().cleanup()
        with redirected(self._log):
            self._drop(self._needless)
            if self._state_at and self._told_epochs == len(self._keys):
                self._drop(self._keys[self._state_at - 1])
                if isinstance(self._trial, GangTrial):
                    self._trial.forget()


class PopulationSlot(Slot):
    """A trial of a population: goes on from another's state where Tune says so."""

    def _start(self, point: Mapping[str, Any]) -> None:
        self._begins_with: dict[str, Any] | None = dict(point)
        self._lineage: list[Any] = [[0, dict(point)]]

    def _epoch(self) -> tuple[Metrics, bool]:
        self._begin()
        metrics = {} if self._failure else self._trained()
        return metrics, not self._failure and self._trial.is_finished

    def _told(self) -> dict[str, Any]:
        return {LINEAGE: self._lineage}

    def _begin(self) -> None:
        if self._begins_with is not None:
            point, self._begins_with = self._begins_with, None
            self._trial.start(point)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save after an epoch."""
        self._guarded(lambda: self._trial.save(Path(checkpoint_dir)))
        lineage = json.dumps([self._iteration, self._lineage])
        (Path(checkpoint_dir) / _LINEAGE_FILE).write_text(lineage, encoding="utf-8")

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on after a lost worker or driver, or from another trial's epoch."""
        self._guarded(self._begin)
        with redirected(self._log):
            self._trial.load(Path(checkpoint))
        saved = (Path(checkpoint) / _LINEAGE_FILE).read_text(encoding="utf-8")
        epoch, lineage = json.loads(saved)
        (_, own), *_ = self._lineage
        is_changed = lineage[-1][1] != own
        self._lineage = [*lineage, [epoch, own]] if is_changed else lineage

    def restore(self, checkpoint_path: Any) -> None:
        """Go on from a checkpoint, or begin again if it is gone.

        A driver that was killed may have removed it for a newer one of which its snapshot does not
        know yet.
        """
        try:
            super().restore(checkpoint_path)
        except WorkerLostError:  # which is tried again
            raise
        except Exception:
            with redirected(self._log):
                traceback.print_exc()
            self._iteration, self._failure = 0, None
            self._start(self.config[POINT])
