"""What the trials of a search tell: what varied, the best so far, what mattered. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.model_selection import KFold

from trainers.task_config import LOWER_IS_BETTER, Metric, merit_of
from workflows.final import last_point

LEAST_TRIALS = 8
LEAST_VARYING = 2
"""Fewer tell nothing about what mattered."""

_FOLDS = 4
_TREES = 50
_REPEATS = 10
_WIDE = 10.0
"""Numbers whose largest is not so many times the smallest are of one magnitude."""

Trial = Mapping[str, Any]


@dataclass(frozen=True)
class Dimension:
    """A hyperparameter that varied, with its value in each trial; None where a trial had none."""

    name: str
    values: list[Any]

    @property
    def is_number(self) -> bool:
        """Whether values have distances, not only names."""
        return all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in self.there
        )

    @property
    def is_logarithmic(self) -> bool:
        """Whether values are spread over magnitudes: then their logarithms lie more evenly."""
        if not self.is_number or min(self.there) <= 0 or self._ratio < _WIDE:
            return False
        values = np.array(self.there, dtype=float)
        return _lopsidedness(np.log10(values)) < _lopsidedness(values)

    @property
    def there(self) -> list[Any]:
        """Values without gaps."""
        return [value for value in self.values if value is not None]

    @property
    def choices(self) -> list[str]:
        """Names of values that are no numbers, sorted."""
        return sorted({str(value) for value in self.there})

    @property
    def codes(self) -> NDArray[np.float64]:
        """Each trial's value as a number, names by their place; NaN where there is none."""
        if not self.is_number:
            return np.array(
                [math.nan if v is None else self.choices.index(str(v)) for v in self.values]
            )
        found = np.array([math.nan if v is None else float(v) for v in self.values])
        return np.log10(found) if self.is_logarithmic else found

    @property
    def places(self) -> NDArray[np.float64]:
        """Each trial's value between 0 and 1; NaN where there is none."""
        codes = self.codes
        low, high = np.nanmin(codes), np.nanmax(codes)
        return (codes - low) / (high - low) if high > low else codes * 0 + 0.5

    @property
    def _ratio(self) -> float:
        return float(max(self.there) / min(self.there))


def _lopsidedness(values: NDArray[np.float64]) -> float:
    """How far the median is from the middle."""
    place = (np.median(values) - values.min()) / (values.max() - values.min())
    return abs(float(place) - 0.5)


@dataclass(frozen=True)
class Importance:
    """How much worse a forest predicts trials that it has not seen, without a hyperparameter.

    In units of the metric.
    """

    names: list[str]
    """The most important first."""
    means: list[float]
    spreads: list[float]
    """Standard deviation over the parts that were held back in turn."""
    error: float
    """Mean error of the forest on trials held back."""
    error_of_mean: float
    """The same, of the mean of the others: who is no better has learnt nothing."""
    trials: int

    @property
    def says_something(self) -> bool:
        """Whether the forest has learnt more than the mean."""
        return self.error < self.error_of_mean


def scored(trials: Sequence[Trial], metric: Metric) -> list[Trial]:
    """Those that have a score, in their order."""
    return [trial for trial in trials if math.isfinite(merit(trial, metric))]


def score(trial: Trial, metric: Metric) -> float:
    """The metric after a trial's last epoch."""
    return float(trial["history"][-1][metric])


def merit(trial: Trial, metric: Metric) -> float:
    """The same, turned so that higher is better; -inf where there is none."""
    return merit_of(metric, trial["history"][-1]) if trial["history"] else -math.inf


def sign_of(metric: Metric) -> float:
    """-1 where less is better."""
    return -1.0 if metric in LOWER_IS_BETTER else 1.0


def varying(trials: Sequence[Trial]) -> list[Dimension]:
    """Hyperparameters that are not the same in all trials, as they were in the end."""
    points = [last_point(trial) for trial in trials]
    names = dict.fromkeys(name for point in points for name in point)
    found = [Dimension(name, [point.get(name) for point in points]) for name in names]
    return [one for one in found if one.there and len({repr(v) for v in one.values}) > 1]


def best_so_far(trials: Sequence[Trial], metric: Metric) -> list[float]:
    """The best score of the trials up to each one."""
    found: list[float] = []
    best = -math.inf
    for trial in trials:
        if merit(trial, metric) > best:
            best = merit(trial, metric)
            found.append(score(trial, metric))
        else:
            found.append(found[-1])
    return found


def importance(trials: Sequence[Trial], metric: Metric) -> Importance | None:
    """What mattered in a search; None where too few trials finished or too little varied.

    By permutation of a random forest (Breiman 2001, "Random Forests", section 10), each part of the
    trials predicted from the others: on those it was grown from, a forest knows every answer.
    """
    found = [one for one in scored(trials, metric) if one["status"] == "finished"]
    dimensions = varying(found)
    if len(found) < LEAST_TRIALS or len(dimensions) < LEAST_VARYING:
        return None
    columns = np.nan_to_num(np.column_stack([one.codes for one in dimensions]), nan=-99.0)
    values = np.array([score(trial, metric) for trial in found])
    losses, errors, errors_of_mean = [], [], []
    for others, held in KFold(_FOLDS, shuffle=True, random_state=0).split(columns):
        forest = RandomForestRegressor(_TREES, min_samples_leaf=2, random_state=0)
        forest.fit(columns[others], values[others])
        told = permutation_importance(
            *(forest, columns[held], values[held]),
            scoring="neg_mean_absolute_error",
            n_repeats=_REPEATS,
            random_state=0,
        )
        losses.append(told.importances_mean)
        errors += list(np.abs(forest.predict(columns[held]) - values[held]))
        errors_of_mean += list(np.abs(values[others].mean() - values[held]))
    means, spreads = np.mean(losses, axis=0), np.std(losses, axis=0, ddof=1)
    order = np.argsort(-means, kind="stable")
    return Importance(
        names=[dimensions[n].name for n in order],
        means=means[order].tolist(),
        spreads=spreads[order].tolist(),
        error=float(np.mean(errors)),
        error_of_mean=float(np.mean(errors_of_mean)),
        trials=len(found),
    )
