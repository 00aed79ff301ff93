"""A task's rows in batches, and a batch in parts: of each process, of as many rows as fit."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from trainers.engine import Ranks
from trainers.segments import Batch
from trainers.task_types.base import Encoded

SHARE = "share"
"""Key of a part's weight; without it the part is the whole batch."""

_BATCHES_SORTED_TOGETHER = 20


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


def rows_of_rank(batch_size: int, ranks: Ranks) -> int:
    """Most rows of a batch that one process computes."""
    return math.ceil(batch_size / ranks.world_size)


def parts_of(
    batch: Batch,
    mass: Callable[[Tensor], float],
    *,
    size: int,
    ranks: Ranks,
    batch_size: int,
) -> list[Batch]:
    """This rank's parts, weighed so that the mean over all ranks' parts is the loss of the batch.

    Alone, a process makes as many as it takes; ranks all make the same number of every batch, of
    which those that are too many weigh nothing.

    Args:
        batch: with labels of every row.
        mass: what the mean in the loss of these labels divides by.
        size: most rows of one part.
        ranks: this process among those that share the batch.
        batch_size: rows of a whole batch; the last one of an epoch may have fewer.
    """
    labels = batch["labels"]
    mine = range(len(labels))[ranks.rank :: ranks.world_size]
    chosen: list[Sequence[int]] = [
        mine[start : start + size] for start in range(0, len(mine), size)
    ]
    number = len(chosen)
    if ranks.world_size > 1:
        number = math.ceil(rows_of_rank(batch_size, ranks) / size)
    elif number == 1:
        return [batch]
    whole = mass(labels)
    masses = [mass(labels[list(rows)]) for rows in chosen] + [0.0] * (number - len(chosen))
    chosen += [[]] * (number - len(chosen))
    if not all(masses):
        # A mean over nothing is no number; a row that has one weighs nothing just as well.
        one = next((row for row in range(len(labels)) if mass(labels[[row]])), 0)
        chosen = [rows if own else [one] for rows, own in zip(chosen, masses, strict=True)]
    every = number * ranks.world_size
    return [
        {
            **{name: tensor[list(rows)] for name, tensor in batch.items()},
            SHARE: torch.tensor(own / whole * every if whole else 1.0),
        }
        for rows, own in zip(chosen, masses, strict=True)
    ]
