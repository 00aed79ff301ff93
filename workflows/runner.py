"""Runs steps in the order their inputs allow; one that fails stops only what needs it."""

import contextlib
import heapq
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cluster import failures
from cluster.failures import GiveUp, Retry
from cluster.interface import Outcome, Pending, TaskFailedError, WorkerLostError
from workflows.artifacts import Artifacts, attempts_folder
from workflows.execution import (
    Assignment,
    Busy,
    Computed,
    RunContext,
    StopNotice,
    lease_name,
    run_step,
)
from workflows.journal import Journal
from workflows.leases import Watch
from workflows.ledger import Claim, Position, Record, Release, stem_of
from workflows.planning import AVAILABLE, ENDED, Plan, State
from workflows.run_result import Failure, RunResult
from workflows.steps import FOLLOWING, Step

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_HELD_POLL_S = 1.0
_LEAST_AT_ONCE = 16
_AT_ONCE_PER_CPU = 4

_INPUT_ERRORS = {"DataError"}
_TOLD_AS_THEY_ARE = _INPUT_ERRORS | {
    "StorageError",
    "DamagedArtifactError",
    "DamagedEntryError",
    "StoppedError",
}
# Kinds whose stage looks at the stop notice and saves its state before it ends.
_HEED_STOP = {"pretrain"}


@dataclass
class _Work:
    """A step under way."""

    name: str
    started_at: float | None
    """When its clock began to run; None until it is known to have begun."""


def run(
    steps: Sequence[Step],
    plan: Plan,
    context: RunContext,
    journal: Journal,
    *,
    fail_fast: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> RunResult:
    """Compute every step that `plan` left waiting.

    Ctrl-C, or `pretune stop`, ends it cleanly: pretraining saves a checkpoint, other steps end at
    once, claims are released. A second Ctrl-C does not wait for the checkpoint.

    Args:
        steps: of the pipeline.
        plan: what is to be done.
        context: where and how.
        journal: is told what happens.
        fail_fast: whether the first failure ends the run.
        tick: called several times a second.
    """
    loop = _Loop(steps, plan, context, journal, fail_fast=fail_fast)
    try:
        while not loop.is_ended:
            try:
                loop.advance()
                tick()
            except KeyboardInterrupt:
                if loop.is_stopping:
                    raise
                loop.stop()
    except BaseException:
        loop.abandon()
        raise
    finally:
        journal.flush()
    return loop.result


class _Loop:
    """A run under way."""

    def __init__(
        self,
        steps: Sequence[Step],
        plan: Plan,
        context: RunContext,
        journal: Journal,
        *,
        fail_fast: bool,
    ) -> None:
        self._steps = {step.name: step for step in steps}
        self._context, self._cluster, self._journal = context, context.cluster, journal
        self._ledger = Artifacts(context.paths.storage).ledger
        self._watch, self._notice = Watch(context.paths.storage), StopNotice(context.paths)
        self._fail_fast, self._stop_at = fail_fast, float("inf")
        self._positions = dict(plan.positions)
        self._attempts: dict[str, int] = dict.fromkeys(self._steps, 0)
        self._pending: dict[Pending, _Work] = {}
        self._held: dict[str, float] = {}
        """When to look again at steps that somebody else holds."""
        self._told: dict[str, str] = {}
        """Whose attempt at a held step the journal knows of."""
        self._later: list[tuple[float, str]] = []
        self._ready: deque[str] = deque()
        self._dependents: dict[str, list[str]] = {name: [] for name in self._steps}
        self._open_inputs: dict[str, set[str]] = {}
        """Of steps that wait, the inputs that wait, too."""
        cpus = self._cluster.capacity().cpus
        self._at_once = max(_LEAST_AT_ONCE, int(_AT_ONCE_PER_CPU * cpus))
        self.result = RunResult(dict(plan.states))
        self._unended = 0
        self._link()

    @property
    def is_ended(self) -> bool:
        return self._unended == 0

    @property
    def is_stopping(self) -> bool:
        return self._stop_at < float("inf")

    def advance(self) -> None:
        """Start what can start, then wait a moment for something to end."""
        self._journal.flush_if_due()
        if not self.is_stopping and self._notice():
            self.stop()
        self._look_at_held()
        while self._later and self._later[0][0] <= time.monotonic():
            self._ready.append(heapq.heappop(self._later)[1])
        while self._ready and len(self._pending) < self._at_once:
            self._start(self._ready.popleft())
        self._end_overdue()
        if not self._pending:
            if not self._ready and not self.is_ended:
                time.sleep(_POLL_S)
            return
        for work in self._cluster.wait(list(self._pending), _POLL_S):
            if work in self._pending:  # a failure before it may have ended the run
                self._finish(self._pending.pop(work), work.result())

    def stop(self) -> None:
        """Start nothing more, let pretraining save a checkpoint, end all the rest."""
        paths = self._context.paths
        with contextlib.suppress(FileExistsError):  # somebody asked, which is to be remembered
            paths.storage.create(paths.stop, b"")
        self._stop_at = time.monotonic() + self._context.execution.stop_grace_s
        self._ready.clear()
        self._later.clear()
        self._held.clear()
        self._cancel(
            [
                work
                for work, under_way in self._pending.items()
                if self._steps[under_way.name].kind not in _HEED_STOP
            ]
        )
        running = {work.name for work in self._pending.values()}
        for name, state in self.result.states.items():
            if state not in ENDED and name not in running:
                self._set(name, State.STOPPED)
        self.result.is_stopped = True

    def abandon(self) -> None:
        """End everything now."""
        self._cancel(list(self._pending))

    def _link(self) -> None:
        """Note for each waiting step the inputs that it has to wait for."""
        states = self.result.states
        for name, step in self._steps.items():
            if states[name] is not State.WAITING:
                continue
            self._unended += 1
            awaited, inputs = _awaited(step), {other.name for other in step.inputs.values()}
            open_inputs = {other for other in inputs if states[other] not in awaited}
            self._open_inputs[name] = open_inputs
            for other in inputs:
                self._dependents[other].append(name)
            if not open_inputs:
                self._ready.append(name)

    def _start(self, name: str) -> None:
        """Submit a step whose inputs have ended, unless they block it."""
        step, states = self._steps[name], self.result.states
        claim = self._positions[name].entry
        if isinstance(claim, Claim):
            self._hold(name, claim)
            return
        inputs = {key: other.name for key, other in step.inputs.items()}
        available = {key: other for key, other in inputs.items() if states[other] in AVAILABLE}
        lacks_one = any(states[other] in ENDED - AVAILABLE for other in inputs.values())
        if lacks_one and not step.runs_on_failure:
            self._set(name, State.BLOCKED)
            return
        commits = {key: self._positions[other].committed for key, other in available.items()}
        self._attempts[name] += 1
        self._set(name, State.RUNNING, attempt=self._attempts[name])
        work = self._cluster.submit(
            run_step,
            Assignment(
                step,
                self._positions[name],
                {key: number for key, number in commits.items() if number},
            ),
            self._context,
            log=self._context.paths.log(name),
            worker=step.resources,
        )
        self._pending[work] = _Work(name, None)

    def _finish(self, work: _Work, outcome: Outcome) -> None:
        name = work.name
        if outcome.error is not None:
            self._fail(name, outcome.error)
            return
        match outcome.value:
            case Computed(commit, facts):
                number = commit or self._positions[name].number
                self._positions[name] = Position(number, None, commit)
                self._set(name, State.DONE, facts=facts, commit=commit)
            case Busy(position):
                self._take(name, position)

    def _take(self, name: str, position: Position) -> None:
        """Act on where a step's log ends now: somebody else has written in it."""
        self._positions[name] = position
        match position.entry:
            case Record() as record:
                self._positions[name] = replace(position, entry=None)
                self._set(name, State.REUSED, cause=f"computed by run {record.run}")
            case Claim() as claim:
                self._hold(name, claim)
            case _:
                self._ready.append(name)

    def _hold(self, name: str, claim: Claim) -> None:
        """Look again in a while at a step that somebody else computes."""
        is_news = self._told.get(name) != claim.attempt
        self._held[name] = time.monotonic() + (0.0 if is_news else _HELD_POLL_S)
        if is_news:
            self._told[name] = claim.attempt
            self._set(name, State.WAITING, cause=f"run {claim.run} computes it")

    def _look_at_held(self) -> None:
        now = time.monotonic()
        for name in [name for name, look_at in self._held.items() if look_at <= now]:
            del self._held[name]
            step = self._steps[name]
            position = self._ledger.position(step, self._positions[name])
            claim = position.entry
            if isinstance(claim, Claim) and self._watch.is_expired(
                lease_name(step), position.number, claim.owner, claim.lease_s
            ):
                logger.warning("%s: %s is gone; taking over", name, claim.owner)
                self._positions[name] = replace(position, entry=None)
                self._ready.append(name)
            else:
                self._take(name, position)

    def _fail(self, name: str, error: WorkerLostError | TaskFailedError) -> None:
        self._release(name)
        if self.is_stopping:
            self.result.stopped[name] = _one_line(error)
            self._set(name, State.STOPPED, cause=_one_line(error))
            return
        retry = self._context.execution.retry_of(name)
        match failures.decide(error, attempt=self._attempts[name], retry=retry):
            case Retry(delay_s):
                heapq.heappush(self._later, (time.monotonic() + delay_s, name))
                self._set(name, State.WAITING, cause=str(error))
            case GiveUp(reason):
                self._give_up(name, error, reason)

    def _give_up(self, name: str, error: Exception, reason: str) -> None:
        error_type = error.error_type if isinstance(error, TaskFailedError) else ""
        cause = _one_line(error) if error_type in _TOLD_AS_THEY_ARE else reason
        log = self._context.paths.shown_log(name)
        failure = Failure(name, cause, log, error_type in _INPUT_ERRORS, self._kept(name))
        self.result.failures.append(failure)
        self._set(name, State.FAILED, cause=cause, log=log)
        if self._fail_fast:
            self._cancel(list(self._pending))
            for other, state in list(self.result.states.items()):
                if state not in ENDED:
                    self._set(other, State.BLOCKED, cause=f"{name} failed")
            self._ready.clear()
            self._later.clear()
            self._held.clear()

    def _kept(self, name: str) -> str:
        """Whether an attempt at a step left something to go on from."""
        step = self._steps[name]
        folder = attempts_folder(step.kind, stem_of(step.fingerprint))
        names = self._context.paths.storage.names(folder)
        return f", and what {name} had saved" if names else ""

    def _end_overdue(self) -> None:
        """End steps that have run longer than they may, or longer than a stop waits for them."""
        now, execution = time.monotonic(), self._context.execution
        for pending, work in list(self._pending.items()):
            limit = execution.timeout_of(work.name)
            if pending not in self._pending:
                break  # a failure before it has ended the run
            if limit is not None and self._age(work, now) > limit:
                self._cancel([pending])
                error = TaskFailedError("TimeoutError", f"not done after {limit:g} s")
                self._give_up(work.name, error, f"not done after {limit:g} s")
        if now > self._stop_at:
            for work in list(self._pending.values()):
                self.result.stopped[work.name] = "it did not stop in time"
                self._set(work.name, State.STOPPED, cause="it did not stop in time")
            self._cancel(list(self._pending))

    def _age(self, work: _Work, now: float) -> float:
        """Seconds since a step's process claimed it: what waited for a CPU has not begun."""
        if work.started_at is None and self._ledger.is_followed(
            self._steps[work.name], self._positions[work.name]
        ):
            work.started_at = now
        return now - work.started_at if work.started_at is not None else 0.0

    def _cancel(self, pending: Sequence[Pending]) -> None:
        """End work and release what it holds; an entry in the log keeps it from committing."""
        self._cluster.cancel(pending)
        for work in pending:
            self._release(self._pending.pop(work).name)

    def _release(self, name: str) -> None:
        """Take back a claim of this run whose process is gone."""
        step = self._steps[name]
        position = self._ledger.position(step, self._positions[name])
        if isinstance(position.entry, Claim) and position.entry.run == self._context.paths.run_id:
            position = self._ledger.append(step, position, Release()) or position
        self._positions[name] = replace(position, entry=None)

    def _set(self, name: str, state: State, **facts: object) -> None:
        was_ended = self.result.states[name] in ENDED
        self.result.states[name] = state
        self._journal.append("step", step=name, state=state, **facts)
        if state in ENDED and not was_ended:
            self._unended -= 1
        for dependent in self._dependents[name]:
            open_inputs = self._open_inputs[dependent]
            if name in open_inputs and state in _awaited(self._steps[dependent]):
                open_inputs.discard(name)
                if not open_inputs and not self.is_stopping:
                    self._ready.append(dependent)
            elif state in ENDED - AVAILABLE:
                self._end_follower(dependent)

    def _end_follower(self, name: str) -> None:
        """End a step that still waits for what an input was to leave on its way."""
        pending = [found for found, work in self._pending.items() if work.name == name]
        if self._steps[name].kind in FOLLOWING and pending and not self.is_stopping:
            self._cancel(pending)
            self._set(name, State.BLOCKED)


def _awaited(step: Step) -> set[State]:
    """States of an input with which a step need not wait for it any longer."""
    return ENDED | {State.RUNNING} if step.kind in FOLLOWING else ENDED


def _one_line(error: Exception) -> str:
    return error.cause if isinstance(error, TaskFailedError) else str(error)
