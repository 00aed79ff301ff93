"""Ray Tune: one process per slot for the whole search, results that survive the driver."""

import json
import math
import os
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import ray
from ray import tune
from ray.tune import (
    Callback,
    CheckpointConfig,
    FailureConfig,
    ResultGrid,
    RunConfig,
    TuneConfig,
    Tuner,
)

from cluster import searchers
from cluster.gang_trials import GangTrial, Shared
from cluster.interface import (
    Metrics,
    SearchPlan,
    TaskFailedError,
    Trial,
    TrialResult,
    WorkerLostError,
)
from cluster.logs import redirected
from cluster.searchers import EPOCH, ERROR, FINISHED, POINT, SCORE, WORST_SCORE
from cluster.snapshots import is_left_whole

Listener = Callable[[str, Metrics], None]
"""Is told a trial and its metrics after each epoch."""

EXPERIMENT = "search"
_HISTORIES = "histories"

# Keys of ours in Tune's result dictionaries, beside those of `searchers`.
_LINEAGE = "lineage"
"""Points by the epoch after which they began to hold."""
_LINEAGE_FILE = "lineage.json"


class TrialSlot(tune.Trainable):  # type: ignore[misc]
    """Tries one configuration after another in one process."""

    def setup(
        self,
        config: dict[str, Any],
        factory: Callable[[Any], Trial],
        shared: Any,
        metric: str,
        sign: float,
        log: Path,
    ) -> None:
        """Make the process ready: imports, weights and data, once for all configurations."""
        self._metric, self._sign = metric, sign
        self._log = log.with_suffix(f".slot{os.getpid()}.log")
        self._failure: str | None = None
        self._begins_with: dict[str, Any] | None = None
        self._lineage: list[Any] = []
        with redirected(self._log):
            self._trial = factory(shared)
        self._start(config[POINT])

    def step(self) -> dict[str, Any]:
        """Train one epoch."""
        metrics: dict[str, float] = {}
        self._begin()
        if self._failure is None:
            self._guarded(lambda: metrics.update(self._trial.step()))
        score = self._sign * metrics.get(self._metric, math.nan)
        if self._failure is None and not all(math.isfinite(value) for value in metrics.values()):
            self._failure = f"a metric is not finite: {metrics}"
        failed = self._failure is not None
        finished = not failed and self._trial.is_finished
        return {
            "metrics": metrics,
            SCORE: WORST_SCORE if failed else score,
            ERROR: self._failure,
            FINISHED: finished,
            _LINEAGE: self._lineage,
            "done": failed or finished,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save after an epoch."""
        self._guarded(lambda: self._trial.save(Path(checkpoint_dir)))
        lineage = json.dumps([self._iteration, self._lineage])
        (Path(checkpoint_dir) / _LINEAGE_FILE).write_text(lineage, encoding="utf-8")

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on after a lost worker or driver; with PBT from another trial's epoch."""
        self._begin()
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
            self._iteration = 0
            self._start(self.config[POINT])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next configuration in the same process."""
        self._start(new_config[POINT])
        return True

    def _start(self, hyperparameters: Mapping[str, Any]) -> None:
        """Remember what begins with the next step: here Tune would not try again what is lost."""
        self._failure, self._begins_with = None, dict(hyperparameters)
        self._lineage = [[0, dict(hyperparameters)]]

    def _begin(self) -> None:
        if self._begins_with is not None:
            point, self._begins_with = self._begins_with, None
            self._guarded(lambda: self._trial.start(point))

    def cleanup(self) -> None:
        """End what the slot holds beside its own process."""
        if isinstance(self._trial, GangTrial):
            self._trial.close()

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run a piece of the trial; what it raises ends this trial and no other.

        Raises:
            WorkerLostError: what the cluster broke is tried again.
        """
        with redirected(self._log):
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
                self._failure = f"{type(error).__name__}: {error}"


# Not a field of the callback: Tune keeps callbacks with a search's state, and a search that goes
# on would report to the run that was interrupted.
_listener: ContextVar[Listener] = ContextVar("listener")


class _ForwardResults(Callback):  # type: ignore[misc]
    """Hands on each epoch's metrics as they arrive in the driver."""

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Called by Tune after each epoch of each trial."""
        _listener.get()(trial.trial_id, {"epoch": result[EPOCH], **result["metrics"]})


def run(
    trial: Callable[[Any], Trial],
    shared: Any,
    plan: SearchPlan,
    *,
    max_failures: int,
    directory: str,
    log: Path,
    on_result: Listener,
) -> list[TrialResult]:
    """Search for the best metric; see `cluster.interface.Cluster.run_trials`."""
    if not plan.trials:
        return list(plan.earlier)
    worker = plan.worker
    resources: dict[str, float] = {"cpu": worker.cpus, "gpu": worker.gpus}
    factory = trial
    if worker.workers > 1:
        factory = partial(
            GangTrial,
            factory=trial,
            gang=worker.gang,
            directory=directory,
            kept=_kept(plan),
            log=log,
        )
        # Its gang asks for itself, and Tune refuses what asks for nothing: a byte.
        shared, resources = Shared(ray.put(shared)), {"memory": 1}
    trainable = tune.with_resources(
        tune.with_parameters(
            TrialSlot,
            factory=factory,
            shared=shared,
            metric=plan.metric,
            sign=-1.0 if plan.lower_is_better else 1.0,
            log=log,
        ),
        resources,
    )
    # Ray keeps trainables by name, one list for all processes of a driver: with one name for all,
    # of searches that begin at once each would train what began last.
    trainable.__name__ = plan.name
    experiment = f"{directory}/{EXPERIMENT}"
    # Tune would add CSV, JSON and TensorBoard writers to every trial.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # A snapshot after each checkpoint is what we want: it is what a restart goes on from.
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    if is_left_whole(experiment):
        tuner = Tuner.restore(experiment, trainable=trainable)
    else:
        tuner = Tuner(
            trainable,
            param_space=searchers.param_space(plan),
            tune_config=TuneConfig(
                num_samples=plan.trials if plan.search.searcher == "tpe" else 1,
                search_alg=searchers.searcher(plan),
                scheduler=searchers.scheduler(plan),
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name=EXPERIMENT,
                stop=searchers.stopper(plan),
                storage_path=directory,
                failure_config=FailureConfig(max_failures=max_failures),
                checkpoint_config=CheckpointConfig(checkpoint_frequency=1, num_to_keep=_kept(plan)),
                callbacks=[_ForwardResults()],
                verbose=0,
            ),
        )
    histories = _Histories(f"{directory}/{_HISTORIES}")
    token = _listener.set(histories.recording(on_result))
    try:
        return [*plan.earlier, *_results(tuner.fit(), histories)]
    finally:
        _listener.reset(token)


def _status(error: str | None, *, finished: bool, stopped: bool) -> Any:
    if error:
        return "failed"
    if finished:
        return "finished"
    return "stopped" if stopped else "cut"


def _kept(plan: SearchPlan) -> int:
    """Checkpoints of a trial: with PBT others may yet go on from an older one."""
    return 3 if plan.search.scheduler == "pbt" else 1


def _results(grid: ResultGrid, histories: "_Histories") -> list[TrialResult]:
    results = []
    # A result without metrics, as of a trial that was never begun, does not tell of its trial.
    trials = grid._experiment_analysis.trials  # noqa: SLF001
    for trial, result in zip(trials, grid, strict=True):
        last = result.metrics or {}
        error = last.get(ERROR) or (str(result.error) if result.error else None)
        finished = last.get(FINISHED, False)
        drawn = dict(trial.evaluated_params.get(POINT) or trial.config[POINT])
        (_, first), *changes = last.get(_LINEAGE) or [[0, trial.config[POINT]]]
        results.append(
            TrialResult(
                trial_id=trial.trial_id,
                hyperparameters=dict(first),
                status=_status(error, finished=finished, stopped=last.get("done", False)),
                history=histories.of(trial.trial_id),
                error=error,
                changes=[(epoch, dict(point)) for epoch, point in changes],
                drawn=None if drawn == first else drawn,
            )
        )
    return results


class _Histories:
    """Each trial's metrics, epoch by epoch: Tune copies its own files only now and then."""

    def __init__(self, directory: str) -> None:
        self._files, self._directory = fsspec.url_to_fs(directory, use_listings_cache=False)
        self._files.makedirs(self._directory, exist_ok=True)

    def recording(self, on_result: Listener) -> Listener:
        """A listener that writes each epoch down before it is told."""

        def listen(trial_id: str, metrics: Metrics) -> None:
            with self._files.open(self._path(trial_id), "ab") as file:
                file.write(json.dumps(dict(metrics)).encode() + b"\n")
            on_result(trial_id, metrics)

        return listen

    def of(self, trial_id: str) -> list[dict[str, float]]:
        """Metrics by epoch; an epoch that was run again after a lost worker counts once."""
        if not self._files.exists(self._path(trial_id)):
            return []
        by_epoch: dict[int, dict[str, float]] = {}
        for line in self._files.cat_file(self._path(trial_id)).splitlines():
            metrics = json.loads(line)
            by_epoch[metrics.pop("epoch")] = metrics
        return [by_epoch[epoch] for epoch in sorted(by_epoch) if by_epoch[epoch]]

    def _path(self, trial_id: str) -> str:
        return f"{self._directory}/{trial_id}.jsonl"
