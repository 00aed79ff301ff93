from types import SimpleNamespace
from typing import Any

import pytest

from trainers.task_config import Hyperparameters
from workflows.final import NoTrialFinishedError, Trial, _scratch_points, finished, ranked
from workflows.task_section import ControlsConfig


def trial(name: str, status: str, *scores: float, error: str | None = None) -> Trial:
    history = [{"accuracy": score} for score in scores]
    return {"trial_id": name, "status": status, "history": history, "error": error}


TRIALS = [
    trial("a", "finished", 0.5, 0.7),
    trial("b", "stopped", 0.9),
    trial("c", "finished", 0.8, 0.6),
    trial("d", "failed", error="ValueError: no"),
    {"trial_id": "e", "status": "failed", "history": [{}], "error": "a metric is not finite"},
]


def test_trials_are_ranked_by_their_last_epoch() -> None:
    assert [found["trial_id"] for found in ranked(TRIALS, "accuracy")] == [
        "b",
        "a",
        "c",
        "d",
        "e",
    ]


def test_only_what_trained_to_its_end_is_trained_again() -> None:
    assert [found["trial_id"] for found in finished(TRIALS, "accuracy")] == ["a", "c"]


def test_search_without_a_finished_trial_tells_what_ended_them() -> None:
    with pytest.raises(
        NoTrialFinishedError, match="none of 2 trials finished: ValueError: no; a metric"
    ):
        finished(TRIALS[3:], "accuracy")


def test_lowest_is_best_where_the_metric_says_so() -> None:
    trials = [
        {"trial_id": name, "status": "finished", "history": history, "error": None}
        for name, history in {
            "a": [{"mse": 2.0}],
            "b": [{"mse": 0.5}],
            "c": [{"mse": float("nan")}],
        }.items()
    ]
    assert [found["trial_id"] for found in ranked(trials, "mse")] == ["b", "a", "c"]


def test_search_whose_time_was_too_short_tells_the_way_out() -> None:
    with pytest.raises(NoTrialFinishedError, match=r"none of 1 trials finished: .*max_hours"):
        finished([trial("b", "stopped", 0.9)], "accuracy")


def scratch_rates(*trials: tuple[str, float]) -> list[float]:
    found = [
        {
            "hyperparameters": {"method": method, "learning_rate": rate},
            "status": "finished",
            "history": [{"accuracy": 1.0 - place / 10}],
        }
        for place, (method, rate) in enumerate(trials)
    ]
    spec: Any = SimpleNamespace(
        controls=ControlsConfig(scratch=True), task=SimpleNamespace(metric="accuracy")
    )
    best = Hyperparameters.model_validate(found[0]["hyperparameters"])
    points = _scratch_points(spec, best, found)
    assert {point.method for point in points} == {"full"}
    return [point.learning_rate for point in points]


@pytest.mark.parametrize(
    ("trials", "usual"),
    [
        ([("full", 0.01), ("full", 0.5)], 0.01),
        ([("lora", 0.3), ("head", 0.9), ("full", 0.02), ("full", 0.5)], 0.02),
        ([("lora", 0.3), ("head", 0.9)], 0.03),
    ],
)
def test_control_tries_rates_for_all_weights(trials: list[tuple[str, float]], usual: float) -> None:
    assert scratch_rates(*trials) == pytest.approx([usual / 2, usual, 2 * usual])
