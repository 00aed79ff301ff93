import math
from collections import deque

import pytest

from trainers.pretrain_config import WatchConfig
from trainers.watch import Watch

CALM = [1.0, 1.1, 0.9, 1.0, 1.1, 0.9, 1.0, 1.1]


def watch(**settings: object) -> Watch:
    config = WatchConfig.model_validate({"window": 8, **settings})
    return Watch(config, deque(CALM), deque(CALM))


@pytest.mark.parametrize(
    ("loss", "norm", "expected"),
    [
        (1.0, 1.0, True),
        (1.3, 1.3, True),
        (0.0, 0.0, True),
        (1.7, 1.0, False),
        (1.0, 1.7, False),
        (math.nan, 1.0, False),
        (1.0, math.inf, False),
    ],
)
def test_leaps_and_what_is_no_number_are_not_accepted(
    loss: float, norm: float, expected: bool
) -> None:
    watched = watch()
    assert watched.accept(loss, norm) is expected
    assert watched.skipped == (not expected)
    assert bool(watched.cause) is not expected


def test_limit_is_so_many_deviations_above_the_mean() -> None:
    # Of CALM the mean is 1.0125 and the deviation 0.0781.
    assert watch(sigma=2.0).accept(1.168, 1.0)
    assert not watch(sigma=2.0).accept(1.169, 1.0)


def test_no_leap_is_seen_before_the_window_is_full() -> None:
    young = Watch(WatchConfig(window=8))
    for value in (*CALM[:7], 100.0):
        assert young.accept(value, value)
    assert not young.accept(math.nan, 1.0)


def test_without_sigma_only_what_is_no_number_is_skipped() -> None:
    assert watch(sigma=None).accept(1e9, 1e9)
    assert not watch(sigma=None).accept(math.nan, 1.0)


def test_skipped_step_does_not_become_what_others_are_judged_by() -> None:
    watched = watch()
    for _ in range(20):
        assert not watched.accept(50.0, 1.0)
    assert list(watched.losses) == CALM


def test_patience_ends_after_so_many_in_a_row() -> None:
    watched = watch(patience=2)
    watched.accept(math.nan, 1.0)
    watched.accept(1.0, 1.0)
    watched.accept(math.nan, 1.0)
    assert not watched.is_at_end_of_patience
    watched.accept(math.nan, 1.0)
    assert watched.is_at_end_of_patience


def test_restored_watch_judges_alike() -> None:
    watched = watch()
    watched.accept(math.nan, 1.0)
    other = Watch.restored(watched.config, watched.state())
    assert other.state() == watched.state()
    assert other.accept(1.7, 1.0) is watched.accept(1.7, 1.0) is False
