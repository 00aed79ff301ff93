import math
from typing import Any

import numpy as np
import pytest

from workflows.report.searched import Dimension, best_so_far, importance, scored, varying


def trial(score: float | None, status: str = "finished", **point: Any) -> dict[str, Any]:
    """Of a search, with its score after the last epoch."""
    history = [] if score is None else [{"accuracy": 0.1, "mse": 0.1}, _both(score)]
    return {"hyperparameters": point, "status": status, "history": history, "changes": []}


def _both(score: float) -> dict[str, float]:
    return {"accuracy": score, "mse": score}


def search(count: int, *, noise: float = 0.0) -> list[dict[str, Any]]:
    """Trials whose score is set by `a` alone, or by luck."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        a, b = random.uniform(0, 1, 2)
        score = noise * random.uniform() + (0.0 if noise else a)
        found.append(trial(float(score), a=float(a), b=float(b), same=1))
    return found


def test_only_what_differs_varies() -> None:
    found = varying([trial(0.1, a=1, b="x", c=1), trial(0.2, a=1, b="y")])
    assert [(one.name, one.values) for one in found] == [("b", ["x", "y"]), ("c", [1, None])]


def test_points_are_those_of_the_end() -> None:
    changed = trial(0.2, a=1) | {"changes": [[1, {"a": 2}], [2, {"a": 3}]]}
    assert varying([trial(0.1, a=1), changed])[0].values == [1, 3]


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ([0.0, 5.0, 10.0], [0.0, 0.5, 1.0]),
        ([1e-4, 1e-3, 1e-2], [0.0, 0.5, 1.0]),
        ([0.01, 0.5, 0.6, 0.99], [0.0, 0.5, 0.6020, 1.0]),
        (["b", "a", "c"], [0.5, 0.0, 1.0]),
        ([True, False, True], [1.0, 0.0, 1.0]),
        ([8, None, 4], [1.0, math.nan, 0.0]),
        ([8, None], [0.5, math.nan]),
    ],
)
def test_values_have_a_place_between_the_ends(values: list[Any], places: list[float]) -> None:
    assert Dimension("a", values).places == pytest.approx(places, abs=1e-4, nan_ok=True)


def test_best_so_far_goes_in_the_metric_s_direction() -> None:
    trials = [trial(score) for score in (0.5, 0.3, 0.7, 0.6)]
    assert best_so_far(trials, "accuracy") == [0.5, 0.5, 0.7, 0.7]
    assert best_so_far(trials, "mse") == [0.5, 0.3, 0.3, 0.3]


def test_trials_without_a_score_are_left_out() -> None:
    trials = [trial(None, "failed"), trial(math.nan), trial(0.5)]
    assert scored(trials, "accuracy") == trials[2:]


def test_what_sets_the_score_is_found_and_what_does_not_is_not() -> None:
    found = importance(search(40), "accuracy")
    assert found is not None
    assert found.names == ["a", "b"]
    assert found.means[0] - 3 * found.spreads[0] > found.means[1]
    assert found.error < found.error_of_mean / 2
    assert found.says_something
    assert found == importance(search(40), "accuracy")


def test_luck_is_told_apart() -> None:
    found = importance(search(12, noise=1.0), "accuracy")
    assert found is not None
    assert not found.says_something


@pytest.mark.parametrize(
    "trials",
    [
        search(7),
        [trial(n / 10, a=n) for n in range(10)],
        [*search(7), *(one | {"status": "stopped"} for one in search(9))],
        [],
    ],
    ids=["few trials", "one hyperparameter", "few finished", "none"],
)
def test_too_little_tells_nothing(trials: list[dict[str, Any]]) -> None:
    assert importance(trials, "accuracy") is None


def test_hyperparameters_that_some_trials_lack_are_compared_too() -> None:
    trials = [trial(n / 20, method="lora", rank=n) for n in range(10)]
    trials += [trial(0.1, method="full") for _ in range(10)]
    found = importance(trials, "accuracy")
    assert found is not None
    assert set(found.names) == {"method", "rank"}
