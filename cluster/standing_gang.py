"""A gang that waits for calls: every rank makes one object, whose methods run on all at once."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
import ray.train
from ray.exceptions import RayError

from cluster.config import GangConfig, RetryConfig
from cluster.interface import Metrics, Reporter, TaskFailedError, WorkerLostError
from cluster.ray_cluster import RayCluster, RayPending

_CLOSING_S = 30.0
_OUT_OF_MEMORY = "OutOfMemoryError"


@dataclass(frozen=True)
class _Call:
    method: str
    args: tuple[Any, ...]


class _Mailbox:
    """Calls on their way to each rank, and the ranks' answers on their way back."""

    def __init__(self, ranks: int) -> None:
        self._calls: list[asyncio.Queue[_Call | None]] = [asyncio.Queue() for _ in range(ranks)]
        self._answers: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(ranks)]

    async def post(self, call: _Call | None) -> None:
        for calls in self._calls:
            await calls.put(call)

    async def call_for(self, rank: int) -> _Call | None:
        return await self._calls[rank].get()

    async def answer(self, rank: int, value: Any) -> None:
        await self._answers[rank].put(value)

    async def answers(self) -> list[Any]:
        """Of the ranks, once all have answered."""
        return [await answers.get() for answers in self._answers]


@dataclass(frozen=True)
class _Rank:
    """What each rank does until it is told that no call comes any more."""

    make: Callable[[], Any]
    mailbox: Any

    def __call__(self, reporter: Reporter) -> None:
        rank = ray.train.get_context().get_world_rank()
        target = self.make()
        while call := ray.get(self.mailbox.call_for.remote(rank)):
            value = getattr(target, call.method)(*call.args)
            # Only the first rank's is asked for; of the others that they are done.
            ray.get(self.mailbox.answer.remote(rank, value if rank == 0 else None))


class StandingGang:
    """Holds its workers until it is closed; once a rank has failed it can only be closed."""

    def __init__(
        self, make: Callable[[], Any], gang: GangConfig, *, directory: str, log: Path
    ) -> None:
        """Start it; returns before its ranks are there.

        Args:
            make: called on each rank; its object's methods may talk to the other ranks'.
            gang: of a fixed size.
            directory: a folder or URL that every node sees.
            log: beside it the ranks write theirs.
        """
        from cluster.gang import run

        mailbox = ray.remote(_Mailbox).options(num_cpus=0)
        self._mailbox = mailbox.remote(gang.most_workers)
        start = partial(
            run,
            _Rank(make, self._mailbox),
            gang,
            None,
            name=uuid.uuid4().hex,
            directory=directory,
            log=log,
            on_report=_nobody,
        )
        self._cluster = RayCluster(RetryConfig())
        started = self._cluster.submit(start, log=log)
        assert isinstance(started, RayPending)
        self._running = started

    def call(self, method: str, *args: Any) -> Any:
        """Run a method on every rank; what it returned on the first.

        Raises:
            TaskFailedError: a rank raised.
            WorkerLostError: the cluster lost a rank.
        """
        with contextlib.suppress(RayError):  # a mailbox that is gone answers nothing, too
            ray.get(self._mailbox.post.remote(_Call(method, args)))
        answers = self._mailbox.answers.remote()
        ready, _ = ray.wait([answers, self._running.reference], num_returns=1)
        if answers in ready:
            try:
                return ray.get(answers)[0]
            except RayError as error:
                raise WorkerLostError(f"a gang's mailbox was lost: {error}") from error
        self._running.result().unwrap()
        raise WorkerLostError("a gang ended before it had answered")

    def close(self) -> None:
        """End the ranks; those at work are not waited for."""
        with contextlib.suppress(RayError):
            ray.get(self._mailbox.post.remote(None))
        if not ray.wait([self._running.reference], timeout=_CLOSING_S)[0]:
            self._cluster.cancel([self._running])
        ray.kill(self._mailbox)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def is_out_of_memory(error: TaskFailedError) -> bool:
    """Whether a rank said that its memory did not suffice."""
    return error.error_type == _OUT_OF_MEMORY


def _nobody(metrics: Metrics) -> None:
    """Hears what ranks report."""
