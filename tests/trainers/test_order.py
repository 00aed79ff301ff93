from hypothesis import given
from hypothesis import strategies as st

from trainers import order

SEEDS = st.integers(0, 2**31)
SIZES = st.integers(1, 300)


def epoch(number: int, num_samples: int, seed: int) -> list[int]:
    start = number * num_samples
    return [
        order.sample_at(position, num_samples=num_samples, seed=seed)
        for position in range(start, start + num_samples)
    ]


@given(SIZES, SEEDS, st.integers(0, 5))
def test_every_sample_comes_exactly_once_an_epoch(num_samples: int, seed: int, number: int) -> None:
    assert sorted(epoch(number, num_samples, seed)) == list(range(num_samples))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [epoch(0, 97, 0), epoch(1, 97, 0), epoch(0, 97, 1), list(range(97))]
    assert len({tuple(found) for found in orders}) == 4


def test_a_trillion_samples_cost_nothing() -> None:
    found = {order.sample_at(p, num_samples=10**12, seed=0) for p in range(100)}
    assert len(found) == 100
    assert all(0 <= sample < 10**12 for sample in found)


def test_chain_depends_on_the_order() -> None:
    assert order.chain("00", [1, 2]) != order.chain("00", [2, 1])


def test_chain_goes_on_from_where_it_was() -> None:
    first, other = order.chain("00", [1, 2]), order.chain("00", [1, 3])
    assert order.chain(first, [4]) == order.chain(order.chain("00", [1, 2]), [4])
    assert order.chain(first, [4]) != order.chain(other, [4])
