"""Runs steps in the order their inputs allow; one that fails stops only what needs it."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cluster import failures
from cluster.config import ClusterConfig
from cluster.failures import GiveUp, Retry
from cluster.interface import Cluster, Outcome, Pending, TaskFailedError
from workflows.artifacts import Artifacts
from workflows.execution import RunPaths, run_step
from workflows.journal import Journal
from workflows.steps import Step

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_INPUT_ERRORS = {"DataError"}


class State(StrEnum):
    """Where a step stands in a run."""

    REUSED = "reused"
    NOT_NEEDED = "not needed"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"


AVAILABLE = {State.REUSED, State.DONE}
ENDED = AVAILABLE | {State.NOT_NEEDED, State.FAILED, State.BLOCKED}


@dataclass(frozen=True)
class Failure:
    """A step that failed, for a person."""

    step: str
    cause: str
    log: Path
    is_input_error: bool


@dataclass
class RunResult:
    """How a run ended."""

    states: dict[str, State]
    failures: list[Failure] = field(default_factory=list)


def plan(steps: Sequence[Step], artifacts: Artifacts) -> dict[str, State]:
    """What a run would do: a finished step needs none of its inputs."""
    states = {
        step.name: State.REUSED if artifacts.record(step) else State.NOT_NEEDED for step in steps
    }

    def need(step: Step) -> None:
        if states[step.name] is State.NOT_NEEDED:
            states[step.name] = State.WAITING
            if not step.runs_on_failure:
                for other in step.inputs.values():
                    need(other)

    for step in _last(steps):
        need(step)
    return states


def run(
    steps: Sequence[Step],
    states: dict[str, State],
    *,
    cluster: Cluster,
    execution: ClusterConfig,
    paths: RunPaths,
    base: Path,
    journal: Journal,
    tick: Callable[[], None] = lambda: None,
) -> RunResult:
    """Compute every step that `plan` left waiting.

    Args:
        steps: of the pipeline.
        states: what `plan` said.
        cluster: where steps run.
        execution: how gangs and trials run.
        paths: of this run.
        base: folder of the pipeline file.
        journal: is told what happens.
        tick: called several times a second.
    """
    loop = _Loop(steps, states, cluster, execution, paths, base, journal)
    try:
        while loop.is_unfinished:
            loop.advance()
            tick()
    except BaseException:
        cluster.cancel(list(loop.pending))
        raise
    return loop.result


def _last(steps: Sequence[Step]) -> list[Step]:
    """Steps that no step strictly needs."""
    needed = {
        other.name for step in steps if not step.runs_on_failure for other in step.inputs.values()
    }
    return [step for step in steps if step.name not in needed]


class _Loop:
    """A run under way."""

    def __init__(
        self,
        steps: Sequence[Step],
        states: dict[str, State],
        cluster: Cluster,
        execution: ClusterConfig,
        paths: RunPaths,
        base: Path,
        journal: Journal,
    ) -> None:
        self._steps = {step.name: step for step in steps}
        self._cluster, self._execution = cluster, execution
        self._paths, self._base, self._journal = paths, base, journal
        self._searches = sum(step.kind == "tune" for step in steps)
        self._attempts: dict[str, int] = dict.fromkeys(self._steps, 0)
        self._not_before: dict[str, float] = {}
        self.pending: dict[Pending, str] = {}
        self.result = RunResult(dict(states))

    @property
    def is_unfinished(self) -> bool:
        return any(state not in ENDED for state in self.result.states.values())

    def advance(self) -> None:
        """Start what can start, then wait a moment for something to end."""
        for name in self._startable():
            self._start(name)
        if not self.pending:
            time.sleep(_POLL_S)
            return
        for work in self._cluster.wait(list(self.pending), _POLL_S):
            self._finish(self.pending.pop(work), work.result())

    def _startable(self) -> Iterable[str]:
        for name, state in list(self.result.states.items()):
            if state is not State.WAITING or time.monotonic() < self._not_before.get(name, 0.0):
                continue
            inputs = [self.result.states[other.name] for other in self._steps[name].inputs.values()]
            if not all(state in ENDED for state in inputs):
                continue
            broken = {State.FAILED, State.BLOCKED} & set(inputs)
            if broken and not self._steps[name].runs_on_failure:
                self._set(name, State.BLOCKED)
            else:
                yield name

    def _start(self, name: str) -> None:
        self._attempts[name] += 1
        self._set(name, State.RUNNING, attempt=self._attempts[name])
        work = self._cluster.submit(
            run_step,
            self._steps[name],
            self._cluster,
            self._execution,
            self._paths,
            self._base,
            self._searches,
            log=self._paths.log(name),
        )
        self.pending[work] = name

    def _finish(self, name: str, outcome: Outcome) -> None:
        if outcome.error is None:
            self._set(name, State.DONE, facts=outcome.value)
            return
        decision = failures.decide(
            outcome.error, attempt=self._attempts[name], retry=self._execution.retry
        )
        match decision:
            case Retry(delay_s):
                self._not_before[name] = time.monotonic() + delay_s
                self._set(name, State.WAITING, cause=str(outcome.error))
            case GiveUp(reason):
                error = outcome.error
                is_input_error = (
                    isinstance(error, TaskFailedError) and error.error_type in _INPUT_ERRORS
                )
                cause = (
                    error.cause if isinstance(error, TaskFailedError) and is_input_error else reason
                )
                log = self._paths.log(name)
                self.result.failures.append(Failure(name, cause, log, is_input_error))
                self._set(name, State.FAILED, cause=cause, log=str(log))

    def _set(self, name: str, state: State, **facts: object) -> None:
        self.result.states[name] = state
        self._journal.append("step", step=name, state=state, **facts)
