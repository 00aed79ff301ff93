"""The one training loop: pretraining and fine-tuning both run it."""

from collections.abc import Callable, Sequence

import torch

from trainers.engine import Accept, Engine, StepResult
from trainers.segments import Batch


def train(
    engine: Engine,
    read: Callable[[int], Sequence[Batch]],
    *,
    steps: range,
    learning_rate: Callable[[int], float],
    seed: int,
    after_step: Callable[[int, StepResult], None],
    accept: Accept | None = None,
) -> None:
    """Run the optimizer steps `steps`.

    All that is random in a step (dropout) follows from (seed, step, rank), so that a resumed
    training repeats nothing and skips nothing.

    Args:
        engine: does one step.
        read: this rank's micro-batches of a step.
        steps: which steps to run.
        learning_rate: by step.
        seed: of this training and rank.
        after_step: is told each finished step and what became of it; may evaluate, report, save.
        accept: judges each step before it is taken, as in `Engine.step`.
    """
    engine.module.train()
    for step in steps:
        torch.manual_seed(seed * 1_000_003 + step)
        engine.set_learning_rate(learning_rate(step))
        after_step(step, engine.step(read(step), accept))
