"""Supervised fine-tuning of one task: one configuration after another, epoch by epoch."""

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from trainers import bases, loop, memory, methods, model, optim, schedules, task_data
from trainers.engine import PlainEngine
from trainers.errors import DataError, OutOfMemoryError
from trainers.predict import tokenizer_of
from trainers.pretrain_config import ScheduleConfig
from trainers.segments import Batch
from trainers.task_config import Hyperparameters, TaskConfig
from trainers.task_types import TaskType, type_of
from trainers.task_types.base import Encoded, TextType, collate

logger = logging.getLogger(__name__)

_BATCHES_SORTED_TOGETHER = 20
_BETAS = (0.9, 0.98)
_GRADIENT_CLIPPING = 1.0
_STATE = "trial.pt"
_SHARE = "share"
"""Key of a micro-batch's part in the loss of its batch."""

ADAPTER = "adapter"
"""Folder of what LoRA trained, beside the model it is merged into."""


@dataclass(frozen=True)
class TaskInputs:
    """All that trainings of one task share: plain arrays, placed once per node."""

    kind: TaskType
    network: dict[str, Any]
    """The base's configuration with what the task's head has to know."""
    weights: Mapping[str, NDArray[Any]]
    """The base's weights by name."""
    train: Encoded
    whole: int
    """Sequences of all training rows, of which `train` may be a share."""
    validation: Encoded
    truth: list[Any]
    """Labels of the validation rows."""
    class_weights: NDArray[np.float32] | None
    tokenizer: PreTrainedTokenizerFast
    threads: int
    use_gpu: bool


def task_inputs(
    task: TaskConfig,
    base: Path,
    data: Path,
    *,
    threads: int,
    use_gpu: bool,
    label_fraction: float = 1.0,
) -> TaskInputs:
    """Read a base model's folder and a task's prepared rows; the test rows stay closed.

    Args:
        task: the user's section.
        base: a Hugging Face folder.
        data: what `task_data.prepare` wrote.
        threads: of a training.
        use_gpu: or the CPU.
        label_fraction: share of the training rows that is used.
    """
    loaded = tokenizer_of(base, task)
    network, weights = bases.weights_of(base)
    kind = type_of(task, task_data.load_labels(data))
    configured = kind.configure(network) | {"pad_token_id": loaded.pad_token_id}
    model.require_positions(configured, kind.head, task.max_length)
    train, validation = (
        task_data.load(data, split) for split in (task_data.TRAIN, task_data.VALIDATION)
    )
    encoded = kind.encode(train, loaded, network)
    whole = len(encoded)
    if label_fraction < 1.0:
        train = task_data.fewer(train, label_fraction, type(kind), task.data.split.seed)
        encoded = kind.encode(train, loaded, network)
    return TaskInputs(
        kind=kind,
        network=configured,
        weights=weights,
        train=encoded,
        whole=whole,
        validation=kind.encode(validation, loaded, network),
        truth=validation.labels,
        class_weights=kind.weights(train.labels),
        tokenizer=loaded,
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
        weights = inputs.class_weights
        self._class_weights = (
            None if weights is None else torch.from_numpy(weights).to(self._device)
        )
        self.epoch = 0

    @property
    def weights(self) -> dict[str, Tensor]:
        """Whole parameters on the CPU."""
        return self._engine.weights()

    @property
    def is_finished(self) -> bool:
        """Whether all epochs of the current configuration are trained."""
        return self.epoch >= self._settings.epochs

    def start(self, hyperparameters: Mapping[str, Any]) -> None:
        """Begin a configuration from the base's weights, or from random ones."""
        self._settings = settings = Hyperparameters.model_validate(dict(hyperparameters))
        inputs = self._inputs
        if settings.token_dropout and inputs.tokenizer.mask_token_id is None:
            raise DataError(
                "token_dropout puts the mask token in the place of others, and the base's "
                "tokenizer has none; leave it out"
            )
        self.model = model.for_task(
            inputs.network,
            None if self._from_scratch else inputs.weights,
            inputs.kind.head,
            dropout=settings.dropout,
            seed=settings.seed,
            keeps_head=inputs.kind.keeps_head,
        )
        self._adapters = (
            methods.add_adapters(self.model, settings, trains_head=not inputs.kind.keeps_head)
            if settings.method == "lora"
            else None
        )
        methods.freeze(self.model, settings)
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
        self._micro_batch_size = settings.batch_size
        self.epoch = 0

    def step(self) -> dict[str, float]:
        """Train one epoch; the training loss and the metrics on the validation rows."""
        return {"loss": self.train_epoch(), **self.validate()}

    def train_epoch(self) -> float:
        """Train one epoch; the mean training loss."""
        settings, inputs = self._settings, self._inputs
        methods.freeze(self.model, settings, self.epoch)
        generator = np.random.default_rng([settings.seed, self.epoch])
        order = batches_by_length(inputs.train, settings.batch_size, generator)
        first = self.epoch * self._steps_per_epoch
        losses: list[Tensor] = []
        made: dict[int, Batch] = {}

        def read(step: int) -> list[Batch]:
            if step not in made:  # else it is done again, with the same tokens hidden
                made.clear()
                made[step] = self._training_batch(order[step - first], generator)
            return self._micro_batches(made[step])

        while len(losses) < len(order):
            try:
                with memory.exhaustion_told_apart():
                    loop.train(
                        self._engine,
                        read,
                        steps=range(first + len(losses), first + len(order)),
                        learning_rate=self._learning_rate,
                        seed=settings.seed,
                        after_step=lambda _, result: losses.append(result.loss),
                    )
            except OutOfMemoryError as error:
                self._halve_micro_batches(error)
        self.epoch += 1
        return float(torch.stack(losses).mean())

    def _halve_micro_batches(self, error: OutOfMemoryError) -> None:
        """Do the step that failed again in smaller parts, and all behind it; the batch stays."""
        if self._micro_batch_size == 1 or self._engine.is_updating:
            raise error  # a smaller part needs no less, or weights have changed already
        self._micro_batch_size = (self._micro_batch_size + 1) // 2
        self._engine.forget_gradients()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("%s; going on with micro-batches of %d", error, self._micro_batch_size)

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        """A batch in parts that count in the mean as much as they hold of what the loss counts."""
        size, rows = self._micro_batch_size, len(batch["input_ids"])
        if rows <= size:
            return [batch]
        parts = [
            {name: tensor[start : start + size] for name, tensor in batch.items()}
            for start in range(0, rows, size)
        ]
        kind, weights = self._inputs.kind, self._class_weights
        masses = [kind.mass(part["labels"], weights) for part in parts]
        whole = sum(masses)
        for part, mass in zip(parts, masses, strict=True):
            # Of the whole; the engine takes the mean over the parts.
            part[_SHARE] = torch.tensor(mass / whole * len(parts) if whole else 1.0)
        return parts

    def validate(self) -> dict[str, float]:
        """Metrics on the validation rows."""
        inputs = self._inputs
        found = inputs.kind.answers(self.model, inputs.validation, inputs.tokenizer)
        return inputs.kind.required_score(inputs.truth, found)

    def save(self, directory: Path) -> None:
        """Write the state after the current epoch."""
        self._engine.save(directory)
        torch.save({"epoch": self.epoch}, directory / _STATE)

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote."""
        self._engine.load(directory)
        self.epoch = torch.load(directory / _STATE, weights_only=True)["epoch"]

    def change(self, hyperparameters: Mapping[str, Any]) -> None:
        """Go on with other values of what `MAY_CHANGE`, weights and optimizer as they are."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder))
            self.start(hyperparameters)
            self.load(Path(folder))

    def export(self, directory: Path, loaded: PreTrainedTokenizerFast) -> None:
        """Write a Hugging Face folder, adapters merged and kept in `adapter/`; ends this training.

        Args:
            directory: an empty folder.
            loaded: the tokenizer that goes beside the model.
        """
        if self._adapters is not None:
            self._adapters.save_pretrained(str(directory / ADAPTER))
            (directory / ADAPTER / "README.md").unlink()  # a form that nobody filled in
            self._adapters.merge_and_unload()
        model.export(directory, self.model, self.weights, loaded)

    def _loss(self, module: nn.Module, batch: Batch) -> Tensor:
        inputs = dict(batch)
        labels, share = inputs.pop("labels"), inputs.pop(_SHARE, None)
        loss = self._loss_of_batch(module, inputs, labels)
        return loss if share is None else loss * share

    def _loss_of_batch(self, module: nn.Module, inputs: Batch, labels: Tensor) -> Tensor:
        if not self._uses_prefixes:
            return self._loss_of(self._inputs.kind.logits(module(**inputs), inputs), labels)
        # Each position's features are those of a prefix, the last real one's of the whole text.
        network: Any = module
        logits = network.score(network.base_model(**inputs).last_hidden_state)
        mask = inputs["attention_mask"].bool()
        whole = logits[torch.arange(len(logits), device=logits.device), mask.sum(1) - 1]
        rows, _ = mask.nonzero(as_tuple=True)
        prefixes = self._loss_of(logits[mask], labels[rows])
        return self._loss_of(whole, labels) + self._settings.prefix_loss * prefixes

    @property
    def _uses_prefixes(self) -> bool:
        inputs = self._inputs
        return (
            self._settings.prefix_loss > 0
            and isinstance(inputs.kind, TextType)
            and model.reads_left_to_right(inputs.network)
        )

    def _loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self._inputs.kind.loss(
            logits,
            labels,
            smoothing=self._settings.label_smoothing,
            weights=self._class_weights,
        )

    def _training_batch(self, rows: Sequence[int], generator: np.random.Generator) -> Batch:
        batch = collate(self._inputs.train, rows, self._inputs.tokenizer.pad_token_id)
        if share := self._settings.token_dropout:
            shape = tuple(batch["input_ids"].shape)
            hidden = torch.from_numpy(generator.random(shape) < share)
            hidden &= batch["attention_mask"].bool()
            batch["input_ids"] = batch["input_ids"].masked_fill(
                hidden, self._inputs.tokenizer.mask_token_id
            )
        return batch


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
