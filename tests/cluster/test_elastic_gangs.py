"""How many workers a gang may have: what is allowed, what must fit, what is told."""

from typing import Any

import pytest
from pydantic import ValidationError

from cluster.capacity import CapacityError, check
from cluster.config import ClusterConfig, GangConfig, RetryConfig, WorkerRange
from cluster.failures import Retry, decide
from cluster.interface import Capacity, NodeLeavingError


@pytest.mark.parametrize(
    ("workers", "least", "most"),
    [(3, 3, 3), ({"min": 1, "max": 4}, 1, 4), (WorkerRange(min=2, max=2), 2, 2)],
)
def test_workers_are_a_number_or_a_range(workers: Any, least: int, most: int) -> None:
    gang = GangConfig(workers=workers)
    assert (gang.least_workers, gang.most_workers) == (least, most)
    assert GangConfig.model_validate(gang.model_dump(mode="json")) == gang


@pytest.mark.parametrize(
    ("workers", "told"),
    [
        (0, "greater than or equal to 1"),
        ({"min": 4, "max": 2}, r"min \(4\) must not be above max \(2\)"),
        ({"min": 1}, "Field required"),
        ({"min": 1, "max": 2, "most": 3}, "Extra inputs"),
        ("many", "valid integer"),
    ],
)
def test_wrong_workers_are_told_once(workers: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told) as caught:
        GangConfig(workers=workers)
    assert caught.value.error_count() == 1


def test_the_fewest_workers_must_fit_and_no_more() -> None:
    config = ClusterConfig(pretrain=GangConfig(workers=WorkerRange(min=2, max=64)))
    check(config, Capacity.of((2, 0)), {})
    with pytest.raises(CapacityError, match=r"2 workers .* lower cluster\.pretrain\.workers"):
        check(config, Capacity.of((1, 0)), {})


@pytest.mark.parametrize("attempt", [1, 3, 99])
def test_leaving_a_node_that_goes_is_always_tried_again_at_once(attempt: int) -> None:
    retry = RetryConfig(max_attempts=3, delay_s=2.0)
    assert decide(NodeLeavingError("saved"), attempt=attempt, retry=retry) == Retry(0.0)
