"""What resampling computes of sums is what the metrics say of rows that are repeated as often."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from trainers.resampling import resampled
from trainers.task_config import METRICS_OF_TASK, TaskConfig
from trainers.task_types import TaskType, type_of
from trainers.task_types.base import Prediction

ROWS = 40
LABELS = ["bad", "fine", "good"]
TAGS = ["B-loc", "B-per", "I-per", "O"]
WORDS = ["red", "blue", "green", "old"]

CASES = [(name, metric) for name, known in METRICS_OF_TASK.items() for metric in known]
CASES += [("multi_label", metric) for metric in ("accuracy", "macro_f1", "micro_f1", "auroc")]


def kind_of(name: str, metric: str) -> TaskType:
    is_multi_label = name == "multi_label"
    section: dict[str, Any] = {
        "type": "classification" if is_multi_label else name,
        "metric": metric,
        "data": {"path": "rows.csv", "split": {"test": 0.2, "validation": 0.2}},
    }
    if is_multi_label:
        section |= {"multi_label": True}
    if name == "question_answering":
        section["data"]["text_pair"] = "question"
    labels = {"token_classification": TAGS, "classification": LABELS, "multi_label": LABELS}
    return type_of(TaskConfig.model_validate(section), labels.get(name, []))


def rows_of(name: str, random: np.random.Generator) -> tuple[list[Any], list[Prediction]]:
    """Labels, and predictions that are often right, with ties."""

    def text() -> str:
        return " ".join(random.choice(WORDS, size=random.integers(1, 4)))

    truth: list[Any] = []
    found: list[Prediction] = []
    for _ in range(ROWS):
        is_right = random.random() < 0.5
        match name:
            case "classification":
                truth.append(str(random.choice(LABELS[:2])))  # one label is said alone
                shares = np.round(random.dirichlet([1.0] * 3), 1)
                label = truth[-1] if is_right else LABELS[int(shares.argmax())]
                found.append(Prediction(label, 1.0, shares.tolist()))
            case "multi_label":
                sides = [[n for n in LABELS[:2] if random.random() < 0.5] for _ in range(2)]
                truth.append(sides[0])
                shares = np.round(random.random(3), 1)
                found.append(Prediction(sides[not is_right], None, shares.tolist()))
            case "regression":
                truth.append(float(np.round(random.normal(), 1)))
                found.append(Prediction(round(truth[-1] + float(random.normal()), 1), None))
            case "token_classification":
                length = int(random.integers(1, 6))
                tags = random.choice(TAGS, size=(2, length))
                truth.append(tags[0].tolist())
                found.append(Prediction(tags[int(not is_right)].tolist(), None))
            case "question_answering":
                truth.append({"answers": [text(), text()], "start": 0})
                found.append(Prediction(truth[-1]["answers"][1] if is_right else text(), None))
            case "generation":
                truth.append(text())
                said = truth[-1] if is_right else text()
                found.append(Prediction(said, None, loss=float(random.random())))
    return truth, found


def repeated(values: Sequence[Any], counts: Sequence[float]) -> list[Any]:
    return [value for value, count in zip(values, counts, strict=True) for _ in range(int(count))]


@pytest.mark.parametrize(("name", "metric"), CASES)
def test_metric_of_rows_that_count_so_often(name: str, metric: str) -> None:
    random = np.random.default_rng(7)
    kind = kind_of(name, metric)
    truth, found = rows_of(name, random)
    once = np.ones((1, ROWS))
    drawn = random.multinomial(ROWS, [1 / ROWS] * ROWS, size=5).astype(float)
    few = np.zeros((1, ROWS))
    few[0, :3] = 2.0
    of_counts = resampled(kind, truth, found)
    for counts in [*once, *drawn, *few]:
        expected = kind.score(repeated(truth, counts), repeated(found, counts))
        (value,) = of_counts(counts[None])
        assert value == pytest.approx(expected.get(metric, math.nan), abs=1e-6, nan_ok=True)
    assert of_counts(drawn).shape == (5,)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_constant_prediction_orders_nothing_and_a_constant_truth_cannot_be_ordered(
    metric: str,
) -> None:
    kind, once = kind_of("regression", metric), np.ones((1, 4))
    numbers, same = [0.1, 0.7, 0.3, 0.9], [Prediction(0.1, None)] * 4
    assert resampled(kind, numbers, same)(once) == 0.0
    assert np.isnan(resampled(kind, [0.1] * 4, [Prediction(n, None) for n in numbers])(once))


def test_without_two_classes_there_is_no_curve() -> None:
    kind = kind_of("classification", "auroc")
    found = [Prediction("bad", 0.5, [0.5, 0.25, 0.25])] * 3
    assert np.isnan(resampled(kind, ["bad"] * 3, found)(np.ones((1, 3))))
