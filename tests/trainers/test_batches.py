from pathlib import Path

import numpy as np
import pytest
import torch

from trainers import tokens
from trainers.batches import (
    IGNORED_LABEL,
    Cursor,
    GlobalBatches,
    Masking,
    masked,
    micro_batch_size,
)
from trainers.tokens import PackedShard, TokenSequences

LENGTH = 20
MASKING = Masking(probability=0.15, mask_token=2, vocab_size=100)


@pytest.fixture
def sequences(tmp_path: Path) -> TokenSequences:
    rows = np.arange(50 * LENGTH, dtype=np.uint16).reshape(50, LENGTH) % 97 + 3
    rows.tofile(tmp_path / "train-00000.bin")
    shard = PackedShard("train-00000.bin", 50, 50, 50 * LENGTH, 0)
    tokens.write_index(tmp_path, [shard], sequence_length=LENGTH, vocab_size=100)
    return TokenSequences(tmp_path, "train")


def global_batch(
    sequences: TokenSequences, world_size: int, micro: int | None, masking: Masking | None
) -> tuple[dict[str, torch.Tensor], Cursor]:
    """The third global batch, put together from all ranks' micro-batches."""
    parts: list[dict[str, torch.Tensor]] = []
    cursor = Cursor()
    for rank in range(world_size):
        batches = GlobalBatches(
            sequences,
            global_batch_size=8,
            rank=rank,
            world_size=world_size,
            micro_batch=micro,
            seed=5,
            masking=masking,
        )
        cursor = Cursor()
        for _ in range(3):
            found, cursor = batches.read(cursor)
        parts += found
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, cursor


@pytest.mark.parametrize("masking", [None, MASKING])
@pytest.mark.parametrize(("world_size", "micro"), [(1, 3), (2, None), (2, 1), (4, 2), (8, 1)])
def test_global_batch_does_not_depend_on_workers_or_micro_batches(
    sequences: TokenSequences, world_size: int, micro: int | None, masking: Masking | None
) -> None:
    expected, cursor = global_batch(sequences, 1, None, masking)
    found, same_cursor = global_batch(sequences, world_size, micro, masking)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert same_cursor == cursor
    assert cursor.samples == 24


def test_uneven_share_is_refused_with_a_way_out(sequences: TokenSequences) -> None:
    with pytest.raises(ValueError, match=r"evenly by 3 workers; change cluster\.pretrain\.workers"):
        global_batch(sequences, 3, None, None)


@pytest.mark.parametrize(
    ("local", "wanted", "expected"), [(8, None, 8), (8, 3, 2), (7, 3, 1), (12, 5, 4), (4, 99, 4)]
)
def test_micro_batch_is_the_largest_divisor_that_is_allowed(
    local: int, wanted: int | None, expected: int
) -> None:
    assert micro_batch_size(local, wanted) == expected


def test_masks_hide_the_stated_share_and_follow_the_80_10_10_rule() -> None:
    ids = torch.randint(3, 100, (2000, LENGTH), generator=torch.Generator().manual_seed(0))
    batch = masked(ids, range(2000), MASKING, 0)
    chosen = batch["labels"] != IGNORED_LABEL
    assert (chosen.sum(1) == 3).all()
    assert torch.equal(batch["labels"][chosen], ids[chosen])
    assert torch.equal(batch["input_ids"][~chosen], ids[~chosen])
    is_mask = (batch["input_ids"][chosen] == MASKING.mask_token).float().mean()
    is_kept = (batch["input_ids"][chosen] == ids[chosen]).float().mean()
    assert 0.78 < is_mask < 0.82
    assert 0.09 < is_kept < 0.13  # a tenth, and now and then the random token


def test_masks_differ_between_positions_and_seeds() -> None:
    ids = torch.full((1, LENGTH), 50)
    found = [
        masked(ids, range(p, p + 1), MASKING, s)["labels"] for p, s in [(0, 0), (1, 0), (0, 1)]
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
