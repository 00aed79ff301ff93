"""Paired tests against other implementations, worked examples, and what luck alone brings."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from workflows.significance import Gain, Resampled, bootstrap, mcnemar, randomization

Values = NDArray[np.float64]


def mean_of(values: Values) -> Resampled:
    return lambda counts: counts @ values / counts.sum(1)


def compared(ours: Values, theirs: Values, **settings: float) -> Gain:
    given = {"sign": 1.0, "needed": 0.0, "confidence": 0.95} | settings
    return bootstrap(
        mean_of(ours),
        mean_of(theirs),
        len(ours),
        differing=int((ours != theirs).sum()),
        **given,
        resamples=10_000,
        seed=1,
    )


@pytest.fixture(scope="module")
def scores() -> tuple[Values, Values]:
    random = np.random.default_rng(0)
    theirs = random.normal(0.5, 0.2, size=80)
    return theirs + random.normal(0.03, 0.15, size=80), theirs


def test_interval_is_that_of_scipys_paired_bootstrap(scores: tuple[Values, Values]) -> None:
    gain = compared(*scores)
    expected = stats.bootstrap(
        scores,
        lambda ours, theirs, axis: np.mean(ours, axis) - np.mean(theirs, axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=2,
    ).confidence_interval
    assert gain.value == pytest.approx(np.mean(scores[0]) - np.mean(scores[1]))
    assert (gain.low, gain.high) == pytest.approx(expected, abs=0.002)
    assert gain.rows == 80


def test_p_is_near_that_of_the_paired_t_test(scores: tuple[Values, Values]) -> None:
    expected = stats.ttest_rel(*scores, alternative="greater").pvalue
    assert compared(*scores).p == pytest.approx(expected, abs=0.01)
    shifted = stats.ttest_1samp(scores[0] - scores[1], 0.02, alternative="greater").pvalue
    assert compared(*scores, needed=0.02).p == pytest.approx(shifted, abs=0.02)


def test_p_of_randomisation_is_that_of_scipys_permutation_test(
    scores: tuple[Values, Values],
) -> None:
    both = mean_of(np.concatenate(scores))
    found = randomization(both, 80, sign=1.0, resamples=20_000, seed=1)
    expected = stats.permutation_test(
        scores,
        lambda ours, theirs, axis: np.mean(ours, axis) - np.mean(theirs, axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=20_000,
        rng=2,
    ).pvalue
    assert found == pytest.approx(expected, abs=0.01)
    turned = randomization(both, 80, sign=-1.0, resamples=20_000, seed=1)
    assert turned == pytest.approx(1 - found, abs=0.01)


def test_where_less_is_better_the_gain_is_turned(scores: tuple[Values, Values]) -> None:
    more, less = compared(*scores), compared(*scores, sign=-1.0)
    assert less.value == -more.value
    assert (less.low, less.high) == pytest.approx((-more.high, -more.low))
    assert less.p == pytest.approx(1 - more.p, abs=1e-3)


def test_the_same_twice_and_the_same_seed_give_the_same(scores: tuple[Values, Values]) -> None:
    assert compared(*scores) == compared(*scores)
    same = compared(scores[0], scores[0].copy())
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_what_rows_do_not_define_is_no_sign_of_a_gain() -> None:
    def undefined(counts: Values) -> Values:
        return np.full(len(counts), np.nan)

    def one(counts: Values) -> Values:
        return np.ones(len(counts))

    settings = {"sign": 1.0, "needed": 0.0, "confidence": 0.95}
    assert bootstrap(one, undefined, 5, differing=5, **settings, resamples=100, seed=0).p == 1.0


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (0, 0, 1.0),
        (5, 0, 1 / 32),
        (0, 5, 1.0),
        (9, 1, 11 / 1024),
        (101, 59, stats.binom.sf(100, 160, 0.5)),  # numbers of Agresti's approval ratings
    ],
)
def test_mcnemar_looks_at_the_rows_that_one_alone_has_right(won: int, lost: int, p: float) -> None:
    ours = np.array([True] * won + [False] * lost + [True, False] * 10)
    theirs = np.array([False] * won + [True] * lost + [True, False] * 10)
    assert mcnemar(ours, theirs) == pytest.approx(p)


@pytest.mark.parametrize(("rows", "won", "least"), [(60, 3, 1 / 8), (3, 3, 1 / 8), (1, 1, 1 / 2)])
def test_a_few_rows_prove_little_however_they_were_won(rows: int, won: int, least: float) -> None:
    theirs = np.zeros(rows)
    ours = theirs + (np.arange(rows) < won)
    assert compared(ours, theirs).p == least
    assert compared(ours, theirs, needed=-0.5).p < 0.01  # that it is not much worse is no wonder


def test_rounding_is_no_gain_and_a_small_unit_is_no_rounding() -> None:
    random = np.random.default_rng(0)
    theirs = random.random(50)
    same = compared(theirs + 1e-16, theirs)
    assert (same.value, same.p) == (0.0, 1.0)
    ours = theirs * 1e-14 + 1e-15
    assert compared(ours, theirs * 1e-14).p < 0.01
    gain = Gain(0.8 - 0.7, 0.0, 0.2, 0.01, 10)
    assert gain.value > 0.1
    assert not gain.exceeds(0.1)


@pytest.mark.parametrize(("rows", "alike"), [(60, 0.0), (400, 0.0), (60, 0.85), (400, 0.98)])
def test_luck_alone_is_taken_for_a_gain_no_more_often_than_stated(rows: int, alike: float) -> None:
    random = np.random.default_rng(rows)
    rounds, level = 1000, 0.05
    false = {"bootstrap": 0, "randomization": 0, "mcnemar": 0}
    for number in range(rounds):  # two copies of one model, right on seven rows of ten
        ours, theirs = random.random((2, rows)) < 0.7
        theirs = np.where(random.random(rows) < alike, ours, theirs)
        gain = bootstrap(
            *(mean_of(side.astype(float)) for side in (ours, theirs)),
            rows,
            differing=int((ours != theirs).sum()),
            sign=1.0,
            needed=0.0,
            confidence=0.95,
            resamples=500,
            seed=number,
        )
        both = mean_of(np.concatenate([ours, theirs]).astype(float))
        by_chance = randomization(both, rows, sign=1.0, resamples=500, seed=number)
        false["bootstrap"] += gain.p <= level
        false["randomization"] += by_chance <= level
        false["mcnemar"] += mcnemar(ours, theirs) <= level
    # Three standard deviations of what 1,000 rounds tell of a rate of 0.05.
    assert max(false.values()) <= rounds * level + 3 * (rounds * level * (1 - level)) ** 0.5
    assert false["bootstrap"] > 0  # it can be fooled: the check can fail
