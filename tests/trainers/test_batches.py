import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import token_folders
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.batches import (
    Cursor,
    GlobalBatches,
    Prefetcher,
    micro_batch_size,
    to_batch,
)
from trainers.segments import IGNORED_LABEL, Batch, Masking
from trainers.sequences import INDEX, TokenSequences

LENGTH = 20
MASKING = Masking(probability=0.15, mask_token=2, vocab_size=100)


@pytest.fixture
def sequences(tmp_path: Path) -> TokenSequences:
    shards = [(0, 11), (0, 9), (1, 12), (1, 12), (2, 6)]
    return TokenSequences(token_folders.write(tmp_path, shards, length=LENGTH).joinpath, "train")


def batches_of(sequences: TokenSequences, **changes: Any) -> GlobalBatches:
    arguments: dict[str, Any] = {
        "weights": [1.0] * len(sequences.sizes),
        "window": 2,
        "global_batch_size": 8,
        "rank": 0,
        "world_size": 1,
        "micro_batch": None,
        "seed": 5,
        "masking": None,
    }
    return GlobalBatches(sequences, **arguments | changes)


def masked(ids: torch.Tensor, positions: range, seed: int) -> Batch:
    """Sequences of the masked objective."""
    return to_batch(ids, positions, packing="concat", end_token=0, masking=MASKING, seed=seed)


def numbers(micro_batches: list[Batch]) -> list[int]:
    """Which sequences they are."""
    return [number for batch in micro_batches for number in (batch["input_ids"][:, 0] - 3).tolist()]


def consumed(batches: GlobalBatches, cursor: Cursor, stop: int) -> Iterator[tuple[int, int]]:
    """Positions in the global batch and the sequences that one rank reads there, up to `stop`."""
    while cursor.samples < stop:
        first = cursor.samples
        micro_batches, cursor = batches.read(cursor)
        yield from enumerate(numbers(micro_batches), first + batches._mine.start)


def global_batch(
    sequences: TokenSequences, world_size: int, micro: int | None, masking: Masking | None
) -> tuple[Batch, Cursor]:
    """The third global batch, put together from all ranks' micro-batches."""
    parts: list[Batch] = []
    cursor = Cursor()
    for rank in range(world_size):
        batches = batches_of(
            sequences, rank=rank, world_size=world_size, micro_batch=micro, masking=masking
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


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 15)), min_size=1, max_size=5).filter(
        lambda shards: any(count for _, count in shards)
    ),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.data(),
)
def test_all_ranks_together_read_every_sample_once_an_epoch_wherever_they_resume(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[tuple[int, int]],
    world_size: int,
    local_batch: int,
    window: int,
    data: st.DataObject,
) -> None:
    shards.sort()  # then sequences are numbered in the order they are written in
    folder = token_folders.write(tmp_path_factory.mktemp("tokens"), shards)
    sequences = TokenSequences(folder.joinpath, "train", keep=2)
    size = len(sequences)
    resumed = Cursor(data.draw(st.integers(0, size)))
    samples: dict[int, int] = {}
    for rank in range(world_size):
        batches = batches_of(
            sequences,
            rank=rank,
            world_size=world_size,
            window=window,
            global_batch_size=world_size * local_batch,
        )
        samples |= dict(consumed(batches, resumed, 2 * size))
    sequences.close()
    assert sorted(samples[position] for position in range(size, 2 * size)) == list(range(size))


def test_resumed_reading_goes_on_in_the_same_order(sequences: TokenSequences) -> None:
    batches, cursors = batches_of(sequences), [Cursor()]
    found = []
    for _ in range(15):
        micro_batches, cursor = batches.read(cursors[-1])
        found.append(numbers(micro_batches))
        cursors.append(cursor)
    for step in (14, 7, 1):
        micro_batches, cursor = batches_of(sequences).read(cursors[step])
        assert numbers(micro_batches) == found[step]
        assert cursor == cursors[step + 1]


def test_weights_say_how_often_sources_come(sequences: TokenSequences) -> None:
    batches = batches_of(sequences, weights=[2.0, 0.5, 1.0], global_batch_size=2 * (40 + 12 + 6))
    found = Counter(numbers(batches.read(Cursor())[0]))
    assert [found[number] for number in range(50)] == [4] * 20 + [1] * 24 + [2] * 6


def test_entering_a_window_prefetches_the_one_behind(tmp_path: Path) -> None:
    asked: list[list[range]] = []

    class Noting(TokenSequences):
        def prefetch(self, ranges: Iterable[range]) -> None:
            asked.append(list(ranges))
            super().prefetch(asked[-1])

    folder = token_folders.write(tmp_path, [(0, 10)] * 12)
    sequences = Noting(folder.joinpath, "train", keep=6)
    with closing(sequences):
        batches, cursor, found = batches_of(sequences, global_batch_size=10), Cursor(), []
        for _ in range(12):
            micro_batches, cursor = batches.read(cursor)
            found.append(set(numbers(micro_batches)))
    assert len(asked) == 6  # windows of two shards, two global batches each
    for window, ranges in enumerate(asked[:-1], 1):
        upcoming = {sample for samples in ranges for sample in samples}
        assert found[2 * window] | found[2 * window + 1] == upcoming


@pytest.mark.parametrize(
    ("local", "wanted", "expected"), [(8, None, 8), (8, 3, 2), (7, 3, 1), (12, 5, 4), (4, 99, 4)]
)
def test_micro_batch_is_the_largest_divisor_that_is_allowed(
    local: int, wanted: int | None, expected: int
) -> None:
    assert micro_batch_size(local, wanted) == expected


def test_masks_hide_the_stated_share_and_follow_the_80_10_10_rule() -> None:
    ids = torch.randint(3, 100, (2000, LENGTH), generator=torch.Generator().manual_seed(0))
    batch = masked(ids, range(2000), 0)
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
    found = [masked(ids, range(p, p + 1), s)["labels"] for p, s in [(0, 0), (1, 0), (0, 1)]]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_read_ahead_batches_are_those_that_are_read_directly(sequences: TokenSequences) -> None:
    batches, cursor = batches_of(sequences, micro_batch=4, masking=MASKING), Cursor(16)
    with closing(
        Prefetcher(batches_of(sequences, micro_batch=4, masking=MASKING), cursor)
    ) as ahead:
        for _ in range(20):
            expected, cursor = batches.read(cursor)
            found, same_cursor = ahead.next()
            assert same_cursor == cursor
            assert len(found) == len(expected) == 2
            for one, other in zip(found, expected, strict=True):
                assert all(torch.equal(one[name], other[name]) for name in other)


def test_next_batch_is_read_while_the_last_is_used(sequences: TokenSequences) -> None:
    with closing(Prefetcher(batches_of(sequences), Cursor())) as ahead:
        _, cursor = ahead.next()
        _, behind = ahead._coming.result()  # though nobody has asked for it yet
    assert behind.samples == 2 * cursor.samples


def test_error_of_reading_ahead_is_raised_by_next(tmp_path: Path) -> None:
    folder = token_folders.write(tmp_path, [(0, 8)])

    def open_shard(file: str) -> Path:
        if file != INDEX:
            raise ConnectionError(file)
        return folder / file

    sequences = TokenSequences(open_shard, "train")
    with closing(Prefetcher(batches_of(sequences), Cursor())) as ahead:
        for _ in range(2):
            with pytest.raises(ConnectionError, match="train-00000"):
                ahead.next()


@pytest.mark.parametrize(("read_s", "use_s"), [(0.03, 0.0), (0.0, 0.03)])
def test_waiting_is_measured(tmp_path: Path, read_s: float, use_s: float) -> None:
    folder = token_folders.write(tmp_path, [(0, 8)] * 10)

    def open_shard(file: str) -> Path:
        time.sleep(read_s)
        return folder / file

    sequences = TokenSequences(open_shard, "train")
    waited = [0.0]
    started = time.monotonic()
    with closing(Prefetcher(batches_of(sequences, window=1), Cursor())) as ahead:
        for _ in range(10):
            ahead.next()
            waited.append(ahead.wait_s)
            time.sleep(use_s)
        elapsed_s = time.monotonic() - started
    sequences.close()
    assert all(before <= after for before, after in pairwise(waited))
    assert (waited[-1] > 0.5 * elapsed_s) == (read_s > use_s)
