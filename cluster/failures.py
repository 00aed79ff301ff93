"""What to do when a piece of work ended badly. Pure."""

from dataclasses import dataclass

from cluster.config import RetryConfig
from cluster.interface import NodeLeavingError, WorkerLostError


@dataclass(frozen=True)
class Retry:
    """Do it again after a pause."""

    delay_s: float


@dataclass(frozen=True)
class GiveUp:
    """Leave it failed."""

    reason: str


def decide(error: Exception, *, attempt: int, retry: RetryConfig) -> Retry | GiveUp:
    """Retry what the cluster broke, never what the code raised.

    Args:
        error: what ended the attempt.
        attempt: how many attempts were made, this one included; those that a node's announced
            end cut short do not count.
        retry: the user's rule.
    """
    if isinstance(error, NodeLeavingError):
        return Retry(0.0)
    if not isinstance(error, WorkerLostError):
        return GiveUp(str(error))
    if attempt >= retry.max_attempts:
        return GiveUp(f"{error} (attempt {attempt} of {retry.max_attempts})")
    return Retry(retry.delay_s * 2 ** (attempt - 1))
