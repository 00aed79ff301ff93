"""Supervised fine-tuning of one task: the slot a search runs, and single trainings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from trainers import loop, metrics, model, optim, schedules, tasks, tokenizer
from trainers.engine import PlainEngine
from trainers.predict import Prediction, Predictor, probabilities
from trainers.pretrain_config import ScheduleConfig
from trainers.segments import IGNORED_LABEL, Batch
from trainers.task_config import Hyperparameters, TaskConfig
from trainers.tasks import Encoded, Examples, collate

_BATCHES_SORTED_TOGETHER = 20
_BETAS = (0.9, 0.98)
_GRADIENT_CLIPPING = 1.0
_STATE = "trial.pt"


@dataclass(frozen=True)
class TaskInputs:
    """All that trainings of one task share: plain arrays, placed once per node."""

    task: TaskConfig
    labels: list[str]
    network: dict[str, Any]
    """The base's configuration with the task's labels."""
    weights: Mapping[str, NDArray[Any]]
    """The base's weights by name."""
    train: Encoded
    validation: Encoded
    pad_token: int
    mask_token: int | None
    threads: int
    use_gpu: bool


def task_inputs(
    task: TaskConfig, base: Path, data: Path, *, threads: int, use_gpu: bool
) -> TaskInputs:
    """Read a base model's folder and a task's prepared rows; the test rows stay closed."""
    loaded = tokenizer.load(base)
    network, weights = model.weights_of(base)
    labels = tasks.load_labels(data)
    left_to_right = model.reads_left_to_right(network)

    def encoded(split: str) -> Encoded:
        examples = tasks.load(data, split)
        return tasks.encode(examples, labels, task, loaded, left_to_right=left_to_right)

    return TaskInputs(
        task=task,
        labels=labels,
        network=model.with_labels(network, labels) | {"pad_token_id": loaded.pad_token_id},
        weights=weights,
        train=encoded(tasks.TRAIN),
        validation=encoded(tasks.VALIDATION),
        pad_token=loaded.pad_token_id,
        mask_token=loaded.mask_token_id,
        threads=threads,
        use_gpu=use_gpu,
    )


class FineTuning:
    """Trains one configuration after another from the same base; one epoch a step.

    Implements the cluster's `Trial`, which this package does not know.
    """

    def __init__(self, inputs: TaskInputs, *, from_scratch: bool = False) -> None:
        torch.set_num_threads(inputs.threads)
        self._inputs, self._from_scratch = inputs, from_scratch
        self._device = torch.device("cuda" if inputs.use_gpu else "cpu")
        self.epoch = 0

    @property
    def weights(self) -> dict[str, Tensor]:
        """Whole parameters on the CPU, as `trainers.model.export` takes them."""
        return self._engine.weights()

    @property
    def is_finished(self) -> bool:
        """Whether all epochs of the current configuration are trained."""
        return self.epoch >= self._settings.epochs

    def start(self, hyperparameters: Mapping[str, Any]) -> None:
        """Begin a configuration from the base's weights, or from random ones."""
        self._settings = settings = Hyperparameters.model_validate(dict(hyperparameters))
        inputs = self._inputs
        self.model = model.for_task(
            inputs.network,
            None if self._from_scratch else inputs.weights,
            inputs.task.type,
            dropout=settings.dropout,
            seed=settings.seed,
        )
        if settings.method == "head":
            model.freeze_backbone(self.model)
        optimizer = optim.adamw(
            self.model,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=_BETAS,
            layer_decay=settings.layer_decay,
        )
        self._engine = PlainEngine(
            self.model,
            optimizer,
            self._loss,
            gradient_clipping=_GRADIENT_CLIPPING,
            device=self._device,
        )
        self._steps_per_epoch = math.ceil(len(inputs.train) / settings.batch_size)
        self._learning_rate = schedules.learning_rate(
            ScheduleConfig(name="linear", warmup=settings.warmup),
            peak=settings.learning_rate,
            total_steps=settings.epochs * self._steps_per_epoch,
        )
        self.epoch = 0

    def step(self) -> dict[str, float]:
        """Train one epoch; the training loss and the metrics on the validation rows."""
        return {"loss": self.train_epoch(), **self.validate()}

    def train_epoch(self) -> float:
        """Train one epoch; the mean training loss."""
        settings, inputs = self._settings, self._inputs
        generator = np.random.default_rng([settings.seed, self.epoch])
        order = batches_by_length(inputs.train, settings.batch_size, generator)
        first = self.epoch * self._steps_per_epoch
        losses: list[Tensor] = []
        loop.train(
            self._engine,
            lambda step: [self._training_batch(order[step - first], generator)],
            steps=range(first, first + len(order)),
            learning_rate=self._learning_rate,
            seed=settings.seed,
            after_step=lambda _, result: losses.append(result.loss),
        )
        self.epoch += 1
        return float(torch.stack(losses).mean())

    def validate(self) -> dict[str, float]:
        """Metrics on the validation rows."""
        names, rows = self._inputs.labels, self._inputs.validation
        found = probabilities(self.model, rows, self._inputs.pad_token)
        truth = [_names(row, row, names) for row in rows.labels]
        predicted = [
            _names(row.argmax(-1), labels, names)
            for row, labels in zip(found, rows.labels, strict=True)
        ]
        return metrics.score(self._inputs.task.type, truth, predicted)

    def save(self, directory: Path) -> None:
        """Write the state after the current epoch."""
        self._engine.save(directory)
        torch.save({"epoch": self.epoch}, directory / _STATE)

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote."""
        self._engine.load(directory)
        self.epoch = torch.load(directory / _STATE, weights_only=True)["epoch"]

    def _loss(self, module: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if not self._uses_prefixes:
            return self._cross_entropy(module(**inputs).logits, batch["labels"])
        # Each position's features are those of a prefix, the last real one's of the whole text.
        network: Any = module
        logits = network.score(network.base_model(**inputs).last_hidden_state)
        mask = batch["attention_mask"].bool()
        rows = torch.arange(len(logits), device=logits.device)
        whole = logits[rows, mask.sum(1) - 1]
        prefixes = torch.where(mask, batch["labels"][:, None], IGNORED_LABEL)
        return self._cross_entropy(whole, batch["labels"]) + (
            self._settings.prefix_loss * self._cross_entropy(logits, prefixes)
        )

    @property
    def _uses_prefixes(self) -> bool:
        inputs = self._inputs
        is_text_label = inputs.task.type == "classification"
        return (
            self._settings.prefix_loss > 0
            and is_text_label
            and model.reads_left_to_right(inputs.network)
        )

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            labels.reshape(-1),
            ignore_index=IGNORED_LABEL,
            label_smoothing=self._settings.label_smoothing,
        )

    def _training_batch(self, rows: Sequence[int], generator: np.random.Generator) -> Batch:
        batch = collate(self._inputs.train, rows, self._inputs.pad_token)
        share = self._settings.token_dropout
        if share and self._inputs.mask_token is not None:
            shape = tuple(batch["input_ids"].shape)
            hidden = torch.from_numpy(generator.random(shape) < share)
            hidden &= batch["attention_mask"].bool()
            batch["input_ids"] = batch["input_ids"].masked_fill(hidden, self._inputs.mask_token)
        return batch


@dataclass(frozen=True)
class Training:
    """One training to its end, in a form that travels to another process."""

    task: TaskConfig
    base: Path
    data: Path
    hyperparameters: Hyperparameters
    from_scratch: bool
    output: Path
    threads: int
    use_gpu: bool


def train_and_export(training: Training) -> dict[str, float]:
    """Train every epoch and write the model's folder; its metrics on the validation rows."""
    inputs = task_inputs(
        training.task,
        training.base,
        training.data,
        threads=training.threads,
        use_gpu=training.use_gpu,
    )
    tuning = FineTuning(inputs, from_scratch=training.from_scratch)
    tuning.start(training.hyperparameters.model_dump())
    while not tuning.is_finished:
        tuning.train_epoch()
    scores = tuning.validate()
    loaded = tokenizer.load(training.base)
    loaded.model_max_length = training.task.max_length
    training.output.mkdir(parents=True)
    model.export(training.output, tuning.model, tuning.weights, loaded)
    return scores


def test(training: Training) -> tuple[dict[str, float], list[Prediction]]:
    """Metrics of a finished training on the test rows, and what it said of each."""
    torch.set_num_threads(training.threads)
    return evaluate(training.output, training.task, tasks.load(training.data, tasks.TEST))


def evaluate(
    folder: Path, task: TaskConfig, examples: Examples
) -> tuple[dict[str, float], list[Prediction]]:
    """Metrics of a saved model on rows, and what it said of each."""
    predictions = Predictor(folder, task.type, task.max_length).predict(examples.texts)
    found = [prediction.label for prediction in predictions]
    return metrics.score(task.type, examples.labels, found), predictions


def batches_by_length(
    rows: Encoded, batch_size: int, generator: np.random.Generator
) -> list[list[int]]:
    """Row numbers in batches of similar length, in random order: little padding, little bias."""
    shuffled = generator.permutation(len(rows)).tolist()
    pool = batch_size * _BATCHES_SORTED_TOGETHER
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), pool):
        by_length = sorted(shuffled[start : start + pool], key=lambda row: len(rows.ids[row]))
        batches += [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def _names(numbers: NDArray[np.int64], labelled: NDArray[np.int64], names: Sequence[str]) -> Any:
    """Label numbers as names; of a sentence, those of its words."""
    if labelled.ndim == 0:
        return names[int(numbers)]
    return [names[int(number)] for number in numbers[labelled != IGNORED_LABEL]]
