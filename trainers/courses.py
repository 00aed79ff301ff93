"""What each epoch of a fine-tuning depends on: trainings that begin alike need not begin twice."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers import schedules
from trainers.pretrain_config import ScheduleConfig
from trainers.task_config import Hyperparameters

_LENGTH = {"epochs", "schedule", "decay"}
"""Hyperparameters that say how long a training goes on and how it ends, of those schedules."""
_BEGINS_ALIKE = ("constant", "wsd")


def learning_rate(settings: Hyperparameters, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate by step."""
    total = settings.epochs * steps_per_epoch
    begins_alike = settings.schedule in _BEGINS_ALIKE
    decay = settings.decay if settings.schedule == "wsd" else None
    return schedules.learning_rate(
        ScheduleConfig(name=settings.schedule, warmup=0.0, decay=decay),
        peak=settings.learning_rate,
        total_steps=total,
        warmup_steps=round(settings.warmup * (steps_per_epoch if begins_alike else total)),
    )


@dataclass(frozen=True)
class Courses:
    """The courses of points; implements `cluster.interface.SearchPlan.course`. Picklable."""

    rows: int
    """That are trained in an epoch."""

    def __call__(self, point: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
        """For each epoch of a point, all of it that the weights after that epoch depend on.

        Until `wsd` begins to go down nothing depends on when that will be.
        """
        settings = Hyperparameters.model_validate(dict(point))
        whole = settings.model_dump()
        begin = {name: value for name, value in whole.items() if name not in _LENGTH}
        steps = math.ceil(self.rows / settings.batch_size)
        rate = learning_rate(settings, steps)
        return [
            begin
            if settings.schedule in _BEGINS_ALIKE
            and rate(epoch * steps - 1) == settings.learning_rate
            else whole
            for epoch in range(1, settings.epochs + 1)
        ]
