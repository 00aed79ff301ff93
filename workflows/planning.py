"""What a run would do, and with which steps: pure, apart from one look at the ledger."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from workflows.ledger import Ledger, Position
from workflows.steps import Step
from workflows.suggestions import suggestion


class State(StrEnum):
    """Where a step stands in a run."""

    REUSED = "reused"
    NOT_NEEDED = "not needed"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"
    STOPPED = "stopped"


AVAILABLE = {State.REUSED, State.DONE}
ENDED = AVAILABLE | {State.NOT_NEEDED, State.FAILED, State.BLOCKED, State.STOPPED}


class UnknownStepError(ValueError):
    """The pipeline has no step of that name."""


@dataclass(frozen=True)
class Selection:
    """Which steps of a pipeline to run, by name."""

    only: frozenset[str] = frozenset()
    """These and no others; empty is all that is needed."""

    from_: frozenset[str] = frozenset()
    """Compute these and all that depends on them anew."""

    force: frozenset[str] = frozenset()
    """Compute these anew; what depends on them stays."""


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    states: dict[str, State]
    positions: dict[str, Position]
    """How each step's log stands."""
    forced: frozenset[str] = frozenset()
    """Steps that are computed anew although there is a result."""
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Inputs that blocked steps would need."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is to be run, and nothing is blocked."""
        return not {State.WAITING, State.BLOCKED} & set(self.states.values())


def plan(steps: Sequence[Step], ledger: Ledger, selection: Selection | None = None) -> Plan:
    """What a run would do: a finished step needs none of its inputs.

    Raises:
        UnknownStepError: the selection names a step that is none.
    """
    selection = selection or Selection()
    by_name = {step.name: step for step in steps}
    _check_names(selection, by_name)
    found = ledger.positions(steps)
    positions = {step.name: found[step.fingerprint] for step in steps}
    forced = _forced(steps, selection)
    states = {
        name: State.REUSED if position.committed and name not in forced else State.NOT_NEEDED
        for name, position in positions.items()
    }
    if selection.only:
        missing = _take_only(selection.only, by_name, states)
        return Plan(states, positions, forced & selection.only, missing)
    wanted = [step.name for step in _last(steps)] + sorted(forced)
    while wanted:
        name = wanted.pop()
        if states[name] is State.NOT_NEEDED:
            states[name] = State.WAITING
            if not by_name[name].runs_on_failure:
                wanted += [other.name for other in by_name[name].inputs.values()]
    return Plan(states, positions, forced)


def _take_only(
    only: Iterable[str], by_name: Mapping[str, Step], states: dict[str, State]
) -> dict[str, tuple[str, ...]]:
    """Mark the steps that were asked for; the missing inputs of those that cannot run."""
    missing = {}
    for name in only:
        if states[name] is State.REUSED:
            continue
        inputs = [other.name for other in by_name[name].inputs.values()]
        lacking = tuple(
            other for other in inputs if states[other] is not State.REUSED and other not in only
        )
        if lacking and not by_name[name].runs_on_failure:
            missing[name] = lacking
        states[name] = State.BLOCKED if name in missing else State.WAITING
    return missing


def _forced(steps: Sequence[Step], selection: Selection) -> frozenset[str]:
    """Steps to compute anew; reports on what is computed anew are among them."""
    downstream, changed = set(selection.from_), set(selection.from_ | selection.force)
    for step in steps:  # each stands behind its inputs
        inputs = {other.name for other in step.inputs.values()}
        if inputs & downstream:
            downstream.add(step.name)
        if inputs & downstream or (step.runs_on_failure and inputs & changed):
            changed.add(step.name)
    return frozenset(changed)


def _last(steps: Sequence[Step]) -> list[Step]:
    """Steps that no step strictly needs."""
    needed = {
        other.name for step in steps if not step.runs_on_failure for other in step.inputs.values()
    }
    return [step for step in steps if step.name not in needed]


def _check_names(selection: Selection, known: Mapping[str, Step]) -> None:
    for name in sorted(selection.only | selection.from_ | selection.force):
        if name not in known:
            raise UnknownStepError(
                f"no step {name!r} in this pipeline{suggestion(name, known)}; "
                f"it has {', '.join(known)}"
            )
