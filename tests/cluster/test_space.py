"""Search spaces: what is drawn from them, and what is refused."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.config import SearchConfig
from cluster.space import Range, at

BRANCHED: dict[str, Any] = {
    "method": {
        "full": {"learning_rate": {"loguniform": [1e-5, 1e-3]}, "layer_decay": [0.7, 0.9]},
        "lora": {"learning_rate": {"loguniform": [1e-4, 1e-2]}, "lora_rank": [4, 8]},
        "head": {},
    },
    "epochs": [1, 2],
}


def search(space: dict[str, Any], **settings: Any) -> SearchConfig:
    return SearchConfig.model_validate({"trials": 5, "space": space, **settings})


@given(st.floats(0.0, 1.0, exclude_max=True))
def test_values_stay_inside_their_dimension(share: float) -> None:
    assert 2.0 <= at(Range(uniform=(2.0, 3.0)), share) <= 3.0
    assert 0.1 <= at(Range(loguniform=(0.1, 10.0)), share) <= 10.0 + 1e-9
    assert at(Range(randint=(2, 4)), share) in {2, 3, 4}
    assert at(Range(quniform=(0.1, 0.5, 0.2)), share) in {0.1, 0.3, 0.5}
    assert at(["a", "b"], share) in {"a", "b"}
    assert at(7, share) == 7


@pytest.mark.parametrize(
    ("dimension", "middle"),
    [
        (Range(uniform=(1.0, 3.0)), 2.0),
        (Range(loguniform=(0.01, 100.0)), 1.0),
        (Range(randint=(1, 3)), 2),
        (Range(quniform=(0.0, 1.0, 0.5)), 0.5),
    ],
)
def test_middle_of_a_range_is_its_median(dimension: Range, middle: float) -> None:
    assert math.isclose(at(dimension, 0.5), middle)


def test_points_have_the_hyperparameters_of_their_branch_alone() -> None:
    points = search(BRANCHED, trials=60, seed=3).points()
    keys = {
        "full": {"method", "learning_rate", "layer_decay", "epochs"},
        "lora": {"method", "learning_rate", "lora_rank", "epochs"},
        "head": {"method", "epochs"},
    }
    assert {point["method"] for point in points} == set(keys)
    assert all(set(point) == keys[point["method"]] for point in points)
    assert all(point["learning_rate"] <= 1e-3 for point in points if point["method"] == "full")


def test_more_trials_begin_with_the_same_points() -> None:
    few, more = (search(BRANCHED, trials=number, seed=1).points() for number in (5, 25))
    assert more[:5] == few
    assert search(BRANCHED, trials=5, seed=2).points() != few


def test_grid_has_every_combination_of_each_branch() -> None:
    space = {
        "method": {"full": {"layer_decay": [0.7, 0.9]}, "head": {}},
        "epochs": [1, 2],
        "seed": 0,
    }
    points = search(space, searcher="grid", trials=6).points()
    told = [(p["method"], p.get("layer_decay"), p["epochs"], p["seed"]) for p in points]
    expected = [("full", 0.7), ("full", 0.9), ("head", None)]
    assert told == [(*one, epochs, 0) for one in expected for epochs in (1, 2)]


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"x": {"loguniformm": [1, 2]}}, "loguniformm: expected one of the ranges uniform"),
        ({"x": {"uniform": [1, 2], "randint": [1, 2]}}, "give exactly one of"),
        ({"x": {"quniform": [1, 2]}}, "quniform"),
        ({"x": {"uniform": [2, 1]}}, "must be below"),
        ({"m": {"a": {"x": {"loguniform": [0, 1]}}}}, "above zero"),
        ({"m": {"a": {"x": 1}}, "x": 2}, "space.m.a.x: x stands beside the choices, too"),
        ({"m": {"a": {"y": {"b": {"x": 1}}}}}, "Input should be"),
    ],
)
def test_what_is_no_space_is_refused(space: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        search(space)


def test_a_space_survives_being_written_and_read() -> None:
    found = search(BRANCHED)
    assert SearchConfig.model_validate(found.model_dump(mode="json", exclude_none=True)) == found
