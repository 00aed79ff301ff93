"""Peer 1: `Trainer.hyperparameter_search(backend="ray")`, as transformers documents it.

What was chosen, and why:

- The documented form: `model_init` makes a model for each trial, `hp_space` returns Ray Tune's
  space, the rest goes to `ray.tune.run`. It works with the installed versions. It has no actors
  that are used again: every trial is a process of its own, which is Tune's default, too.
- Each point once: `tune.grid_search`. One CPU a trial, so two trials at once. One task after the
  other: every search registers a trainable of the same name, and Tune keeps trainables by name, so
  that two searches of one process could train each other's task.
- `model_init` reads the base with `from_pretrained`. With `head` all below the head is frozen, and
  its dropout is 0 in the configuration: the same mathematics as eval mode. Adapters are made by the
  function that all subjects call.
- All settings are those of `TrainingArguments`' documentation; the optimizer is its default, which
  is PyTorch's fused AdamW. What differs from the defaults makes the mathematics the others':
  learning rate, schedule, weight decay and what decays (not embeddings), beta 2, the batch.
  Evaluation after each epoch in batches of 16, as in the documented examples.
- Nothing that costs time and is not needed: no checkpoints, no reports, no progress bar, no log.
- Its batches are the others', of similar length: its own random order pads more, and trains another
  head (of 400 rows to a mean loss a seventh lower). Each is padded to its longest text by the
  collator that is documented for the task. Dropout differs, so scores are not theirs to the bit.
- `dataloader_pin_memory` is off: on a CPU it only warns.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune
import torch
from regimes import BETAS, CLIPPING, CPUS, DEFAULTS, TASKS, Regime
from subject import Measurement, Trial, local_ray, parse_arguments, size_bytes
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from transformers import (
    AutoConfig,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)
from work import BASE, read_inputs

from trainers import methods, optim, schedules, task_model
from trainers.task_batches import batches_by_length
from trainers.task_inputs import TaskInputs
from trainers.task_types.base import Encoded, OnePass

EPOCH_LOSS = "epoch_loss"
_EVALUATION_BATCH = 16


class SameBatches(Sampler[list[int]]):
    """The other subjects' batches: of each epoch those that they train in it."""

    def __init__(self, rows: Encoded) -> None:
        self._rows, self._epoch = rows, 0

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / DEFAULTS.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([DEFAULTS.seed, self._epoch])
        self._epoch += 1
        return iter(batches_by_length(self._rows, DEFAULTS.batch_size, generator))


class TellingTrainer(Trainer):  # type: ignore[misc]
    """Has the other subjects' batches and rates, decays what they do, tells losses as they do."""

    regime: Regime
    rows: Encoded

    def get_train_dataloader(self) -> DataLoader[Any]:
        """In place of the Trainer's own, which has rows in random order."""
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,
            batch_sampler=SameBatches(self.rows),
            collate_fn=self.data_collator,
        )
        return loader

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """In place of the Trainer's own, whose warm-up begins at 0 and so loses a step."""
        epochs = int(self.args.num_train_epochs)
        steps = math.ceil(len(self.train_dataset) / DEFAULTS.batch_size)
        schedule, total_steps = self.regime.rate_schedule({"epochs": epochs}, steps)
        share = schedules.learning_rate(schedule, peak=1.0, total_steps=total_steps)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, share)
        return self.lr_scheduler

    def training_step(self, *arguments: Any, **more: Any) -> Tensor:
        """As the Trainer's; remembers the loss."""
        loss: Tensor = super().training_step(*arguments, **more)
        self.__dict__.setdefault("epoch_losses", []).append(loss.detach())
        return loss

    def evaluate(self, *arguments: Any, **more: Any) -> dict[str, float]:
        """As the Trainer's; with the mean loss of the epoch before."""
        found: dict[str, float] = super().evaluate(*arguments, **more)
        found[EPOCH_LOSS] = float(torch.stack(self.__dict__.pop("epoch_losses")).mean())
        return found

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices that are no embeddings."""
        embeddings = optim.embedding_parameters(model)
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2 and id(parameter) not in embeddings
        ]


def rows_of(encoded: Encoded) -> list[dict[str, Any]]:
    """Rows as data sets of transformers have them."""
    return [
        {
            "input_ids": ids.tolist(),
            "attention_mask": [1] * len(ids),
            "labels": labels.tolist(),
        }
        for ids, labels in zip(encoded.ids, encoded.labels, strict=True)
    ]


def model_maker(base: Path, inputs: TaskInputs, regime: Regime) -> Callable[[], Any]:
    """What makes the model of each trial."""
    kind, network, method = inputs.kind, inputs.network, regime.method
    settings = regime.settings(regime.points()[0])
    inside = 0.0 if method == "head" else settings.dropout

    def make() -> Any:
        configuration = dict(network) | {
            "hidden_dropout_prob": inside,
            "attention_probs_dropout_prob": inside,
            "classifier_dropout": settings.dropout,
        }
        config = AutoConfig.for_model(configuration.pop("model_type"), **configuration)
        built = kind.head.from_pretrained(str(base), config=config)
        if method == "lora":
            return methods.add_adapters(built, settings, trains_head=True)
        if method == "head":
            for name, parameter in built.named_parameters():
                parameter.requires_grad_(task_model.is_of_head(built, name))
        return built

    return make


def scorer(inputs: TaskInputs) -> Callable[[EvalPrediction], dict[str, float]]:
    """The task's metric, by the function that all subjects call."""
    kind, rows, truth = inputs.kind, inputs.validation, inputs.truth
    assert isinstance(kind, OnePass)

    def score(evaluated: EvalPrediction) -> dict[str, float]:
        outputs = kind.activate(torch.from_numpy(evaluated.predictions)).numpy()
        scores = kind.required_score(truth, kind.predictions(list(outputs), rows))
        return {"score": scores[kind.task.metric]}

    return score


def training_arguments(folder: Path) -> TrainingArguments:
    """See the module's docstring."""
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=DEFAULTS.batch_size,
        per_device_eval_batch_size=_EVALUATION_BATCH,
        weight_decay=DEFAULTS.weight_decay,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=CLIPPING,
        seed=DEFAULTS.seed,
        label_names=["labels"],
        eval_strategy="epoch",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def search(shared: Path, folder: Path, regime: Regime, task: str) -> list[Trial]:
    """The trials of one task."""
    inputs = read_inputs(shared, regime, task)
    is_of_words = inputs.train.has_label_of_each_token
    collator = DataCollatorForTokenClassification if is_of_words else DataCollatorWithPadding
    trainer = TellingTrainer(
        model_init=model_maker(shared / BASE, inputs, regime),
        args=training_arguments(folder / "output"),
        train_dataset=rows_of(inputs.train),
        eval_dataset=rows_of(inputs.validation),
        data_collator=collator(inputs.tokenizer),
        compute_metrics=scorer(inputs),
    )
    trainer.regime, trainer.rows = regime, inputs.train
    best = trainer.hyperparameter_search(
        hp_space=lambda _: {
            "learning_rate": ray.tune.grid_search(list(regime.learning_rates)),
            "num_train_epochs": ray.tune.grid_search(list(regime.epochs)),
        },
        compute_objective=lambda metrics: metrics["eval_score"],
        n_trials=1,
        direction="maximize",
        backend="ray",
        resources_per_trial={"cpu": 1},
        max_concurrent_trials=CPUS,
        storage_path=str(folder),
        name=task,
        verbose=0,
    )
    return [trial_of(task, trial) for trial in best.run_summary.trials]


def trial_of(task: str, trial: Any) -> Trial:
    """What the other subjects tell of a trial.

    Raises:
        RuntimeError: it failed.
    """
    config, last = trial.config, trial.last_result
    if trial.status != "TERMINATED":
        raise RuntimeError(f"{task}, {config}: {trial.status}; {trial.error_file}")
    point = {"learning_rate": config["learning_rate"], "epochs": config["num_train_epochs"]}
    return Trial(task, point, last["objective"], last[EPOCH_LOSS])


def main() -> None:
    """Search and print the measurement."""
    arguments, found = parse_arguments(__doc__), Measurement()
    with local_ray():
        with found.timed():
            for task in TASKS:
                found.trials += search(arguments.shared, arguments.folder, arguments.regime, task)
        found.bytes_written = sum(map(size_bytes, arguments.folder.rglob("checkpoint_*")))
    found.print_line()


if __name__ == "__main__":
    main()
