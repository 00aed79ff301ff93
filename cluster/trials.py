"""Ray Tune: one process per slot for the whole search, results that survive the driver."""

import json
import os
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from dataclasses import replace
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

from cluster import point_list, searchers, stages
from cluster.gang_trials import GangTrial, Shared
from cluster.interface import Metrics, SearchPlan, Trial, TrialResult
from cluster.results import EPOCH, ERROR, FINISHED, POINT
from cluster.slots import LINEAGE, PopulationSlot, Slot, StagedSlot
from cluster.snapshots import is_left_whole
from cluster.stages import Stages

Listener = Callable[[str, Metrics], None]
"""Is told a trial and its metrics after each epoch."""

EXPERIMENT = "search"
_HISTORIES = "histories"


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
    if plan.worker.workers > 1:  # the state of a gang is its own
        plan = replace(plan, course=partial(stages.apart, plan.course))
    known = () if plan.search.searcher == "tpe" else plan.points()
    kept = Stages(directory, stages.forks(plan.course, known))
    kind, settings = _slot(plan, kept)
    worker = plan.worker
    resources: dict[str, float] = {"cpu": worker.cpus, "gpu": worker.gpus}
    factory = trial
    if worker.workers > 1:
        factory = partial(GangTrial, factory=trial, gang=worker.gang, directory=directory, log=log)
        # Its gang asks for itself, and Tune refuses what asks for nothing: a byte.
        shared, resources = Shared(ray.put(shared)), {"memory": 1}
    trainable = tune.with_resources(
        tune.with_parameters(
            kind,
            factory=factory,
            shared=shared,
            metric=plan.metric,
            sign=-1.0 if plan.lower_is_better else 1.0,
            log=log,
            **settings,
        ),
        resources,
    )
    # Ray keeps trainables by name, one list for all processes of a driver: with one name for all,
    # of searches that begin at once each would train what began last.
    trainable.__name__ = plan.name
    experiment = f"{directory}/{EXPERIMENT}"
    # Tune would add CSV, JSON and TensorBoard writers to every trial.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # Of a population a snapshot after each checkpoint is what we want: a restart goes on from it.
    os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
    if is_left_whole(experiment):
        tuner = Tuner.restore(experiment, trainable=trainable)
    else:
        tuner = Tuner(
            trainable,
            param_space=searchers.param_space(plan),
            tune_config=TuneConfig(
                num_samples=1 if kind is PopulationSlot else plan.trials,
                search_alg=searchers.searcher(plan),
                scheduler=searchers.scheduler(plan),
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name=EXPERIMENT,
                stop=searchers.stopper(plan),
                storage_path=directory,
                failure_config=FailureConfig(max_failures=max_failures),
                checkpoint_config=_checkpoints(kind),
                callbacks=[_ForwardResults()],
                verbose=0,
            ),
        )
    histories = _Histories(f"{directory}/{_HISTORIES}")
    context = copy_context()
    context.run(_listener.set, histories.recording(on_result))
    context.run(searchers.slots.set, plan.slots)
    context.run(point_list.kept.set, kept)
    return [*plan.earlier, *_results(context.run(tuner.fit), histories)]


def _status(error: str | None, *, finished: bool, stopped: bool) -> Any:
    if error:
        return "failed"
    if finished:
        return "finished"
    return "stopped" if stopped else "cut"


def _slot(plan: SearchPlan, kept: Stages) -> tuple[type[Slot], dict[str, Any]]:
    """What runs trials, and what it needs for it."""
    if plan.search.scheduler == "pbt":
        return PopulationSlot, {}
    return StagedSlot, {"stages": kept, "course": plan.course}


def _checkpoints(kind: type[Slot]) -> CheckpointConfig:
    """Of Tune: of a population alone, whose trials may yet go on from an older one of another."""
    if kind is PopulationSlot:
        return CheckpointConfig(checkpoint_frequency=1, num_to_keep=3)
    return CheckpointConfig(checkpoint_at_end=False)


def _results(grid: ResultGrid, histories: "_Histories") -> list[TrialResult]:
    results = []
    # A result without metrics, as of a trial that was never begun, does not tell of its trial.
    trials = grid._experiment_analysis.trials  # noqa: SLF001
    for trial, result in zip(trials, grid, strict=True):
        last = result.metrics or {}
        error = last.get(ERROR) or (str(result.error) if result.error else None)
        finished = last.get(FINISHED, False)
        drawn = dict(trial.evaluated_params.get(POINT) or trial.config[POINT])
        (_, first), *changes = last.get(LINEAGE) or [[0, drawn]]
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
