"""Peer 2: a search as somebody writes it who knows Ray Tune and PyTorch well.

What was chosen, and why:

- A class `Trainable` with `reuse_actors=True` and `reset_config`: two processes import torch and
  transformers once and then train one point after another, of both tasks. One `Tuner` has the
  points of both tasks, so that no CPU waits for the slower one; the longest trials begin first.
- Rows and the base's weights go to the object store once (`tune.with_parameters`); processes of the
  node map the weights, which both tasks share.
- A plain loop. Batches of similar length, their order, first weights, adapters, dropout, optimizer
  and learning rates are those of Pretune, by the same functions, and so are the scores.
- With `head` the frozen part is in eval mode and under `torch.no_grad()`. Its features are computed
  again in each epoch and trial: nothing at hand in Ray Tune or transformers keeps them.
- A checkpoint, of which the newest is kept, as Tune needs to begin a lost trial where it was: what
  is trained, and the optimizer's state; not the base. By Pretune's rule: not after a trial's last
  epoch, and no sooner than ten times as long after the last one as that took.
- Tune's own loggers (CSV, JSON, TensorBoard) are off.
"""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"

import numpy as np
import torch
from ray import tune
from ray.tune import CheckpointConfig, RunConfig, TuneConfig, Tuner
from ray.tune.result import SHOULD_CHECKPOINT
from regimes import BETAS, CLIPPING, TASKS, Regime
from subject import Ledger, Measurement, Trial, local_ray, new_ledger, parse_arguments
from torch import Tensor, nn
from transformers import PreTrainedModel
from work import read_inputs

from trainers import methods, optim, schedules, task_model
from trainers.task_batches import batches_by_length
from trainers.task_inputs import TaskInputs
from trainers.task_types.base import collate

_STATE = "state.pt"
_STEP_SEEDS = 1_000_003
_TIMES_ITS_COST = 10
"""Seconds between checkpoints, of what the last one took."""


class Training(tune.Trainable):  # type: ignore[misc]
    """Trains one point after another; an epoch a step."""

    def setup(
        self, config: dict[str, Any], inputs: dict[str, TaskInputs], regime: Regime, ledger: Ledger
    ) -> None:
        """What a process does once."""
        torch.set_num_threads(1)
        self._inputs_of, self._regime, self._ledger = inputs, regime, ledger
        self._cost_s = 0.0
        self._begin(config["trial"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next point in the same process."""
        self._begin(new_config["trial"])
        return True

    def _begin(self, config: Mapping[str, Any]) -> None:
        started = time.monotonic()
        self._inputs, point = self._inputs_of[config["task"]], config["point"]
        self._settings = settings = self._regime.settings(point)
        self._model = build_model(self._inputs, self._regime, point)
        self._optimizer = optim.adamw(
            self._model,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=BETAS,
        )
        self._steps = math.ceil(len(self._inputs.train) / settings.batch_size)
        schedule, total_steps = self._regime.rate_schedule(point, self._steps)
        self._rate_at = schedules.learning_rate(
            schedule, peak=settings.learning_rate, total_steps=total_steps
        )
        self._epoch = 0
        self._saved_at = time.monotonic()
        self._cost_s = self._cost_s or self._saved_at - started

    def step(self) -> dict[str, Any]:
        """Train an epoch and validate."""
        settings, inputs = self._settings, self._inputs
        self._model.train()
        if settings.method == "head":
            self._model.base_model.eval()
        generator = np.random.default_rng([settings.seed, self._epoch])
        order = batches_by_length(inputs.train, settings.batch_size, generator)
        first = self._epoch * self._steps
        losses = [self._train(step, rows) for step, rows in enumerate(order, start=first)]
        self._epoch += 1
        found = inputs.kind.answers(self._model, inputs.validation, inputs.tokenizer)
        scores = inputs.kind.required_score(inputs.truth, found)
        is_last = self._epoch == settings.epochs
        return {
            "score": scores[inputs.kind.task.metric],
            "loss": float(torch.stack(losses).mean()),
            "done": is_last,
            SHOULD_CHECKPOINT: not is_last and self._is_due(),
        }

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= _TIMES_ITS_COST * self._cost_s

    def _train(self, step: int, rows: list[int]) -> Tensor:
        inputs = self._inputs
        torch.manual_seed(self._settings.seed * _STEP_SEEDS + step)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate_at(step)
        batch = collate(inputs.train, rows, inputs.tokenizer.pad_token_id)
        labels = batch.pop("labels")
        logits = inputs.kind.logits(self._model(**batch), batch)
        loss = inputs.kind.loss(logits, labels, smoothing=0.0, weights=None)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.parameters(), CLIPPING)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """What is trained, and the optimizer's state."""
        started = time.monotonic()
        trained = {
            name: parameter.detach()
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }
        state = {"epoch": self._epoch, "model": trained, "optimizer": self._optimizer.state_dict()}
        torch.save(state, Path(checkpoint_dir) / _STATE)
        self._ledger.add(checkpoint_dir)
        self._saved_at = time.monotonic()
        self._cost_s = self._saved_at - started

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on after a process was lost."""
        state = torch.load(Path(checkpoint) / _STATE, weights_only=True)
        self._model.load_state_dict(state["model"], strict=False)
        self._optimizer.load_state_dict(state["optimizer"])
        self._epoch = state["epoch"]


def build_model(inputs: TaskInputs, regime: Regime, point: Mapping[str, Any]) -> PreTrainedModel:
    """The model before training; what the method leaves as it is needs no gradient."""
    settings = regime.settings(point)
    built = task_model.build(
        inputs.network,
        inputs.weights,
        inputs.kind.head,
        dropout=settings.dropout,
        seed=settings.seed,
    )
    if settings.method == "lora":
        methods.add_adapters(built, settings, trains_head=True)
    if settings.method == "head":
        for name, parameter in built.named_parameters():
            parameter.requires_grad_(task_model.is_of_head(built, name))
        for part in (built.base_model.embeddings, built.base_model.encoder):
            part.forward = torch.no_grad()(part.forward)
    return built


def trials_of(regime: Regime) -> list[dict[str, Any]]:
    """All points of both tasks, the longest first."""
    found = [{"task": task, "point": point} for point in regime.points() for task in TASKS]
    return sorted(found, key=lambda trial: -trial["point"]["epochs"])


def search(inputs: dict[str, TaskInputs], regime: Regime, ledger: Ledger, folder: Path) -> Any:
    """All results of Tune."""
    trainable = tune.with_parameters(Training, inputs=inputs, regime=regime, ledger=ledger)
    tuner = Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={"trial": tune.grid_search(trials_of(regime))},
        tune_config=TuneConfig(reuse_actors=True),
        run_config=RunConfig(
            name="search",
            storage_path=str(folder),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False, num_to_keep=1),
            verbose=0,
        ),
    )
    return tuner.fit()


def main() -> None:
    """Search and print the measurement."""
    arguments, found = parse_arguments(__doc__), Measurement()
    regime, ledger = arguments.regime, new_ledger(arguments.folder)
    with local_ray():
        with found.timed():
            inputs = {task: read_inputs(arguments.shared, regime, task) for task in TASKS}
            weights = inputs[TASKS[0]].weights
            inputs = {task: replace(one, weights=weights) for task, one in inputs.items()}
            results = search(inputs, regime, ledger, arguments.folder)
            if results.errors:
                raise results.errors[0]
            found.trials = [
                Trial(**result.config["trial"], **{n: result.metrics[n] for n in ("score", "loss")})
                for result in results
            ]
        found.bytes_written = ledger.total()
    found.print_line()


if __name__ == "__main__":
    main()
