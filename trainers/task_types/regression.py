"""Texts, or pairs of texts, that have a number."""

import math
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
    require_text,
    with_labels,
)


class Regression(TextType):
    """One number a text."""

    head = AutoModelForSequenceClassification
    constant = "mean"

    @classmethod
    def label_of(cls, row: Mapping[str, Any], config: TaskDataConfig) -> float:
        """The number."""
        require_text(row, config)
        try:
            number = float(row["label"])
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{config.label} is {row['label']!r}, which is no number")
        return number

    @classmethod
    def label_names(cls, labels: Iterable[Any]) -> list[str]:
        """None: but the numbers must differ, or there is nothing to learn."""
        if len(set(labels)) < 2:
            raise DataError("all rows have the same number")
        return []

    def configure(self, network: Network) -> dict[str, Any]:
        """With one output, which is the number."""
        return with_labels(network, ["LABEL_0"], "regression")

    def target(self, label: Any) -> NDArray[Any]:
        """The number."""
        return np.asarray(label, dtype=np.float32)

    def loss(
        self, logits: Tensor, targets: Tensor, *, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        """Mean squared error."""
        return functional.mse_loss(logits.float().squeeze(-1), targets)

    def activate(self, logits: Tensor) -> Tensor:
        """The number as it is."""
        return logits

    def predictions(self, outputs: Sequence[NDArray[Any]], rows: Encoded) -> list[Prediction]:
        """The numbers."""
        return [Prediction(float(row[0]), None) for row in outputs]

    def score(self, truth: Sequence[Any], found: Sequence[Prediction]) -> dict[str, float]:
        """Pearson's and Spearman's correlation, mean squared error."""
        return metrics.of_numbers(truth, [one.label for one in found])
