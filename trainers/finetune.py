"""Supervised fine-tuning of one task: one configuration after another, epoch by epoch."""

import contextlib
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from trainers import courses, loop, memory, methods, model, optim, task_data, task_model
from trainers.deadline import Deadline
from trainers.deepspeed_engine import DeepSpeedEngine
from trainers.deepspeed_setup import ShardedConstruction
from trainers.engine import Engine, PlainEngine, Ranks, device_of
from trainers.errors import DataError, OutOfMemoryError
from trainers.pretrain_config import ZeroConfig
from trainers.segments import Batch
from trainers.task_batches import SHARE, batches_by_length, parts_of, rows_of_rank
from trainers.task_config import Hyperparameters
from trainers.task_inputs import TaskInputs
from trainers.task_types.base import Encoded, TextType, collate

logger = logging.getLogger(__name__)

_BETAS = (0.9, 0.98)
_GRADIENT_CLIPPING = 1.0
_STATE = "trial.pt"
_PRIME = 1_000_003

ADAPTER = "adapter"
"""Folder of what LoRA trained, beside the model it is merged into."""


class FineTuning:
    """Trains one configuration after another from the same base; one epoch a step.

    Alone, or as one rank of a process group that torch has already set up: then DeepSpeed spreads
    the training over the ranks, and all methods but `is_finished` are collective.

    Implements the cluster's `Trial`, which this package does not know.
    """

    def __init__(self, inputs: TaskInputs, *, from_scratch: bool = False) -> None:
        execution = inputs.execution
        torch.set_num_threads(execution.threads)
        self._inputs, self._from_scratch = inputs, from_scratch
        self._is_in_gang = torch.distributed.is_initialized()
        self._ranks = Ranks.from_environment() if self._is_in_gang else Ranks()
        self._device = device_of(self._ranks, use_gpu=execution.use_gpu)
        weights = inputs.class_weights
        self._class_weights = (
            None if weights is None else torch.from_numpy(weights).to(self._device)
        )
        self.epoch = 0

    @property
    def weights(self) -> dict[str, Tensor]:
        """Whole parameters on the CPU; of ranks, on the first."""
        return self._engine.weights()

    @property
    def is_finished(self) -> bool:
        """Whether all epochs of the current configuration are trained."""
        return self.epoch >= self._settings.epochs

    def start(self, hyperparameters: Mapping[str, Any], *, halvings: int = 0) -> None:
        """Begin a configuration from the base's weights, or from random ones.

        Args:
            hyperparameters: the configuration.
            halvings: times that ranks ran out of memory with it. Alone, a training halves its
                micro-batches as it goes.

        Raises:
            DataError: the configuration does not go with the base; or memory does not suffice.
        """
        self._settings = settings = Hyperparameters.model_validate(dict(hyperparameters))
        inputs = self._inputs
        if settings.token_dropout and inputs.tokenizer.mask_token_id is None:
            raise DataError(
                "token_dropout puts the mask token in the place of others, and the base's "
                "tokenizer has none; leave it out"
            )
        rows = rows_of_rank(settings.batch_size, self._ranks)
        if halvings and 2 ** (halvings - 1) >= rows:
            raise DataError("out of memory even with one row at a time; take more workers a trial")
        self._micro_batch_size: int = math.ceil(rows / 2**halvings)
        self._most_tokens: int | None = None  # in one part, padding included, as far as is known
        self._train, self._validation = self._rows()
        self.model, self._adapters = self._network()
        methods.freeze(self.model, settings)
        self._engine = self._new_engine()
        self._steps_per_epoch = math.ceil(len(inputs.train) / settings.batch_size)
        self._learning_rate = courses.learning_rate(settings, self._steps_per_epoch)
        self.epoch = 0

    def _rows(self) -> tuple[Encoded, Encoded]:
        """Training and validation rows, with the base's features where those are enough."""
        inputs, features = self._inputs, self._inputs.features
        of_splits = inputs.train, inputs.validation
        if not features or self._from_scratch or self._is_in_gang:
            return of_splits
        if not methods.reads_features_alone(self._settings):
            return of_splits
        train, validation = (features[split] for split in (task_data.TRAIN, task_data.VALIDATION))
        return (
            replace(inputs.train, features=train),
            replace(inputs.validation, features=validation),
        )

    def _network(self) -> tuple[PreTrainedModel, Any]:
        """The model before training, whole on the CPU; with LoRA the adapters in it, too.

        Where features are at hand, without the base.
        """
        settings, inputs = self._settings, self._inputs
        if self._train.features is not None:
            head = task_model.build_head(
                inputs.network,
                inputs.weights,
                inputs.kind.head,
                dropout=settings.dropout,
                seed=settings.seed,
            )
            return head, None
        built = task_model.build(
            inputs.network,
            None if self._from_scratch else inputs.weights,
            inputs.kind.head,
            dropout=settings.dropout,
            seed=settings.seed,
            keeps_head=inputs.kind.keeps_head,
        )
        if settings.method != "lora":
            return built, None
        trains_head = not inputs.kind.keeps_head
        return built, methods.add_adapters(built, settings, trains_head=trains_head)

    def _new_engine(self) -> Engine:
        settings, device = self._settings, self._device
        common: dict[str, Any] = {"gradient_clipping": _GRADIENT_CLIPPING, "device": device}
        if not self._is_in_gang:
            return PlainEngine(self.model, self._optimizer(), self._loss, **common)
        zero = ZeroConfig(stage=self._inputs.execution.zero_stage)
        if zero.stage == 3:  # no device ever holds all of it
            ShardedConstruction(zero, "fp32", device).spread(self.model)
        rows = rows_of_rank(settings.batch_size, self._ranks)
        return DeepSpeedEngine(
            self.model,
            self._optimizer(),
            self._loss,
            zero=zero,
            micro_batch_size=self._micro_batch_size,
            micro_batches=math.ceil(rows / self._micro_batch_size),
            precision="fp32",
            **common,
        )

    def _optimizer(self) -> Optimizer:
        settings = self._settings
        return optim.adamw(
            self.model,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=_BETAS,
            layer_decay=settings.layer_decay,
        )

    def step(self) -> dict[str, float]:
        """Train one epoch; the training loss and the metrics on the validation rows."""
        return {"loss": self.train_epoch(), **self.validate()}

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """End a rank that makes no forward pass any more: its peers would wait without end."""
        if not self._is_in_gang:
            yield
            return
        with Deadline(self._inputs.execution.hang_after_s) as deadline:
            hook = self.model.register_forward_hook(lambda *_: deadline.beat())
            try:
                yield
            finally:
                hook.remove()

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
            return parts_of(
                made[step],
                lambda labels: inputs.kind.mass(labels, self._class_weights),
                size=self._rows_of_part(made[step]),
                ranks=self._ranks,
                batch_size=settings.batch_size,
            )

        while len(losses) < len(order):
            try:
                with self._watched(), memory.exhaustion_told_apart():
                    loop.train(
                        self._engine,
                        read,
                        steps=range(first + len(losses), first + len(order)),
                        learning_rate=self._learning_rate,
                        seed=settings.seed + _PRIME * self._ranks.rank,
                        after_step=lambda _, result: losses.append(result.loss),
                    )
            except OutOfMemoryError as error:
                self._halve_parts(made.get(first + len(losses)), error)
        self.epoch += 1
        return float(torch.stack(losses).mean())

    def _rows_of_part(self, batch: Batch) -> int:
        """Rows of the batch that are computed at once: as many as their tokens allow."""
        length = int(batch["attention_mask"].shape[1])
        if self._most_tokens is None:
            return self._micro_batch_size
        return max(1, min(self._micro_batch_size, self._most_tokens // length))

    def _halve_parts(self, batch: Batch | None, error: OutOfMemoryError) -> None:
        """Do the step that failed again in smaller parts, and those as long; batches stay."""
        engine = self._engine
        if batch is None or not isinstance(engine, PlainEngine):
            raise error  # not of a step; or other ranks wait in the middle of it: all begin again
        rows = min(self._rows_of_part(batch), len(batch["labels"]))
        if rows == 1 or engine.is_updating:
            raise error  # a smaller part needs no less, or weights have changed already
        self._most_tokens = (rows + 1) // 2 * batch["attention_mask"].shape[1]
        engine.forget_gradients()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("%s; going on with %d tokens at a time", error, self._most_tokens)

    def validate(self) -> dict[str, float]:
        """Metrics on the validation rows."""
        inputs = self._inputs
        kind = inputs.kind
        at_once = kind.rows_at_once
        if self._is_in_gang:  # what fits when it is trained fits now
            at_once = min(at_once, self._micro_batch_size)
        with self._watched(), memory.exhaustion_told_apart():
            found = kind.answers(self.model, self._validation, inputs.tokenizer, at_once=at_once)
        return kind.required_score(inputs.truth, found)

    def save(self, directory: Path) -> None:
        """Write the state after the current epoch."""
        self._engine.save(directory)
        if self._ranks.rank == 0:
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
        """Write a Hugging Face folder, adapters merged and kept in `adapter/`.

        Args:
            directory: made anew; of ranks, the first one writes it.
            loaded: the tokenizer that goes beside the model.
        """
        assert self._train.features is None, "there is no base below this head"
        weights = self.weights
        if self._ranks.rank > 0:
            return
        shutil.rmtree(directory, ignore_errors=True)  # of ranks that were lost on the way
        directory.mkdir(parents=True)
        if self._adapters is not None:
            whole, adapters = self._network()
            whole.load_state_dict(weights, strict=False)
            adapters.save_pretrained(str(directory / ADAPTER))
            (directory / ADAPTER / "README.md").unlink()  # a form that nobody filled in
            adapters.merge_and_unload()
            weights = dict(whole.named_parameters())
        model.export(directory, self.model, weights, loaded)

    def _loss(self, module: nn.Module, batch: Batch) -> Tensor:
        inputs = dict(batch)
        labels, share = inputs.pop("labels"), inputs.pop(SHARE, None)
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
            and task_model.reads_left_to_right(inputs.network)
        )

    def _loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self._inputs.kind.loss(
            logits,
            labels,
            smoothing=self._settings.label_smoothing,
            weights=self._class_weights,
        )

    def _training_batch(self, rows: Sequence[int], generator: np.random.Generator) -> Batch:
        batch = collate(self._train, rows, self._inputs.tokenizer.pad_token_id)
        if share := self._settings.token_dropout:
            shape = tuple(batch["input_ids"].shape)
            hidden = torch.from_numpy(generator.random(shape) < share)
            hidden &= batch["attention_mask"].bool()
            batch["input_ids"] = batch["input_ids"].masked_fill(
                hidden, self._inputs.tokenizer.mask_token_id
            )
        return batch
