"""Is one model better than another, or was it luck with these rows? Paired tests. Pure."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Resampled = Callable[[Values], Values]
"""A metric of one model: of how often rows count, shape (resamples, rows), its values, shape
(resamples,); NaN where such rows do not define it."""

_CELLS_AT_ONCE = 1 << 19
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Gain:
    """How much better a model is than another on the same rows."""

    value: float
    """Of the metric, turned so that more is better."""
    low: float
    high: float
    """Interval at the confidence that was asked for, two-sided."""
    p: float
    """Of a gain no greater than needed: how likely such rows are if there is none."""
    rows: int

    def exceeds(self, needed: float) -> bool:
        """Whether the model is better by more than this, rounding aside."""
        return self.value > needed and not math.isclose(self.value, needed)


def bootstrap(
    challenger: Resampled,
    rival: Resampled,
    rows: int,
    *,
    differing: int,
    sign: float,
    needed: float,
    confidence: float,
    resamples: int,
    seed: int,
) -> Gain:
    """The paired percentile bootstrap: both models on the same rows, drawn with replacement.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", 13.3; of pairs of
    systems, Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation".

    Args:
        challenger: the new model.
        rival: the other.
        rows: that both were asked about.
        differing: rows of which the two say different things. Where they are few, draws tell too
            little: that the model is better in all of them has a chance of 0.5 each, as in the sign
            test, and p of any gain is no less.
        sign: -1 where less of the metric is better.
        needed: the gain must be greater; less than 0 is how much worse the model may be.
        confidence: of the interval.
        resamples: how often rows are drawn.
        seed: of the draws.
    """
    once = np.ones((1, rows))
    (own,), (other,) = challenger(once), rival(once)
    rounding = _ROUNDING * max(abs(own), abs(other))
    gains = np.concatenate(
        [
            sign * (challenger(counts) - rival(counts))
            for counts in _draws(rows, resamples, np.random.default_rng(seed))
        ]
    )
    # What a resample does not define is no sign of a gain.
    no_gain = np.count_nonzero(~(gains > needed + rounding))
    p = (no_gain + 1) / (resamples + 1)
    value = float(sign * (own - other))
    tail = (1.0 - confidence) / 2
    defined = gains[~np.isnan(gains)]
    low, high = np.quantile(defined, [tail, 1.0 - tail]) if len(defined) else (np.nan, np.nan)
    return Gain(
        value=0.0 if abs(value) <= rounding else value,
        low=float(low),
        high=float(high),
        p=p if needed < 0 else max(p, 0.5**differing),
        rows=rows,
    )


def _draws(rows: int, resamples: int, random: np.random.Generator) -> Iterator[Values]:
    """How often each row is drawn, shape (resamples, rows), some resamples at a time."""
    at_once = max(1, _CELLS_AT_ONCE // rows)
    for first in range(0, resamples, at_once):
        number = min(at_once, resamples - first)
        drawn = random.integers(rows, size=(number, rows), dtype=np.int64)
        drawn += np.arange(number, dtype=np.int64)[:, None] * rows
        counts = np.bincount(drawn.ravel(), minlength=number * rows)
        yield counts.reshape(number, rows).astype(np.float64)


def randomization(both: Resampled, rows: int, *, sign: float, resamples: int, seed: int) -> float:
    """P of approximate randomisation: of each row, who said what is drawn anew.

    Source: Noreen 1989, "Computer-Intensive Methods for Testing Hypotheses"; Yeh 2000,
    "More Accurate Tests for the Statistical Significance of Result Differences".

    Args:
        both: the metric of all that was said: the challenger's rows, then the rival's.
        rows: that both were asked about.
        sign: -1 where less of the metric is better.
        resamples: how often is drawn.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)

    def gains(own: Values) -> Values:
        """Where a row's place in `own` is 1, each is taken to have said what it said."""
        kept, changed = np.hstack([own, 1 - own]), np.hstack([1 - own, own])
        return sign * (both(kept) - both(changed))

    (seen,) = gains(np.ones((1, rows)))
    rounding = _ROUNDING * abs(both(np.ones((1, 2 * rows)))[0])
    at_once = max(1, _CELLS_AT_ONCE // (2 * rows))
    as_great = 0
    for first in range(0, resamples, at_once):
        shape = (min(at_once, resamples - first), rows)
        drawn = gains(random.integers(2, size=shape).astype(np.float64))
        as_great += int(np.count_nonzero(~(drawn < seen - rounding)))
    return (as_great + 1) / (resamples + 1)


def mcnemar(challenger_right: NDArray[np.bool_], rival_right: NDArray[np.bool_]) -> float:
    """P of the exact one-sided test, of the rows that one model alone has right.

    Source: McNemar 1947, doi:10.1007/BF02295996; exact by the binomial distribution.
    """
    from scipy.stats import binomtest

    won = int(np.count_nonzero(challenger_right & ~rival_right))
    lost = int(np.count_nonzero(rival_right & ~challenger_right))
    if won + lost == 0:
        return 1.0
    return float(binomtest(won, won + lost, alternative="greater").pvalue)
