"""The one training loop: pretraining and fine-tuning both run it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainers.engine import Engine
from trainers.segments import Batch


def train(
    engine: Engine,
    read: Callable[[int], Sequence[Batch]],
    *,
    steps: range,
    learning_rate: Callable[[int], float],
    seed: int,
    after_step: Callable[[int, Tensor], None],
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
        after_step: is told each finished step and this rank's loss; may evaluate, report, save.
    """
    engine.module.train()
    for step in steps:
        torch.manual_seed(seed * 1_000_003 + step)
        engine.set_learning_rate(learning_rate(step))
        loss = engine.step(read(step))
        after_step(step, loss)
