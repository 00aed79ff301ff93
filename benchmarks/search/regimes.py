"""What is searched: the points, the rows and what all trials have in common."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from trainers.pretrain_config import ScheduleConfig
from trainers.task_config import Hyperparameters, TaskConfig

BETAS = (0.9, 0.98)
CLIPPING = 1.0
CPUS = 2
"""Trials at once, one thread each."""
DEFAULTS = Hyperparameters()
"""Batch of 16, weight decay 0.01, warm-up 0.1, dropout 0.1, rank 8, alpha 16, seed 0."""

_MAX_LENGTH = 64
_TEST_SHARE = 0.01
_TASKS: Mapping[str, Mapping[str, Any]] = {
    "sentiment": {
        "type": "classification",
        "metric": "accuracy",
        "data": {"path": "data/demo/sentiment.csv"},
    },
    "entities": {
        "type": "token_classification",
        "metric": "entity_f1",
        "data": {"path": "data/demo/entities.txt", "format": "conll"},
    },
}
_ALL_ROWS = {"sentiment": 18_966, "entities": 2_394}
"""Of the files: a share of them is how many rows validate."""
TASKS = tuple(_TASKS)


@dataclass(frozen=True)
class Regime:
    """One kind of search, the same for both tasks; every point is one trial."""

    name: str
    method: Literal["head", "lora", "full"]
    learning_rates: tuple[float, ...]
    epochs: tuple[int, ...]
    train_rows: int
    validation_rows: int
    """About so many: which side a row falls on follows from its text."""
    schedule: Literal["linear", "constant"] = "linear"

    def points(self) -> list[dict[str, Any]]:
        """The trials of one task, as all subjects tell them."""
        return [
            {"learning_rate": learning_rate, "epochs": epochs}
            for learning_rate, epochs in itertools.product(self.learning_rates, self.epochs)
        ]

    def settings(self, point: Mapping[str, Any]) -> Hyperparameters:
        """All hyperparameters of a point but its schedule, whose rate is `rate_schedule`."""
        return Hyperparameters(method=self.method, **point)

    def rate_schedule(self, point: Mapping[str, Any], steps_per_epoch: int) -> tuple[Any, int]:
        """The schedule, and the steps it is given: `constant` warms up in a share of one epoch."""
        epochs = point["epochs"] if self.schedule == "linear" else 1
        config = ScheduleConfig(name=self.schedule, warmup=DEFAULTS.warmup)
        return config, epochs * steps_per_epoch

    def task(self, name: str) -> TaskConfig:
        """A task's section, as a pipeline file has it; paths are relative to the repository."""
        section = _TASKS[name]
        split = {"test": _TEST_SHARE, "validation": self.validation_rows / _ALL_ROWS[name]}
        data = {**section["data"], "split": split, "train_rows": self.train_rows}
        return TaskConfig.model_validate({**section, "data": data, "max_length": _MAX_LENGTH})

    def smaller(self) -> "Regime":
        """The same in a minute, for a smoke test; prefixes are shared here, too."""
        return replace(
            self,
            learning_rates=self.learning_rates[:: len(self.learning_rates) - 1]
            if len(self.epochs) == 1
            else self.learning_rates[:1],
            epochs=self.epochs[:2],
            train_rows=48,
            validation_rows=50,
        )


_REGIMES = (
    Regime(
        "head",
        "head",
        learning_rates=(1e-3, 1.4e-3, 2e-3, 2.7e-3, 3.8e-3, 5.3e-3, 7.4e-3, 1e-2, 1.4e-2, 2e-2),
        epochs=(5,),
        train_rows=400,
        validation_rows=200,
    ),
    Regime(
        "lora",
        "lora",
        learning_rates=(3e-4, 4e-4, 5.6e-4, 7.6e-4, 1e-3, 1.4e-3, 2e-3, 2.6e-3, 3.6e-3, 5e-3),
        epochs=(2,),
        train_rows=120,
        validation_rows=200,
    ),
    Regime(
        "full",
        "full",
        learning_rates=(3e-5, 4.4e-5, 6.5e-5, 9.7e-5, 1.4e-4, 2.1e-4, 3.1e-4, 4.6e-4, 6.8e-4, 1e-3),
        epochs=(1,),
        train_rows=112,
        validation_rows=200,
    ),
    Regime(
        "prefixes",
        "full",
        learning_rates=(2e-4, 5e-4),
        epochs=(1, 2, 3, 4, 5),
        train_rows=48,
        validation_rows=60,
        schedule="constant",
    ),
)
NAMES = tuple(regime.name for regime in _REGIMES)


def regime_of(name: str, *, is_quick: bool) -> Regime:
    """A regime by its name."""
    (found,) = (regime for regime in _REGIMES if regime.name == name)
    return found.smaller() if is_quick else found
