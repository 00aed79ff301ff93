import hashlib
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers import order
from trainers.order import Order, permuted

SEEDS = st.integers(0, 2**31)
SIZES = st.lists(st.integers(0, 120), min_size=1, max_size=4).filter(any)
BLOCKS = st.integers(1, 50)
WINDOWS = st.integers(1, 6)


def equal_weights(sizes: Sequence[int], seed: int, block: int, window: int) -> Order:
    return Order(sizes, [1.0] * len(sizes), seed=seed, block=block, window=window)


def epoch(found: Order, number: int) -> list[int]:
    start = number * found.epoch_size
    return found.samples(range(start, start + found.epoch_size)).tolist()


@given(st.integers(1, 500), SEEDS)
def test_permutation_takes_every_offset_to_another_place(size: int, seed: int) -> None:
    found = permuted(np.arange(size, dtype=np.uint64), size, str(seed).encode())
    assert sorted(found.tolist()) == list(range(size))


@given(st.integers(1, 2**62), SEEDS)
def test_permutation_stays_inside_any_size(size: int, seed: int) -> None:
    offsets = np.unique(np.linspace(0, size - 1, 50).astype(np.uint64).clip(0, size - 1))
    found = permuted(offsets, size, str(seed).encode())
    assert len(np.unique(found)) == len(offsets)
    assert (found < size).all()


def test_permutation_takes_an_offset_anywhere_equally_often() -> None:
    keys, size = 2000, 7
    places = np.zeros((size, size))
    for key in range(keys):
        found = permuted(np.arange(size, dtype=np.uint64), size, str(key).encode())
        places[np.arange(size), found.astype(np.int64)] += 1
    expected = keys / size
    chi_squared = ((places - expected) ** 2 / expected).sum()
    assert chi_squared < 3 * (size - 1) ** 2


@settings(max_examples=50, deadline=None)
@given(SIZES, SEEDS, BLOCKS, WINDOWS, st.integers(0, 5))
def test_every_sample_comes_exactly_once_an_epoch(
    sizes: list[int], seed: int, block: int, window: int, number: int
) -> None:
    found = equal_weights(sizes, seed, block, window)
    assert sorted(epoch(found, number)) == list(range(sum(sizes)))


@settings(max_examples=50, deadline=None)
@given(SEEDS, BLOCKS, WINDOWS)
def test_weights_say_how_often_samples_come(seed: int, block: int, window: int) -> None:
    sizes, weights = [30, 0, 21, 40], [1.0, 5.0, 2.0, 0.5]
    found = Order(sizes, weights, seed=seed, block=block, window=window)
    assert found.epoch_size == 30 + 42 + 20
    first, second = Counter(epoch(found, 0)), Counter(epoch(found, 1))
    assert [first[sample] for sample in range(51)] == [1] * 30 + [2] * 21
    assert first[60] + second[60] == 1
    both = first + second
    assert [both[sample] for sample in range(91)] == [2] * 30 + [4] * 21 + [1] * 40


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.floats(0.01, 5.0), SEEDS)
def test_any_weight_uses_sequences_equally_often_over_epochs(
    size: int, weight: float, seed: int
) -> None:
    found = Order([size], [weight], seed=seed, block=7, window=2)
    times = Counter(found.samples(range(3 * found.epoch_size)).tolist())
    counts = [times[sample] for sample in range(size)]
    assert sum(counts) == 3 * max(1, round(weight * size))
    assert max(counts) - min(counts) <= 1


@settings(max_examples=50, deadline=None)  # windows of one sample are slow
@given(SIZES, SEEDS, BLOCKS, WINDOWS, st.data())
def test_order_does_not_depend_on_where_reading_begins_or_how_much_is_read(
    sizes: list[int], seed: int, block: int, window: int, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 3.0), min_size=len(sizes), max_size=len(sizes)))
    found = Order(sizes, weights, seed=seed, block=block, window=window)
    stop = 3 * found.epoch_size
    whole = found.samples(range(stop)).tolist()
    cuts = sorted({0, stop, *data.draw(st.lists(st.integers(0, stop), max_size=5))})
    parts = [found.samples(range(start, end)) for start, end in pairwise(cuts)]
    assert np.concatenate(parts).tolist() == whole
    position = data.draw(st.integers(0, stop - 1))
    assert found.samples(range(position, position + 1)).tolist() == [whole[position]]


@given(SIZES, SEEDS, BLOCKS, WINDOWS, st.integers(0, 2000))
def test_window_touches_few_shards(
    sizes: list[int], seed: int, block: int, window: int, position: int
) -> None:
    found = equal_weights(sizes, seed, block, window)
    positions = found.window(position)
    assert position in positions
    assert len(positions) <= block * window
    assert len(np.unique(found.samples(positions) // block)) <= 2 * window + 2


@given(SEEDS, BLOCKS, WINDOWS, st.integers(0, 2000))
def test_window_of_weighted_sources_touches_few_more_shards(
    seed: int, block: int, window: int, position: int
) -> None:
    sizes, weights = [97, 0, 200, 31], [1.3, 1.0, 0.4, 3.0]
    found = Order(sizes, weights, seed=seed, block=block, window=window)
    shards = np.unique(found.samples(found.window(position)) // block)
    # Each of the three sources is a circle that begins anywhere, read up to four times an epoch.
    assert len(shards) <= 2 * window + 2 * (3 + 2 + 2 + 4)


@given(SIZES, SEEDS, BLOCKS, WINDOWS, st.integers(0, 2000), st.data())
def test_upcoming_is_what_the_window_behind_reads(
    sizes: list[int], seed: int, block: int, window: int, position: int, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 3.0), min_size=len(sizes), max_size=len(sizes)))
    found = Order(sizes, weights, seed=seed, block=block, window=window)
    behind = found.window(found.window(position).stop)
    assert behind.start == found.window(position).stop
    upcoming = {sample for samples in found.upcoming(position) for sample in samples}
    assert upcoming == set(found.samples(behind).tolist())


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        epoch(equal_weights([97], seed, block, 3), number)
        for seed, number, block in [(0, 0, 10), (0, 1, 10), (1, 0, 10), (0, 0, 11)]
    ]
    assert len({tuple(found) for found in [*orders, range(97)]}) == 5


def test_epochs_have_block_borders_and_a_tail_of_their_own() -> None:
    found = equal_weights([1003], 0, 10, 1)
    epochs = [epoch(found, number) for number in range(10)]
    tails = {frozenset(samples[-3:]) for samples in epochs}
    borders = {min(samples[:10]) % 10 for samples in epochs}
    assert len(tails) > 7
    assert len(borders) > 3


def test_samples_move_as_far_as_by_chance() -> None:
    size = 20_000
    found = np.array(epoch(equal_weights([size], 3, 100, 8), 0))
    displacement = np.abs(found - np.arange(size)).mean() / size
    assert 0.25 < displacement < 0.42  # 1/3 by chance, give or take that of 200 blocks
    follow_on = (np.diff(found) == 1).mean()
    assert follow_on < 4 / 800  # 1/800 by chance: neighbours only meet in one window
    assert (found == np.arange(size)).sum() < 20


def test_windows_are_mixed_in_ways_of_their_own() -> None:
    found = equal_weights([4000], 0, 1000, 1)
    within = [np.argsort(found.samples(range(s, s + 1000))).tolist() for s in range(0, 4000, 1000)]
    assert len({tuple(places) for places in within}) == 4


def test_a_trillion_samples_cost_nothing() -> None:
    tracemalloc.start()
    found = Order([10**12, 7 * 10**11], [1.0, 0.5], seed=0, block=8000, window=16)
    start = 5 * found.epoch_size - 50
    samples = found.samples(range(start, start + 100))
    found.upcoming(start)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(samples)) == 100
    assert (samples >= 0).all()
    assert (samples < 17 * 10**11).all()
    assert peak_bytes < 1_000_000


def test_order_stays_what_it_was() -> None:
    """Who resumes with another release goes on in the same order."""
    found = Order([1000, 500], [1.0, 1.5], seed=7, block=64, window=4)
    assert found.samples(range(2000, 2006)).tolist() == [42, 329, 642, 1201, 621, 318]
    digest = order.chain("00" * 32, found.samples(range(4000)))
    assert digest == "6e1624f1011ac367f3b8eece9c5e2955846b7ecf0589605d32e0531506c836c8"


def test_nothing_to_order_and_missing_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="no sequences"):
        Order([0, 0], [1.0, 1.0], seed=0, block=1, window=1)
    with pytest.raises(ValueError, match="2 sources have only 1 weights"):
        Order([1, 1], [1.0], seed=0, block=1, window=1)


def test_sources_without_shards_may_have_weights() -> None:
    assert sorted(epoch(Order([5], [1.0, 2.0], seed=0, block=2, window=2), 0)) == [0, 1, 2, 3, 4]


@given(st.lists(st.integers(0, 2**62), max_size=20))
def test_chain_is_the_hash_of_big_endian_numbers(samples: list[int]) -> None:
    rolling = hashlib.sha256(bytes.fromhex("ab" * 32))
    for sample in samples:
        rolling.update(sample.to_bytes(8, "big"))
    assert order.chain("ab" * 32, np.array(samples, dtype=np.int64)) == rolling.hexdigest()


def test_chain_depends_on_the_order() -> None:
    assert order.chain("00", [1, 2]) != order.chain("00", [2, 1])


def test_chain_goes_on_from_where_it_was() -> None:
    first, other = order.chain("00", [1, 2]), order.chain("00", [1, 3])
    assert order.chain(first, [4]) == order.chain(order.chain("00", [1, 2]), [4])
    assert order.chain(first, [4]) != order.chain(other, [4])
