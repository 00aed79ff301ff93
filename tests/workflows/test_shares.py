"""What one of a run's searches may use of the cluster."""

import pytest

from cluster.config import TrialConfig
from cluster.interface import Capacity
from cluster.local import LocalCluster
from workflows.journal import DRIVER, Journal, Tail
from workflows.planning import State
from workflows.shares import Search, Share, searches
from workflows.steps import Step
from workflows.storage import Storage

EVENTS = "events"
ALONE: frozenset[str] = frozenset()


class GrowingCluster(LocalCluster):
    cpus = 8

    def capacity(self) -> Capacity:
        return Capacity.of((self.cpus, 0))


class Run:
    """A run whose driver tells what a test says."""

    def __init__(self, storage: Storage, step: str, *of: Search) -> None:
        self.storage, self.cluster = storage, GrowingCluster()
        self.journal = Journal(storage, EVENTS, DRIVER)
        tail = Tail(storage, EVENTS, writer=DRIVER)
        self.share = Share(self.cluster, TrialConfig(), of, step, tail)

    def tell(self, **states: State) -> None:
        for name, state in states.items():
            self.journal.append("step", step=name.replace("_", "."), state=state)
        self.journal.flush()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test moves."""
    time = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: time[0])
    return time


def test_share_grows_with_what_others_leave_and_with_the_cluster(
    storage: Storage, now: list[float]
) -> None:
    of = [Search((f"{name}.tune", f"{name}.final"), ALONE) for name in "abcd"]
    run = Run(storage, "a.tune", *of)

    def later(**states: State) -> int:
        run.tell(**states)
        now[0] += 10.0
        return run.share()

    assert run.share() == 2
    reused = {"c_tune": State.REUSED, "c_final": State.REUSED}
    assert later(a_tune=State.RUNNING, b_tune=State.WAITING, **reused) == 2
    assert later(d_tune=State.FAILED, d_final=State.BLOCKED) == 4
    assert later(b_tune=State.DONE, b_final=State.RUNNING) == 4  # it trains yet
    assert later(b_final=State.DONE) == 8
    run.cluster.cpus = 16
    assert run.share() == 8  # nobody looks all the time
    assert later() == 16
    run.cluster.cpus = 0
    assert later() == 1


def test_no_share_is_kept_for_who_waits_for_this_one(storage: Storage) -> None:
    first, second = Search(("a.tune",), ALONE), Search(("b.tune",), frozenset({"a.tune"}))
    assert Run(storage, "a.tune", first, second).share() == 8
    assert Run(storage, "b.tune", first, second).share() == 4


def test_only_the_driver_says_that_a_search_has_ended(storage: Storage) -> None:
    step = Journal(storage, EVENTS, "a.tune")
    step.append("step", step="b.tune", state=State.DONE)
    step.flush()
    of = [Search((f"{name}.tune",), ALONE) for name in "ab"]
    assert Run(storage, "a.tune", *of).share() == 4


def test_share_stays_while_the_storage_does_not_answer(
    remote: Storage, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    of = [Search((f"{name}.tune",), ALONE) for name in "ab"]
    run = Run(remote, "a.tune", *of)
    run.tell(b_tune=State.DONE)
    assert run.share() == 8

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("connection refused")

    now[0] += 10.0
    monkeypatch.setattr(type(remote._files), "find", refuse)
    assert run.share() == 8


def test_searches_of_a_pipeline_and_what_they_wait_for() -> None:
    def step(name: str, kind: str, *inputs: Step) -> Step:
        return Step(name, kind, 1, TrialConfig(), {one.name: one.ref for one in inputs})

    base = step("base", "base")
    a = step("a.tune", "tune", base)
    b = step("b.tune", "tune", base, a)
    c = step("c.tune", "tune", b)
    of_a = step("a.final", "final", base, a)
    assert list(searches([base, a, b, c, of_a])) == [
        Search(("a.tune", "a.final"), ALONE),
        Search(("b.tune",), frozenset({"a.tune"})),
        Search(("c.tune",), frozenset({"a.tune", "b.tune"})),
    ]
