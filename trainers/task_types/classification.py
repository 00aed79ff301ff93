"""Texts, or pairs of texts, that have one of several labels, or any number of them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from trainers import metrics
from trainers.errors import DataError
from trainers.task_config import TaskDataConfig
from trainers.task_types.base import (
    Encoded,
    Network,
    Prediction,
    TextType,
    at_least_two,
    require_text,
    with_labels,
)

_LIKELY = 0.5
"""Least probability of a label that a text has, where it may have several."""


class Classification(TextType):
    """One label a text."""

    head = AutoModelForSequenceClassification
    has_labels = True

    @classmethod
    def label_of(cls, row: Mapping[str, Any], config: TaskDataConfig) -> str:
        """The label's name, also where the file has a number."""
        require_text(row, config)
        if isinstance(row["label"], list):
            raise DataError(
                f"{config.label} is a list; set multi_label: true, or for labels of words "
                "type: token_classification"
            )
        return str(row["label"])

    @classmethod
    def label_names(cls, labels: Iterable[Any]) -> list[str]:
        """All labels, sorted; one that training rows lack cannot be learnt but counts in scores."""
        return at_least_two(set(labels))

    @classmethod
    def stratum_of(cls, label: Any) -> str | None:
        """The label."""
        return str(label)

    def configure(self, network: Network) -> dict[str, Any]:
        """With the labels' names."""
        return with_labels(network, self.labels, "single_label_classification")

    def target(self, label: Any) -> NDArray[Any]:
        """The label's number."""
        return np.asarray(self.labels.index(label))

    def weights(self, labels: Sequence[Any]) -> NDArray[np.float32] | None:
        """Of each label; `balanced` is rows / (labels * rows with the label), as in scikit-learn.

        A label of no training row has 1.
        """
        counts = Counter(labels)
        balanced = {name: len(labels) / (len(counts) * count) for name, count in counts.items()}
        return stated_weights(self, balanced)

    def mass(self, targets: Tensor, weights: Tensor | None) -> float:
        """The rows' weights together."""
        return float(len(targets) if weights is None else weights[targets.to(weights.device)].sum())

    def loss(
        self, logits: Tensor, targets: Tensor, *, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(
            logits.float(), targets, weight=weights, label_smoothing=smoothing
        )

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities."""
        return logits.softmax(-1)

    def predictions(self, outputs: Sequence[NDArray[Any]], rows: Encoded) -> list[Prediction]:
        """The likeliest label of each text."""
        return [
            Prediction(self.labels[int(row.argmax())], float(row.max()), row.tolist())
            for row in outputs
        ]

    def score(self, truth: Sequence[Any], found: Sequence[Prediction]) -> dict[str, float]:
        """Accuracy, F1, Matthews' correlation, area under the curve."""
        is_true = np.array([[name == label for name in self.labels] for label in truth])
        probabilities = np.array([one.probabilities for one in found])
        return metrics.of_labels(truth, [one.label for one in found]) | metrics.of_ranking(
            is_true, probabilities
        )


class MultiLabel(TextType):
    """Any number of labels a text."""

    head = AutoModelForSequenceClassification
    has_labels = True

    @classmethod
    def label_of(cls, row: Mapping[str, Any], config: TaskDataConfig) -> list[str]:
        """The labels' names, sorted; of a string, what stands between its separators."""
        require_text(row, config)
        label = row["label"]
        if isinstance(label, str) and config.label_separator is not None:
            label = [part.strip() for part in label.split(config.label_separator)]
        if not isinstance(label, list) or None in label:
            raise DataError(
                f"{config.label} is no list of labels; with multi_label: true it is one, or "
                "data.label_separator says what stands between the labels in a text"
            )
        return sorted({str(name) for name in label} - {""})

    @classmethod
    def label_names(cls, labels: Iterable[Any]) -> list[str]:
        """All labels, sorted."""
        return at_least_two({name for label in labels for name in label})

    def configure(self, network: Network) -> dict[str, Any]:
        """With the labels' names."""
        return with_labels(network, self.labels, "multi_label_classification")

    def target(self, label: Any) -> NDArray[Any]:
        """1 for the labels a text has, 0 for the others."""
        return np.array([name in label for name in self.labels], dtype=np.float32)

    def weights(self, labels: Sequence[Any]) -> NDArray[np.float32] | None:
        """Of texts with a label against those without; `balanced` makes both weigh the same."""
        counts = Counter(name for label in labels for name in label)
        balanced = {name: (len(labels) - count) / count for name, count in counts.items()}
        return stated_weights(self, {name: value or 1.0 for name, value in balanced.items()})

    def loss(
        self, logits: Tensor, targets: Tensor, *, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """Binary cross-entropy, the mean over rows and labels."""
        smooth = targets * (1.0 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(
            logits.float(), smooth, pos_weight=weights
        )

    def activate(self, logits: Tensor) -> Tensor:
        """A probability for each label."""
        return logits.sigmoid()

    def predictions(self, outputs: Sequence[NDArray[Any]], rows: Encoded) -> list[Prediction]:
        """The labels that are likelier than not."""
        found = []
        for row in outputs:
            chosen = np.flatnonzero(row >= _LIKELY)
            names, scores = [self.labels[n] for n in chosen], [float(row[n]) for n in chosen]
            found.append(Prediction(names, scores, row.tolist()))
        return found

    def score(self, truth: Sequence[Any], found: Sequence[Prediction]) -> dict[str, float]:
        """Share of texts with exactly the right labels, F1, area under the curve."""
        is_true = np.array([self.target(label) for label in truth], dtype=np.bool_)
        is_found = np.array([self.target(one.label) for one in found], dtype=np.bool_)
        probabilities = np.array([one.probabilities for one in found])
        return metrics.of_label_sets(is_true, is_found) | metrics.of_ranking(is_true, probabilities)


def stated_weights(
    kind: Classification | MultiLabel, balanced: Mapping[str, float]
) -> NDArray[np.float32] | None:
    """What `task.class_weights` asks for, in the order of the labels; None where it does not."""
    asked = kind.task.class_weights
    if asked is None:
        return None
    stated = balanced if asked == "balanced" else asked
    unknown = sorted(set(stated) - set(kind.labels))
    if unknown:
        raise DataError(
            f"class_weights names {', '.join(unknown)}; the labels are {', '.join(kind.labels)}"
        )
    return np.array([stated.get(name, 1.0) for name in kind.labels], dtype=np.float32)
