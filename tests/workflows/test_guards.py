"""What a model must keep to: the figures, and the verdict on them."""

import random
from typing import Any

import pytest
from pydantic import ValidationError

from trainers.task_config import TaskConfig
from trainers.task_types import type_of
from trainers.task_types.base import Prediction
from workflows import guards
from workflows.promote_config import GuardsConfig
from workflows.task_section import PipelineTask

SECTION: dict[str, Any] = {
    "type": "classification",
    "metric": "accuracy",
    "data": {"path": "rows.csv", "split": {"test": 0.2, "validation": 0.2}},
}
KIND = type_of(TaskConfig.model_validate(SECTION), ["bad", "good"])


def rule(**given: Any) -> GuardsConfig:
    return GuardsConfig.model_validate(given)


def said(truth: list[str], right: int, sure: float) -> list[Prediction]:
    """Answers of which the first so many are right, all as sure."""
    found = []
    for row, label in enumerate(truth):
        other = "good" if label == "bad" else "bad"
        name = label if row < right else other
        shares = [sure, 1 - sure] if name == "bad" else [1 - sure, sure]
        found.append(Prediction(name, sure, shares))
    return found


def measured(given: GuardsConfig, truth: list[str], found: list[Prediction], **more: Any) -> Any:
    usual = {"slices": [], "seeds": [0.5, 0.5], "size_bytes": 0}
    return guards.measured(given, KIND, truth, found, **{**usual, **more})


@pytest.mark.parametrize(
    ("given", "found", "told"),
    [
        ({}, {}, None),
        ({"size_mb": 10}, {"size_mb": 10.0}, None),
        ({"size_mb": 10}, {"size_mb": 10.1}, "size in MB is 10.1, above 10"),
        ({"size_mb": 10}, {}, "size in MB is nan, above 10"),
        ({"seed_spread": 0.01}, {"seed_spread": float("nan")}, "deviation over seeds is nan"),
        ({"latency": {"p50_ms": 5}}, {"latency_p50_ms": 4.0, "latency_p95_ms": 9.0}, None),
        (
            {"latency": {"p95_ms": 8, "batch_size": 4}},
            {"latency_p50_ms": 4.0, "latency_p95_ms": 9.0},
            "95th percentile of the latency of 4 rows in ms is 9, above 8",
        ),
        ({"calibration_error": 0.1}, {"calibration_error": 0.2}, "calibration error is 0.2"),
        ({"worst_slice": 0.7}, {"slices": {"de": 0.7, "en": 0.9}}, None),
        (
            {"worst_slice": 0.7},
            {"slices": {"en": 0.9, "de": 0.69}},
            "of the rows of slice de it scores 0.6900, wanted is 0.7",
        ),
    ],
)
def test_what_is_not_kept_to_is_told(given: Any, found: Any, told: str | None) -> None:
    answer = guards.broken(rule(**given), found, sign=1.0)
    assert (answer is None) if told is None else (told in (answer or ""))


def test_of_an_error_more_is_worse() -> None:
    found = {"slices": {"en": 0.2}}
    assert guards.broken(rule(worst_slice=0.3), found, sign=-1.0) is None
    assert guards.broken(rule(worst_slice=0.1), found, sign=-1.0) is not None


def test_only_what_is_asked_for_is_measured() -> None:
    truth = ["bad", "good"] * 20
    assert measured(rule(), truth, said(truth, 40, 0.9)) == {}
    found = measured(rule(size_mb=1, seed_spread=1), truth, said(truth, 40, 0.9), size_bytes=25_000)
    assert found == {"size_mb": 0.025, "seed_spread": 0.0}


def test_spread_is_the_standard_deviation_of_the_sample() -> None:
    found = measured(rule(seed_spread=1), [], [], seeds=[0.8, 0.9, 1.0])
    assert found["seed_spread"] == pytest.approx(0.1)


@pytest.mark.parametrize("sure", [0.95, 0.75])
@pytest.mark.parametrize("right", [0, 70, 100])
def test_calibration_error_is_how_far_confidence_is_from_accuracy(right: int, sure: float) -> None:
    truth = [random.Random(row).choice(("bad", "good")) for row in range(100)]
    found = measured(rule(calibration_error=1), truth, said(truth, right, sure))
    assert found["calibration_error"] == pytest.approx(abs(sure - right / 100), abs=1e-6)


def test_slices_are_scored_by_themselves_and_small_ones_not_at_all() -> None:
    truth = ["bad"] * 50
    slices = ["en"] * 20 + ["de"] * 20 + ["fr"] * 10
    found = measured(rule(worst_slice=0.5), truth, said(truth, 30, 0.9), slices=slices)
    assert found["slices"] == {"de": 0.5, "en": 1.0}


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"guards": {"worst_slice": 0.5}}, "name the slices' column, data.slice_by"),
        ({"guards": {"seed_spread": 0.5}}, "needs final.seeds of 2 or more"),
        ({"guards": {"latency": {"batch_size": 3}}}, "give p50_ms, p95_ms, or both"),
        ({"guards": {"size": 3}}, "Extra inputs"),
    ],
)
def test_guards_that_cannot_be_measured_are_refused(section: Any, told: str) -> None:
    search = {"trials": 1, "searcher": "random", "space": {}}
    with pytest.raises(ValidationError, match=told):
        PipelineTask.model_validate(
            {**SECTION, "search": search, "final": {"seeds": 1}, "promote": section}
        )


def test_calibration_is_of_one_label_a_row() -> None:
    search = {"trials": 1, "searcher": "random", "space": {}}
    promote = {"guards": {"calibration_error": 0.1}}
    section = {**SECTION, "type": "regression", "metric": "mse", "search": search}
    with pytest.raises(ValidationError, match="of the probability of one label a row"):
        PipelineTask.model_validate({**section, "promote": promote})
