"""One gang per item: a function that several processes compute together."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster import failures
from cluster.config import GangConfig, RetryConfig
from cluster.failures import GiveUp, Retry
from cluster.interface import NodeLeavingError, Pending, TaskFailedError, WorkerLostError
from cluster.ray_cluster import RayCluster
from cluster.standing_gang import StandingGang, is_out_of_memory

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 3600.0


def run(
    function: Callable[[Any, int], Any],
    items: Sequence[Any],
    gang: GangConfig,
    retry: RetryConfig,
    *,
    at_once: int,
    directory: str,
    log: Path,
) -> list[Any]:
    """See `cluster.interface.Cluster.map_on_gangs`; `at_once` is the number of gangs."""
    cluster = RayCluster(retry)

    def begin(index: int) -> Pending:
        item_log = log.with_suffix(f".{index}.log")
        start = partial(
            StandingGang, partial(_Function, function), gang, directory=directory, log=item_log
        )
        return cluster.submit(_computed, start, items[index], retry, log=item_log)

    waiting = list(reversed(range(len(items))))
    under_way: dict[Pending, int] = {}
    values: dict[int, Any] = {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < at_once:
                index = waiting.pop()
                under_way[begin(index)] = index
            for done in cluster.wait(list(under_way), _LOOK_EVERY_S):
                index = under_way.pop(done)
                values[index] = done.result().unwrap()
    except BaseException:  # a stop, too: else the others would train to their end
        cluster.cancel(list(under_way))
        raise
    return [values[index] for index in range(len(items))]


def _computed(start: Callable[[], StandingGang], item: Any, retry: RetryConfig) -> Any:
    """With as many gangs as it takes."""
    attempt, halvings = 1, 0
    while True:
        try:
            with start() as standing:
                return standing.call("__call__", item, halvings)
        except TaskFailedError as error:
            if not is_out_of_memory(error):
                raise
            halvings += 1
            logger.warning("%s; trying again with half of it at a time", error)
        except WorkerLostError as error:
            match failures.decide(error, attempt=attempt, retry=retry):
                case Retry(delay_s):
                    logger.warning("attempt %d ended with %s; trying again", attempt, error)
                    time.sleep(delay_s)
                case GiveUp():
                    raise
            attempt += not isinstance(error, NodeLeavingError)


@dataclass(frozen=True)
class _Function:
    """What each rank makes: the function itself."""

    function: Callable[[Any, int], Any]

    def __call__(self, item: Any, halvings: int) -> Any:
        return self.function(item, halvings)
