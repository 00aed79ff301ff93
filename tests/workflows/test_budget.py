"""What all searches together may spend."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.config import SearchConfig
from workflows.budget import BudgetConfig


def searches(*trials: int, **changes: Any) -> dict[str, SearchConfig]:
    return {f"t{n}": SearchConfig(trials=count, **changes) for n, count in enumerate(trials)}


def trials(budget: BudgetConfig, asked: dict[str, SearchConfig]) -> list[int]:
    return [search.trials for search in budget.shared(asked).values()]


@pytest.mark.parametrize(
    ("budget", "asked", "expected"),
    [
        ({"trials": 60}, (20, 20), [20, 20]),
        ({"trials": 20}, (30, 10), [15, 5]),
        ({"trials": 12, "floor": 4}, (100, 2, 8), [6, 2, 4]),
        ({"trials": 3}, (10, 10, 10), [1, 1, 1]),
        ({"trials": 11}, (10, 10, 10), [4, 4, 3]),
    ],
)
def test_the_floor_first_and_the_rest_in_proportion(
    budget: dict[str, Any], asked: tuple[int, ...], expected: list[int]
) -> None:
    assert trials(BudgetConfig(**budget), searches(*asked)) == expected


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 5), st.integers(0, 200))
def test_shares_use_the_budget_up_and_exceed_no_request(
    asked: list[int], floor: int, more: int
) -> None:
    total = sum(min(floor, count) for count in asked) + more
    found = trials(BudgetConfig(trials=total, floor=floor), searches(*asked))
    assert sum(found) == min(total, sum(asked))
    for share, count in zip(found, asked, strict=True):
        assert min(floor, count) <= share <= count


def test_every_search_ends_with_the_time_of_all_but_not_before_its_floor() -> None:
    asked = searches(20, max_hours=1) | {"long": SearchConfig(trials=20, max_hours=9)}
    asked["none"] = SearchConfig(trials=2)
    found = BudgetConfig(max_hours=4, floor=3).shared(asked)
    assert [search.max_hours for search in found.values()] == [1, 4, 4]
    assert [search.least_trials for search in found.values()] == [3, 3, 2]


def test_what_cannot_be_shared_is_told() -> None:
    (problem,) = BudgetConfig(trials=5, floor=3).problems(searches(9, 9))
    assert "2 tasks with at least 3 trials each need 6; raise budget.trials (5)" in problem
    of_grid = {"g": SearchConfig(trials=4, searcher="grid", space={"x": [1, 2, 3, 4]})}
    (problem,) = BudgetConfig(trials=5).problems(of_grid | searches(6))
    assert "budget.trials: 5 leave 2 of the 4 points that tasks.g.search tries" in problem
    assert list(BudgetConfig(max_hours=1).problems(of_grid)) == []
    with pytest.raises(ValidationError, match="give trials, or max_hours, or both"):
        BudgetConfig(floor=2)


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({}, "give trials, or max_hours, or both"),
        ({"trials": 3, "least_trials": 2}, "least_trials goes with max_hours"),
    ],
)
def test_a_search_without_an_end_is_refused(search: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        SearchConfig(**search)
