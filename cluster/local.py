"""The cluster protocol in this process, one thing after another: for tests and debuggers."""

import dataclasses
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.cache import cache_folder
from cluster.config import GangConfig, WorkerConfig
from cluster.interface import (
    Capacity,
    Metrics,
    Outcome,
    Pending,
    Reporter,
    SearchPlan,
    TaskFailedError,
    Trial,
    TrialResult,
    WorkerLostError,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Done:
    """Work that ended before it was waited for."""

    outcome: Outcome

    def result(self) -> Outcome:
        """How it ended."""
        return self.outcome


@dataclasses.dataclass(frozen=True)
class CallbackReporter:
    """Hands metrics to a function."""

    on_report: Callable[[Metrics], None]

    def report(self, metrics: Metrics) -> None:
        """Take one rank's metrics."""
        self.on_report(metrics)

    def is_leaving(self) -> bool:
        """Never: there is no other node to go on with."""
        return False


class LocalCluster:
    """Implements `cluster.interface.Cluster` without processes.

    A gang has one rank whatever its size: what is computed does not depend on the number of
    workers. Searches are random and stop no trial early.
    """

    def capacity(self) -> Capacity:
        """This machine's cores."""
        return Capacity.of((os.cpu_count() or 1, 0))

    def expect(self, bundles: Sequence[Mapping[str, float]]) -> None:
        """This machine does not grow."""

    def show(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Nobody looks."""

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        log: Path,
        worker: WorkerConfig | None = None,
    ) -> Pending:
        """Run it now."""
        log = cache_folder() / log
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            return Done(Outcome(value=function(*args)))
        except (WorkerLostError, TaskFailedError) as error:
            return Done(Outcome(error=error))
        except Exception as error:
            log.write_text(traceback.format_exc(), encoding="utf-8")
            return Done(Outcome(error=TaskFailedError.of(error)))

    def wait(self, pending: Sequence[Pending], timeout_s: float) -> list[Pending]:
        """All of them: they ended when they were submitted."""
        return list(pending)

    def cancel(self, pending: Sequence[Pending]) -> None:
        """Nothing is ever under way."""

    def on_every_node(
        self,
        function: Callable[..., Any],
        *args: Any,
        worker: WorkerConfig | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Outcome]:
        """Here, for as long as it takes."""
        return {"localhost": Outcome(value=function(*args))}

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        worker: WorkerConfig,
        log: Path,
    ) -> list[Any]:
        """One item after another."""
        return [self.submit(function, item, log=log).result().unwrap() for item in items]

    def map_on_gangs(
        self,
        function: Callable[[Any, int], Any],
        items: Sequence[Any],
        gang: GangConfig,
        *,
        directory: str,
        log: Path,
    ) -> list[Any]:
        """One item after another, each on one rank."""
        return [self.submit(function, item, 0, log=log).result().unwrap() for item in items]

    def run_gang(
        self,
        function: Callable[[Reporter], None],
        gang_config: GangConfig,
        *,
        name: str,
        directory: str,
        log: Path,
        on_report: Callable[[Metrics], None],
    ) -> None:
        """One rank, here."""
        self.submit(function, CallbackReporter(on_report), log=log).result().unwrap()

    def run_trials(
        self,
        trial: Callable[[Any], Trial],
        shared: Any,
        plan: SearchPlan,
        *,
        directory: str,
        log: Path,
        on_result: Callable[[str, Metrics], None],
    ) -> list[TrialResult]:
        """One trial after another, each to its end."""
        slot = trial(shared)
        results = list(plan.earlier)
        for number, point in enumerate(plan.points(), start=len(results)):
            trial_id, history, error = f"{number:05d}", [], None
            try:
                slot.start(point)
                while not slot.is_finished:
                    history.append(slot.step())
                    on_result(trial_id, {"epoch": len(history), **history[-1]})
            except Exception as failure:
                error = f"{type(failure).__name__}: {failure}"
            results.append(
                TrialResult(trial_id, point, "failed" if error else "finished", history, error)
            )
        return results
