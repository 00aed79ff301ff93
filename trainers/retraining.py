"""Single trainings of a task: to the end, written down, tested."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from trainers import task_data
from trainers.examples import Examples
from trainers.finetune import FineTuning
from trainers.predict import Predictor, tokenizer_of
from trainers.task_config import Hyperparameters, TaskConfig
from trainers.task_inputs import TrialExecution, task_inputs
from trainers.task_types.base import Prediction


@dataclass(frozen=True)
class Training:
    """One training to its end, in a form that travels to another process."""

    task: TaskConfig
    base: Path
    data: Path
    hyperparameters: Hyperparameters
    from_scratch: bool
    output: Path
    execution: TrialExecution
    label_fraction: float = 1.0
    """Share of the training rows that is used, in as many optimizer steps as all would take."""
    changes: tuple[tuple[int, Hyperparameters], ...] = ()
    """Epochs after which the training goes on with other hyperparameters."""


def train_and_export(training: Training, halvings: int = 0) -> dict[str, float]:
    """Train every epoch and write the model's folder; its metrics on the validation rows.

    Collective where several processes train, whose micro-batches are to be halved so often.
    """
    inputs = task_inputs(
        training.task,
        training.base,
        training.data,
        execution=training.execution,
        label_fraction=training.label_fraction,
    )
    point, changes = training.hyperparameters, dict(training.changes)
    if training.label_fraction < 1.0:
        steps = point.epochs * math.ceil(inputs.whole / point.batch_size)
        epochs = math.ceil(steps / math.ceil(len(inputs.train) / point.batch_size))
        changes = {
            round(epoch * epochs / point.epochs): other.model_copy(update={"epochs": epochs})
            for epoch, other in changes.items()
        }
        point = point.model_copy(update={"epochs": epochs})
    tuning = FineTuning(inputs, from_scratch=training.from_scratch)
    tuning.start(point.model_dump(), halvings=halvings)
    while not tuning.is_finished:
        if tuning.epoch in changes:
            tuning.change(changes[tuning.epoch].model_dump())
        tuning.train_epoch()
    scores = tuning.validate()
    tuning.export(training.output, tokenizer_of(training.base, training.task))
    return scores


@dataclass(frozen=True)
class SavedModel:
    """A saved model and the test rows, in a form that travels to another process."""

    folder: Path
    task: TaskConfig
    data: Path
    execution: TrialExecution


def test(saved: SavedModel) -> tuple[dict[str, float], list[Prediction]]:
    """Metrics of a saved model on the test rows, and what it said of each."""
    torch.set_num_threads(saved.execution.threads)
    rows = task_data.load(saved.data, task_data.TEST)
    return evaluate(saved.folder, saved.task, rows, use_gpu=saved.execution.use_gpu)


def evaluate(
    folder: Path, task: TaskConfig, examples: Examples, *, use_gpu: bool = False
) -> tuple[dict[str, float], list[Prediction]]:
    """Metrics of a saved model on rows, and what it said of each."""
    predictor = Predictor(folder, task, use_gpu=use_gpu)
    found = predictor.answer(examples)
    return predictor.kind.required_score(examples.labels, found), found
