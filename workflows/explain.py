"""What a plan means: for each step what happens, why, and what it needs."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from workflows import sources
from workflows.artifacts import Artifacts, attempts_folder
from workflows.config import PipelineConfig
from workflows.history import RunHead, heads
from workflows.ledger import Claim, Record, stem_of
from workflows.needs import describe, needs
from workflows.planning import Plan, State
from workflows.session import Session
from workflows.steps import Step, StepRef, plain

_VERDICTS = {
    State.REUSED: "REUSE",
    State.WAITING: "RUN",
    State.BLOCKED: "BLOCKED",
    State.NOT_NEEDED: "NOT NEEDED",
}
_DRIFT = "DRIFT: computed by other code; --force computes it anew"
_MOST_RUNS = 50
_MOST_CHANGES = 3
_LONGEST_VALUE = 40


@dataclass(frozen=True)
class Explanation:
    """What a run would do with one step."""

    step: str
    plan: str
    why: str
    needs: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    has_drifted: bool = False
    """Whether the result was computed by other code than today's."""

    @property
    def line(self) -> str:
        """For people: why, and what it needs."""
        return "; ".join(part for part in (self.why, describe(self.needs)) if part)

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


_ORDER = "digests"
"""The field of a corpus' spec that holds what its files tell better, but for their order."""


def explain(session: Session, plan: Plan) -> Iterator[Explanation]:
    """One explanation for each step, in their order."""
    explainer = _Explainer(session, plan)
    for step in session.steps:
        yield explainer.explanation(step)


def changes(step: Step, before: Record) -> list[str]:
    """What differs between a step and the record of an earlier one of its name, old -> new."""
    found = []
    if step.version != before.version:
        found.append(f"version {before.version} -> {step.version}")
    then, now = dict(before.spec), dict(plain(step.spec))
    orders = then.pop(_ORDER, None), now.pop(_ORDER, None)
    found += _differences(then, now)
    found += [
        f"input {other.name} changed"
        for name, other in step.inputs.items()
        if before.inputs.get(name) != other.fingerprint
    ]
    found += [f"input {name} is gone" for name in before.inputs if name not in step.inputs]
    if sorted(step.outside.values()) != sorted(before.outside.values()):
        found += [f"{path} {_fate(path, step, before)}" for path in _changed_files(step, before)]
    elif orders[0] != orders[1]:
        found.append("files are read in another order")
    return found


class _Explainer:
    def __init__(self, session: Session, plan: Plan) -> None:
        self._session, self._plan = session, plan
        self._artifacts: Artifacts = session.artifacts
        self._earlier: list[RunHead] | None = None

    def explanation(self, step: Step) -> Explanation:
        state = self._plan.states[step.name]
        has_drifted = state is State.REUSED and self._has_drifted(step)
        return Explanation(
            step=step.name,
            plan=_VERDICTS[state],
            why=_DRIFT if has_drifted else self._why(step, state),
            needs=_needs(step, self._session.config) if state is State.WAITING else {},
            fingerprint=step.fingerprint,
            has_drifted=has_drifted,
        )

    def _why(self, step: Step, state: State) -> str:
        if state is State.WAITING:
            return self._why_run(step)
        if state is State.BLOCKED:
            return f"needs {', '.join(self._plan.missing[step.name])}"
        return ""

    def _has_drifted(self, step: Step) -> bool:
        recorded = self._plan.positions[step.name].source
        if recorded is None:
            return False
        current = sources.of_step(step.kind, step.uses, self._session.base)
        return sources.are_comparable(recorded, current) and recorded != current

    def _why_run(self, step: Step) -> str:
        claim = self._plan.positions[step.name].entry
        if step.name in self._plan.forced:
            return "forced"
        if isinstance(claim, Claim) and not claim.owner.is_known_dead:
            return f"run {claim.run} computes it now"
        folder = attempts_folder(step.kind, stem_of(step.fingerprint))
        if self._session.paths.storage.names(folder):
            return "goes on: it was begun before"
        before = self._before(step)
        if before is None:
            return "not computed yet"
        found = changes(step, before) or ["its result was removed"]
        more = len(found) - _MOST_CHANGES
        return ", ".join(found[:_MOST_CHANGES]) + (f" and {more} more changes" if more > 0 else "")

    def _before(self, step: Step) -> Record | None:
        """The record of this step's name in the newest run of the pipeline that has one."""
        if self._earlier is None:
            where, name = self._session.paths.storage, self._session.config.name
            self._earlier = list(heads(where, name, most=_MOST_RUNS))
        tried = set()
        for run in self._earlier:
            found = run.steps.get(step.name)
            if found is None or found in tried:
                continue
            tried.add(found)
            record = self._artifacts.find(StepRef(step.name, *found))
            if record is not None:
                return record
        return None


def _needs(step: Step, config: PipelineConfig) -> Mapping[str, Any]:
    vocab_size = config.tokenizer.vocab_size if config.tokenizer else None
    found = needs(step.kind, step.spec, config.cluster, vocab_size=vocab_size)
    if step.resources is not None:
        found |= {"cpus": step.resources.cpus, "gpus": step.resources.gpus}
    return found


def _differences(before: Any, now: Any, place: str = "") -> list[str]:
    """Fields that differ, as `a.b old -> new`."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = dict.fromkeys([*before, *now])
        return [
            line
            for name in names
            for line in _differences(
                before.get(name), now.get(name), f"{place}.{name}" if place else name
            )
        ]
    return [] if before == now else [f"{place} {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _changed_files(step: Step, before: Record) -> list[str]:
    paths = dict.fromkeys([*before.outside, *step.outside])
    return [path for path in paths if before.outside.get(path) != step.outside.get(path)]


def _fate(path: str, step: Step, before: Record) -> str:
    if path not in before.outside:
        return "is new"
    return "changed" if path in step.outside else "is gone"
