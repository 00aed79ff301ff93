import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from own_steps import own_step

from workflows.artifacts import Artifacts
from workflows.family import MEMBER, Family, Member, as_it_came, holm
from workflows.ledger import Position
from workflows.models import ChampionChangedError, ModelStore, Version
from workflows.steps import Step, StepRef
from workflows.storage import Storage

STEPS = ("a.promote", "b.promote", "c.promote", "d.promote")


def refs(*names: str) -> tuple[StepRef, ...]:
    return tuple(StepRef(name, "promote", name) for name in names)


def family(storage: Storage, run: str = "run") -> Family:
    return Family(storage, f"runs/{run}/family", refs(*STEPS))


def member(p: float) -> Member:
    return Member(p, 0.05, {"version": 1, "name": "t.a", "reason": f"{p}"})


def test_holm_of_a_worked_example() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert holm({"a": 0.02}) == {"a": 0.02}
    assert holm({}) == {}


def test_who_is_not_judged_yet_counts_as_not_proved(storage: Storage) -> None:
    of = family(storage)
    of.join("a.promote", member(0.02))
    assert of.proved() == {}  # 0.08 of four
    of.join("b.promote", member(0.001))
    assert of.proved().keys() == {"b.promote"}  # then 0.06 of three
    of.join("c.promote", Member(1.0, 0.05, None))
    of.join("d.promote", member(0.01))
    assert of.proved().keys() == {"a.promote", "b.promote", "d.promote"}
    assert of.adjusted()["c.promote"] == 1.0


@pytest.mark.parametrize("order", itertools.permutations(STEPS))
def test_what_is_proved_stays_proved_and_the_end_knows_no_order(
    local: Storage, order: tuple[str, ...]
) -> None:
    p_values = dict(zip(STEPS, (0.03, 0.012, 0.04, 0.005), strict=True))
    of, proved = family(local), set[str]()
    for step in order:
        of.join(step, member(p_values[step]))
        now = set(of.proved())
        assert proved <= now
        proved = now
    assert proved == {"b.promote", "d.promote"}  # uncorrected, all four


def test_a_rule_that_asks_for_no_proof_is_heeded(storage: Storage) -> None:
    of = family(storage)
    of.join("a.promote", Member(0.9, 1.0, {"reason": "better"}))
    assert of.proved().keys() == {"a.promote"}


def commit(storage: Storage, step: Step, member: Member, **facts: Any) -> None:
    """Let a step be done, whose record tells what its model came to."""
    artifacts = Artifacts(storage)
    attempt = artifacts.begin(step, Position(), "run", lease_s=60)
    assert attempt is not None
    artifacts.commit(step, attempt, {MEMBER: asdict(member), **facts}, run="run")


@dataclass
class World:
    """Two models of a pipeline, in a store where neither is champion yet."""

    storage: Storage
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "config.json").write_text("{}")
        self.store = ModelStore(self.storage)
        self.steps = {name: own_step(f"{name}.promote") for name in ("a", "b")}
        self.versions = {
            name: self.store.add(
                f"t.{name}", self.folder, fingerprint="f", attempt="a", task={}, scores={}
            )
            for name in self.steps
        }

    def family(self, run: str) -> Family:
        steps = tuple(step.ref for step in self.steps.values())
        return Family(self.storage, f"runs/{run}/family", steps)

    def member(self, name: str, p: float) -> Member:
        promotion = {
            "version": 1,
            "name": f"t.{name}",
            "expected": None,
            "reason": "better",
            "judgement": {"p": p},
            "alias": "champion",
        }
        return Member(p, 0.05, promotion)

    @property
    def champions(self) -> set[str]:
        return {name for name in self.steps if self.store.champion(f"t.{name}")}


@pytest.fixture
def world(storage: Storage, tmp_path: Path) -> World:
    return World(storage, tmp_path / "model")


def test_what_earlier_runs_judged_counts_as_if_one_run_had_judged_all(world: World) -> None:
    commit(world.storage, world.steps["a"], Member(1.0, 0.05, None))  # kept back
    of = world.family("next")
    of.join("b.promote", world.member("b", 0.03))
    of.settle(run="next", own="b.promote")
    assert world.champions == set()  # 0.06 of two, whichever run judged the first
    of.join("b.promote", world.member("b", 0.02))
    of.settle(run="next", own="b.promote")
    assert world.champions == {"b"}
    (entry,) = world.store.log("t.b")
    assert entry["reason"] == "better; p 0.04 among 2 models of the pipeline"


def test_a_model_that_waits_is_promoted_by_whichever_run_proves_it(world: World) -> None:
    waiting = world.member("a", 0.03)
    commit(world.storage, world.steps["a"], waiting)
    world.family("other").settle(run="other")
    assert world.champions == set()
    of = world.family("next")
    of.join("b.promote", world.member("b", 0.01))
    of.settle(run="next", own="b.promote")
    assert world.champions == {"a", "b"}
    facts = {"model": "t.a@1", "reason": "waits", "outcome": "x", MEMBER: asdict(waiting)}
    came = as_it_came(world.store, facts)
    assert (came["outcome"], came["promoted"]) == ("promoted", True)
    assert MEMBER not in came


def test_runs_that_judge_at_the_same_time_settle_when_both_are_done(world: World) -> None:
    for name, p in (("a", 0.03), ("b", 0.01)):
        of = world.family(name)  # each run knows its own alone
        of.join(f"{name}.promote", world.member(name, p))
        of.settle(run=name, own=f"{name}.promote")
    assert world.champions == {"b"}
    for name, p in (("a", 0.03), ("b", 0.01)):
        commit(world.storage, world.steps[name], world.member(name, p))
    world.family("b").settle(run="b")
    assert world.champions == {"a", "b"}


def test_what_people_did_since_is_not_undone(world: World) -> None:
    of = world.family("run")
    for name in world.steps:
        of.join(f"{name}.promote", world.member(name, 0.001))
    of.settle(run="run")
    second = world.store.add("t.a", world.folder, fingerprint="g", attempt="b", task={}, scores={})
    first = world.versions["a"]
    world.store.promote(second, expected=first, reason="by hand", run=None)
    of.settle(run="again")
    assert world.store.champion("t.a") == second


def test_one_whose_champion_changed_does_not_keep_the_others_from_theirs(world: World) -> None:
    other = world.store.add("t.a", world.folder, fingerprint="g", attempt="b", task={}, scores={})
    world.store.promote(other, expected=None, reason="by hand", run=None)
    of = world.family("run")
    for name in world.steps:
        of.join(f"{name}.promote", world.member(name, 0.001))
    with pytest.raises(ChampionChangedError, match=r"champion is t\.a@2, not None"):
        of.settle(run="run", own="a.promote")
    assert world.store.champion("t.b") == world.versions["b"]
    of.settle(run="run", own="b.promote")  # which knows nothing of it
    waiting = asdict(world.member("a", 0.001))
    told = as_it_came(world.store, {"model": "t.a@1", "reason": "better", MEMBER: waiting})
    assert "compared with no champion, which is not how it is now" in told["reason"]


def test_a_model_whose_version_is_gone_is_not_promoted(world: World) -> None:
    of = world.family("run")
    for name in world.steps:
        of.join(f"{name}.promote", world.member(name, 0.001))
    world.storage.delete("models/t.a")
    of.settle(run="run")
    assert world.champions == {"b"}


def test_what_was_settled_by_another_step_at_the_same_time_is_no_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = world.family("run")
    for name in world.steps:
        of.join(f"{name}.promote", world.member(name, 0.001))
    promote = ModelStore.promote

    def twice(self: ModelStore, version: Version, **given: Any) -> None:
        promote(self, version, **given)  # the other step's
        raise ChampionChangedError("another promotion came first")

    monkeypatch.setattr(ModelStore, "promote", twice)
    of.settle(run="run", own="a.promote")
    assert world.champions == {"a", "b"}
    assert [entry["judgement"] for entry in world.store.log("t.a")] == [{"p": 0.001}]
