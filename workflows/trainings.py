"""Single trainings of a step, each in a folder of its own: planned, run, tested."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.config import TrialConfig, WorkerConfig
from trainers import retraining
from trainers.latency import TimedModel, percentiles
from trainers.retraining import SavedModel, Training
from trainers.task_config import Hyperparameters, TaskConfig
from trainers.task_inputs import TrialExecution
from trainers.task_types.base import Prediction
from workflows.execution import StageContext
from workflows.pipeline import FinalSpec

_RAY = "ray"


@dataclass(frozen=True)
class Trained:
    """A training and what it scores on the validation rows."""

    training: Training
    validation: float
    """The task's metric."""
    merit: float
    """The same, turned so that higher is better."""


def execution_of(trial: TrialConfig) -> TrialExecution:
    """How a training runs, as the trainers know it."""
    return TrialExecution(
        threads=trial.cpus,
        use_gpu=bool(trial.gpus),
        zero_stage=trial.zero_stage,
        hang_after_s=trial.hang_after_s,
    )


def planned(
    context: StageContext, point: Hyperparameters, seed: int, *, from_scratch: bool = False
) -> Training:
    """A training of a point, from the step's base or from random weights."""
    return Training(
        task=context.spec(FinalSpec).task,
        base=context.input("base"),
        data=context.input("data"),
        hyperparameters=point.model_copy(update={"seed": seed}),
        from_scratch=from_scratch,
        output=_new_folder(context),
        execution=execution_of(context.run.execution.trials),
    )


def again(context: StageContext, training: Training, seed: int) -> Training:
    """The same training with another seed, in a folder of its own."""

    def seeded(point: Hyperparameters) -> Hyperparameters:
        return point.model_copy(update={"seed": seed})

    return replace(
        training,
        hyperparameters=seeded(training.hyperparameters),
        changes=tuple((epoch, seeded(point)) for epoch, point in training.changes),
        output=_new_folder(context),
    )


def train_all(context: StageContext, plans: Sequence[Training]) -> list[Trained]:
    """Train to the end; in the order of the plans."""
    cluster, trial = context.run.cluster, context.run.execution.trials
    function = context.exchange().mapped(retraining.train_and_export)
    if trial.workers > 1:
        directory = f"{context.attempt.shared_work}/{_RAY}"
        scores = cluster.map_on_gangs(
            function, plans, trial.gang, directory=directory, log=context.log
        )
    else:
        scores = cluster.map(function, plans, trial, context.log)
    task = context.spec(FinalSpec).task
    return [
        Trained(plan, found[task.metric], task.merit(found))
        for plan, found in zip(plans, scores, strict=True)
    ]


def all_tested(
    context: StageContext, models: Sequence[SavedModel], stored: Mapping[Path, str] | None = None
) -> list[tuple[dict[str, float], list[Prediction]]]:
    """What saved models score on the test rows, and what they say of each.

    Args:
        context: of the step.
        models: each with the rows it is asked about.
        stored: names in the storage of folders that are neither the step's nor its inputs.
    """
    worker, execution = whole_model_worker(context.run.execution.trials)
    models = [replace(saved, execution=execution) for saved in models]
    function = context.exchange(stored).mapped(retraining.test)
    found: list[Any] = context.run.cluster.map(function, models, worker, context.log)
    return found


def whole_model_worker(trial: TrialConfig) -> tuple[WorkerConfig, TrialExecution]:
    """What a process gets that asks a whole model, and how it does.

    That of a trial; on a CPU where trials have several workers: the model need not fit the GPU of
    one of them.
    """
    execution = execution_of(trial)
    if trial.workers > 1:
        return WorkerConfig(cpus=trial.cpus), replace(execution, use_gpu=False)
    return trial, execution


def latency(
    context: StageContext, model: Path, task: TaskConfig, batch_size: int
) -> tuple[float, float]:
    """Median and 95th percentile of a model's milliseconds, on what one worker is given."""
    trial = context.run.execution.trials
    worker, execution = WorkerConfig(cpus=trial.cpus, gpus=trial.gpus), execution_of(trial)
    timed = TimedModel(model, task, context.input("data"), execution, batch_size)
    function = context.exchange().mapped(percentiles)
    (found,) = context.run.cluster.map(function, [timed], worker, context.log)
    return found  # type: ignore[no-any-return]


def _new_folder(context: StageContext) -> Path:
    return context.attempt.work / "models" / uuid.uuid4().hex
