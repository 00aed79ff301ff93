"""A task's metric as a function of how often each test row counts: what resampling asks for.

With every row counted once each of them is what `TaskType.score` gives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers import metrics
from trainers.task_types import TaskType
from trainers.task_types.answers import QuestionAnswering
from trainers.task_types.base import Prediction
from trainers.task_types.classification import Classification, MultiLabel
from trainers.task_types.generation import Generation
from trainers.task_types.regression import Regression
from trainers.task_types.words import TokenClassification

Values = NDArray[np.float64]
Resampled = Callable[[Values], Values]
"""Takes how often rows count, shape (resamples, rows); gives the metric, shape (resamples,), NaN
where such rows do not define it."""

_ROUNDING = 1e-12
_EXACT_ROWS = 1 << 20
"""Of fewer rows a row's count times twice the number of others is exact in single precision, unless
it is drawn eight times."""


@dataclass(frozen=True)
class Sums:
    """A metric that follows from sums over rows."""

    of_rows: Values
    """Shape (rows, sums)."""
    value: Resampled
    """Of sums of shape (resamples, sums)."""

    def __call__(self, counts: Values) -> Values:
        """The metric of each resample."""
        return self.value(counts @ self.of_rows)


def resampled(kind: TaskType, truth: Sequence[Any], found: Sequence[Prediction]) -> Resampled:
    """The task's metric of these predictions.

    Args:
        kind: with the task's metric.
        truth: labels of the rows.
        found: what a model says of them.
    """
    said, metric = [one.label for one in found], kind.task.metric
    match kind:
        case Classification() | MultiLabel() if metric == "auroc":
            columns = [set(label) if isinstance(label, list) else {label} for label in truth]
            return _area(_one_hot(columns, kind.labels), np.array([p.probabilities for p in found]))
        case Classification():
            return _of_labels(truth, said, metric, kind.labels)
        case MultiLabel():
            true, claimed = (
                _one_hot([set(names) for names in side], kind.labels) for side in (truth, said)
            )
            return _of_label_sets(true, claimed, metric)
        case Regression():
            return _of_numbers(np.asarray(truth, float), np.asarray(said, float), metric)
        case TokenClassification():
            return _of_words(truth, said, metric)
        case QuestionAnswering():
            right = [label["answers"] for label in truth]
            pairs = zip(right, said, strict=True)
            return _mean([metrics.of_spans([one], [text])[metric] for one, text in pairs])
        case Generation() if metric == "loss":
            return _mean([np.nan if one.loss is None else one.loss for one in found])
        case Generation():
            pairs = zip(truth, said, strict=True)
            return _mean([metrics.of_texts([one], [text])[metric] for one, text in pairs])
    raise AssertionError(kind)


def differing(kind: TaskType, one: Sequence[Prediction], other: Sequence[Prediction]) -> int:
    """Rows of which two models say different things, as far as the task's metric can tell."""

    def seen(prediction: Prediction) -> Any:
        match kind.task.metric:
            case "auroc":
                return prediction.probabilities
            case "loss":
                return prediction.loss
        return prediction.label

    return sum(seen(own) != seen(others) for own, others in zip(one, other, strict=True))


def right(kind: TaskType, truth: Sequence[Any], found: Sequence[Prediction]) -> NDArray[np.bool_]:
    """Which rows are right, where the task's metric is the share of those."""
    metric = resampled(kind, truth, found)
    assert isinstance(metric, Sums)
    of_rows: NDArray[np.bool_] = metric.of_rows[:, 0] == 1.0
    return of_rows


def _mean(values: Sequence[float] | Values) -> Sums:
    return _ratio(values, np.ones(len(values)))


def _ratio(parts: Sequence[float] | Values, of: Sequence[float] | Values) -> Sums:
    """Of two sums; 0 where the second is 0."""
    return Sums(np.column_stack([parts, of]).astype(float), lambda s: _divided(s[:, 0], s[:, 1]))


def _divided(parts: Values, of: Values) -> Values:
    return np.divide(parts, of, out=np.zeros_like(parts), where=of != 0)


def _one_hot(labels: Sequence[set[str]], names: Sequence[str]) -> Values:
    """Shape (rows, labels)."""
    return np.array([[float(name in of_row) for name in names] for of_row in labels])


def _of_labels(
    truth: Sequence[str], found: Sequence[str], metric: str, names: Sequence[str]
) -> Sums:
    is_right = np.array([one == other for one, other in zip(truth, found, strict=True)], float)
    if metric in ("accuracy", "micro_f1"):  # with one label a row they are the same
        return _mean(is_right)
    true, said = (_one_hot([{label} for label in side], names) for side in (truth, found))
    if metric == "matthews":
        return Sums(np.column_stack([is_right, true, said]), _matthews)
    return Sums(np.column_stack([true * said, true + said]), _f1_of_labels_there)


def _f1_of_labels_there(sums: Values) -> Values:
    """The mean over the labels that are true, or said, of a row at least."""
    both, either = np.split(sums, 2, axis=1)
    return _divided(_divided(2 * both, either).sum(1), (either > 0).sum(1).astype(float))


def _matthews(sums: Values) -> Values:
    """Of several labels: Gorodkin 2004, eq. 8."""
    right, (true, said) = sums[:, 0], np.split(sums[:, 1:], 2, axis=1)
    rows = true.sum(1)
    of_true, of_said = (rows**2 - (side**2).sum(1) for side in (true, said))
    return _divided(right * rows - (true * said).sum(1), np.sqrt(of_true * of_said))


def _of_label_sets(truth: Values, found: Values, metric: str) -> Sums:
    if metric == "accuracy":
        return _mean((truth == found).all(1).astype(float))
    if metric == "micro_f1":
        return _ratio(2 * (truth * found).sum(1), (truth + found).sum(1))

    def macro_f1(sums: Values) -> Values:
        both, either = np.split(sums, 2, axis=1)
        of_labels: Values = _divided(2 * both, either).mean(1)
        return of_labels

    return Sums(np.column_stack([truth * found, truth + found]), macro_f1)


def _of_words(truth: Sequence[list[str]], found: Sequence[list[str]], metric: str) -> Sums:
    """Of words, or of entities: whole sentences are drawn, what is in one hangs together."""
    if metric == "accuracy":
        right = [
            float(sum(one == other for one, other in zip(*of_row, strict=True)))
            for of_row in zip(truth, found, strict=True)
        ]
        return _ratio(right, [float(len(words)) for words in truth])
    from seqeval.metrics.sequence_labeling import get_entities

    true, said = ([set(get_entities(words)) for words in side] for side in (truth, found))
    both = np.array([len(one & other) for one, other in zip(true, said, strict=True)], float)
    of_true, of_said = (np.array([len(of_row) for of_row in side], float) for side in (true, said))
    match metric:
        case "entity_precision":
            return _ratio(both, of_said)
        case "entity_recall":
            return _ratio(both, of_true)
    return _ratio(2 * both, of_true + of_said)


def _of_numbers(truth: Values, found: Values, metric: str) -> Resampled:
    match metric:
        case "mse":
            return _mean((truth - found) ** 2)
        case "pearson":
            x, y = truth - truth.mean(), found - found.mean()
            of_rows = np.column_stack([np.ones_like(x), x, y, x * x, y * y, x * y])
            return Sums(of_rows, lambda sums: _correlation(*sums.T))

    def spearman(counts: Values) -> Values:
        x, y = (_ranks(counts, *_ties(side)) for side in (truth, found))
        middle = (counts.sum(1, keepdims=True) + 1) / 2
        x, y = x - middle, y - middle
        sums = [(counts * one).sum(1) for one in (np.ones_like(x), x, y, x * x, y * y, x * y)]
        return _correlation(*sums)

    return spearman


def _correlation(n: Values, x: Values, y: Values, xx: Values, yy: Values, xy: Values) -> Values:
    """Pearson's, of sums; of a constant prediction 0, of a constant truth none."""
    of_x, of_y = n * xx - x**2, n * yy - y**2
    x_differs, y_differs = of_x > _ROUNDING * n * xx, of_y > _ROUNDING * n * yy
    found = np.zeros_like(n)
    np.divide(n * xy - x * y, np.sqrt(np.abs(of_x * of_y)), out=found, where=x_differs & y_differs)
    return np.where(x_differs, found, np.nan)


def _ties(values: Values) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in ascending order, and where in it each group of equal values begins."""
    order = np.argsort(values, kind="stable")
    begins = np.flatnonzero(np.diff(values[order], prepend=-np.inf) != 0)
    return order, begins


def _ranks(counts: Values, order: NDArray[np.int64], begins: NDArray[np.int64]) -> Values:
    """Of each row among all that count; equal values share the mean of their ranks."""
    of_groups = np.add.reduceat(counts[:, order], begins, axis=1)
    ranks = np.cumsum(of_groups, axis=1) - of_groups + (of_groups + 1) / 2
    found = np.empty_like(counts)
    found[:, order] = np.repeat(ranks, np.diff(begins, append=len(order)), axis=1)
    return found


def _area(truth: Values, probabilities: Values) -> Resampled:
    """Under the ROC curve, the mean over labels that have one (Hanley and McNeil 1982).

    Of each label the share of pairs, a row with it and one without, that are in the right order; a
    tie counts half.
    """
    plans = [
        _pairs(true == 1, scores) for true, scores in zip(truth.T, probabilities.T, strict=True)
    ]

    def area(counts: Values) -> Values:
        # Whole rows are gathered below; what is counted is exact in half the bytes, too.
        kind = np.float32 if counts.shape[1] < _EXACT_ROWS else np.float64
        of_rows = np.ascontiguousarray(counts.T, dtype=kind)
        areas, has_curve = [], []
        for with_label, without_label, first, last in plans:
            is_untied = np.array_equal(first, last)
            below = np.zeros((len(without_label) + 1, len(counts)), dtype=kind)
            np.cumsum(of_rows[without_label], axis=0, out=below[1:])
            own = of_rows[with_label]
            pairs = own.sum(0, dtype=np.float64) * below[-1]
            reached = below[first]
            reached += reached if is_untied else below[last]
            in_order = (own * reached).sum(0, dtype=np.float64) / 2
            areas.append(_divided(in_order, pairs))
            has_curve.append(pairs > 0)
        curves = np.sum(has_curve, axis=0)
        return np.where(curves > 0, _divided(np.sum(areas, axis=0), curves.astype(float)), np.nan)

    return area


def _pairs(has_label: NDArray[np.bool_], scores: Values) -> tuple[NDArray[np.int64], ...]:
    """Rows with the label; those without, ascending; of each of the former, how many of the latter
    score less, and how many no more.
    """
    with_label, without_label = np.flatnonzero(has_label), np.flatnonzero(~has_label)
    without_label = without_label[np.argsort(scores[without_label], kind="stable")]
    first, last = (
        np.searchsorted(scores[without_label], scores[with_label], side)
        for side in ("left", "right")
    )
    return with_label, without_label, first, last
