"""Parts of a batch: weighed so that their mean over all ranks is the batch's loss."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainers.engine import Ranks
from trainers.segments import IGNORED_LABEL, Batch
from trainers.task_batches import SHARE, parts_of, rows_of_rank


def mass(labels: Tensor) -> float:
    return float((labels != IGNORED_LABEL).sum())


def batch_of(rows: int) -> Batch:
    """Logits and labels of words, of which rows have 0, 1, 2, ... with one."""
    generator = torch.Generator().manual_seed(rows)
    labels = torch.full((rows, 5), IGNORED_LABEL)
    for row in range(rows):
        labels[row, : row % 5] = torch.randint(3, (row % 5,), generator=generator)
    return {"logits": torch.randn(rows, 5, 3, generator=generator), "labels": labels}


def loss(batch: Batch) -> Tensor:
    found = functional.cross_entropy(
        batch["logits"].flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED_LABEL
    )
    return found * batch[SHARE] if SHARE in batch else found


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [2, 3, 5, 8])
def test_mean_over_all_parts_is_the_loss_of_the_batch(
    world_size: int, size: int, rows: int
) -> None:
    batch = batch_of(rows)
    ranks = [Ranks(rank, world_size) for rank in range(world_size)]
    size = min(size, rows_of_rank(8, ranks[0]))
    found = [parts_of(batch, mass, size=size, ranks=one, batch_size=8) for one in ranks]
    assert len({len(parts) for parts in found}) == 1
    losses = torch.stack([loss(part) for parts in found for part in parts])
    assert losses.mean() == pytest.approx(float(loss(batch)), abs=1e-6)
    assert max(len(part["labels"]) for parts in found for part in parts) <= size


def test_ranks_make_as_many_parts_of_a_short_batch_as_of_a_whole_one() -> None:
    ranks = Ranks(1, 2)
    for rows in (2, 7, 8):
        assert len(parts_of(batch_of(rows), mass, size=2, ranks=ranks, batch_size=8)) == 2


def test_a_batch_that_one_process_computes_at_once_is_left_as_it_is() -> None:
    batch = batch_of(8)
    assert parts_of(batch, mass, size=8, ranks=Ranks(), batch_size=8) == [batch]
