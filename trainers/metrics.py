"""Task metrics, each from the library that defines it; all are better when higher."""

import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import accuracy_score, f1_score

from trainers.task_config import METRICS_OF_TASK, Metric, TaskType


def score(task: TaskType, truth: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
    """Every metric of the task.

    Args:
        task: what kind of labels these are.
        truth: label names, or for token classification lists of them, one list a sentence.
        predicted: the same shape.
    """
    return {name: _METRICS[name](truth, predicted) for name in METRICS_OF_TASK[task]}


def _accuracy(truth: Sequence[Any], predicted: Sequence[Any]) -> float:
    if truth and isinstance(truth[0], list):
        truth, predicted = list(chain(*truth)), list(chain(*predicted))
    return float(accuracy_score(truth, predicted))


def _macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    return float(f1_score(truth, predicted, average="macro", zero_division=0))


def _entity_f1(truth: Sequence[list[str]], predicted: Sequence[list[str]]) -> float:
    """Micro F1 over whole entities, as the CoNLL-2003 script counts them."""
    from seqeval.metrics import f1_score as entity_f1_score

    with warnings.catch_warnings():
        # A model that predicts no entity scores zero; that is an answer, not a mistake.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        return float(entity_f1_score(list(truth), list(predicted), zero_division=0))


_METRICS: dict[Metric, Callable[[Sequence[Any], Sequence[Any]], float]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "entity_f1": _entity_f1,
}
