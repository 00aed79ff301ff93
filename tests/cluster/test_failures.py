import pytest

from cluster.config import RetryConfig
from cluster.failures import GiveUp, Retry, decide
from cluster.interface import TaskFailedError, WorkerLostError

RETRY = RetryConfig(max_attempts=3, delay_s=2.0)
LOST = WorkerLostError("node died")


@pytest.mark.parametrize(
    ("error", "attempt", "expected"),
    [
        (LOST, 1, Retry(2.0)),
        (LOST, 2, Retry(4.0)),
        (LOST, 3, GiveUp("node died (attempt 3 of 3)")),
        (TaskFailedError("KeyError", "'x'"), 1, GiveUp("KeyError: 'x'")),
        (ValueError("no"), 1, GiveUp("no")),
    ],
)
def test_only_what_the_cluster_broke_is_tried_again(
    error: Exception, attempt: int, expected: Retry | GiveUp
) -> None:
    assert decide(error, attempt=attempt, retry=RETRY) == expected
