from pathlib import Path
from typing import Any

import pytest
from conftest import write_pipeline
from own_steps import diamond, own_step

from workflows import planning
from workflows.artifacts import Artifacts
from workflows.config import ConfigError, load_config
from workflows.explain import Explanation, explain
from workflows.ledger import Ledger, Position
from workflows.planning import Plan, Selection, State, UnknownStepError
from workflows.session import Session
from workflows.steps import Step
from workflows.storage import Storage

WAITING, REUSED, NOT_NEEDED = State.WAITING, State.REUSED, State.NOT_NEEDED


def commit(where: Storage, step: Step, source: str | None = None, run: str = "run") -> None:
    artifacts = Artifacts(where)
    known = artifacts.ledger.positions([step])[step.fingerprint]
    attempt = artifacts.begin(step, known, run, lease_s=60)
    assert attempt is not None
    artifacts.commit(step, attempt, {}, run=run, source=source)


def states(steps: list[Step], where: Storage, **selection: set[str]) -> list[State]:
    chosen = Selection(**{key: frozenset(names) for key, names in selection.items()})
    return list(planning.plan(steps, Ledger(where), chosen).states.values())


def test_finished_step_needs_none_of_its_ancestors(local: Storage) -> None:
    top, left, right, bottom = steps = diamond()
    commit(local, left)
    assert states(steps, local) == [WAITING, REUSED, WAITING, WAITING]
    commit(local, right)
    assert states(steps, local) == [NOT_NEEDED, REUSED, REUSED, WAITING]
    commit(local, bottom)
    assert states(steps, local) == [NOT_NEEDED, REUSED, REUSED, REUSED]
    del top


def test_forced_step_is_computed_anew_alone(local: Storage) -> None:
    steps = diamond()
    for step in steps:
        commit(local, step)
    assert states(steps, local, force={"left"}) == [REUSED, WAITING, REUSED, REUSED]
    assert states(steps, local, from_={"left"}) == [REUSED, WAITING, REUSED, WAITING]
    assert states(steps, local, from_={"top"}) == [WAITING] * 4


def test_forced_step_brings_back_the_inputs_it_lacks(local: Storage) -> None:
    steps = diamond()
    commit(local, steps[3])
    assert states(steps, local, force={"left"}) == [WAITING, WAITING, NOT_NEEDED, REUSED]


def test_only_names_what_is_missing(local: Storage) -> None:
    steps = diamond()
    plan = planning.plan(steps, Ledger(local), Selection(only=frozenset({"bottom"})))
    assert plan.states["bottom"] is State.BLOCKED
    assert plan.missing == {"bottom": ("left", "right")}
    commit(local, steps[1])
    commit(local, steps[2])
    assert states(steps, local, only={"bottom"}) == [NOT_NEEDED, REUSED, REUSED, WAITING]


def test_unknown_step_is_told_with_the_nearest(local: Storage) -> None:
    with pytest.raises(UnknownStepError, match=r"no step 'botom'.*did you mean 'bottom'"):
        planning.plan(diamond(), Ledger(local), Selection(force=frozenset({"botom"})))


def test_chain_of_ten_thousand_steps_is_planned_and_run_without_recursion(local: Storage) -> None:
    steps = [own_step("s0")]
    for number in range(1, 10_000):
        steps.append(own_step(f"s{number}", steps[-1]))
    assert states(steps, local) == [WAITING] * 10_000


def opened(folder: Path, data: dict[str, Any], *overrides: str) -> Session:
    return Session.open(load_config(write_pipeline(folder, data), overrides), folder)


def explained(session: Session, **selection: set[str]) -> dict[str, Explanation]:
    chosen = Selection(**{key: frozenset(names) for key, names in selection.items()})
    return {one.step: one for one in explain(session, session.plan(chosen))}


def finish(session: Session) -> Plan:
    """Commit every step without computing it, and leave a run's plan behind."""
    from workflows import sources

    plan = session.plan()
    session.write_head(plan)
    for step in session.steps:
        source = sources.of_step(step.kind, step.uses, session.base)
        commit(session.paths.storage, step, source)
    return plan


def test_every_reason_is_told(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    fresh = explained(opened(tmp_path, pipeline))
    assert {one.plan for one in fresh.values()} == {"RUN"}
    assert fresh["pretrain"].why == "not computed yet"
    finish(opened(tmp_path, pipeline))
    done = explained(opened(tmp_path, pipeline))
    assert {(one.plan, one.why) for one in done.values()} == {("REUSE", "")}
    other = explained(opened(tmp_path, pipeline, "pretrain.learning_rate=0.001"))
    assert other["pretrain"].why == "pretrain.learning_rate 0.003 -> 0.001"
    assert other["tone.tune"].why == "input pretrain changed"
    assert other["tone.data"].plan == "REUSE"
    with (tmp_path / "corpus.txt").open("a", encoding="utf-8") as file:
        file.write("\none more document")
    grown = explained(opened(tmp_path, pipeline))
    assert grown["corpus"].why == f"{tmp_path / 'corpus.txt'} changed"
    assert grown["tokenizer"].why == "input corpus changed"


def test_another_order_of_sources_is_told(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    (tmp_path / "more.txt").write_text("more text", encoding="utf-8")
    sources = [{"path": "corpus.txt"}, {"path": "more.txt"}]
    pipeline["corpus"]["sources"] = sources
    finish(opened(tmp_path, pipeline))
    pipeline["corpus"]["sources"] = sources[::-1]
    found = explained(opened(tmp_path, pipeline))
    assert (found["corpus"].plan, found["corpus"].why) == ("RUN", "files are read in another order")


def test_needs_are_told_for_what_runs(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    found = explained(opened(tmp_path, pipeline))
    assert found["pretrain"].needs["workers"] == 2
    assert found["pretrain"].needs["tokens"] == 5120
    assert found["pretrain"].needs["sequences"] == 80
    assert found["tone.tune"].needs["trials"] == 2
    assert "2 trials x 1 CPU" in found["tone.tune"].line
    finish(opened(tmp_path, pipeline))
    assert explained(opened(tmp_path, pipeline))["pretrain"].needs == {}


def test_blocked_and_forced_steps_are_told(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    session = opened(tmp_path, pipeline)
    blocked = explained(session, only={"tokenizer"})["tokenizer"]
    assert (blocked.plan, blocked.why) == ("BLOCKED", "needs corpus")
    assert explained(session)["tokenizer"].plan == "RUN"
    finish(session)
    assert explained(session, force={"tokenizer"})["tokenizer"].why == "forced"


def test_code_that_changed_since_is_shown_as_drift_and_still_reused(
    tmp_path: Path, pipeline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workflows import sources

    finish(opened(tmp_path, pipeline))
    plain_digest = sources.stage_digest
    monkeypatch.setattr(
        sources, "stage_digest", lambda kind: "0" * 16 if kind == "tokens" else plain_digest(kind)
    )
    found = explained(opened(tmp_path, pipeline))
    assert {one.step for one in found.values() if one.has_drifted} == {"tokens"}
    assert found["tokens"].plan == "REUSE"
    assert found["tokens"].why.startswith("DRIFT")


def test_digest_of_another_python_is_no_drift(
    tmp_path: Path, pipeline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workflows import sources

    finish(opened(tmp_path, pipeline))
    monkeypatch.setattr(sources, "of_step", lambda *_: "299-0000")
    assert not any(one.has_drifted for one in explained(opened(tmp_path, pipeline)).values())


def test_live_claim_is_told(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    session = opened(tmp_path, pipeline)
    session.artifacts.begin(session.steps[0], Position(), "nightly", lease_s=60)
    assert explained(session)["tone.data"].why == "run nightly computes it now"


def test_work_that_was_begun_is_told(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    session = opened(tmp_path, pipeline)
    step = session.steps[0]
    attempt = session.artifacts.begin(step, Position(), "nightly", lease_s=60)
    assert attempt is not None
    (attempt.work / "checkpoint").write_text("5")
    session.artifacts.release(step, attempt)
    assert explained(session)[step.name].why == "goes on: it was begun before"


BAD_STEPS: list[tuple[dict[str, Any], str]] = [
    ({"a": {"uses": "nosuch:f"}}, "steps.a.uses: no module 'nosuch'"),
    ({"a": {"uses": "mine:g"}}, "steps.a.uses: no function 'g'"),
    ({"a": {"uses": "mine:f", "inputs": ["corpsu"]}}, "steps.a.inputs: no step 'corpsu'; did you"),
    ({"a": {"uses": "mine:f", "files": {"x": "no.txt"}}}, "steps.a.files.x: .*no such file"),
    ({"corpus": {"uses": "mine:f"}}, "steps.corpus: the pipeline has a step of this name"),
    (
        {"a": {"uses": "mine:f", "inputs": ["b"]}, "b": {"uses": "mine:f", "inputs": ["a"]}},
        "these steps wait for each other",
    ),
]


@pytest.mark.parametrize(("steps", "told"), BAD_STEPS)
def test_own_step_that_cannot_be_is_refused(
    tmp_path: Path, pipeline: dict[str, Any], steps: dict[str, Any], told: str
) -> None:
    (tmp_path / "mine.py").write_text("def f(step):\n    pass\n")
    with pytest.raises(ConfigError, match=told):
        opened(tmp_path, pipeline | {"steps": steps})


def test_limits_of_an_unknown_step_are_refused(tmp_path: Path, pipeline: dict[str, Any]) -> None:
    pipeline["cluster"]["steps"] = {"pretrian": {"timeout_s": 5}}
    with pytest.raises(ConfigError, match=r"cluster\.steps: no step 'pretrian'; did you mean"):
        opened(tmp_path, pipeline)
