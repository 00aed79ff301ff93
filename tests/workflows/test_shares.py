"""What one of a run's searches may use of the cluster."""

import pytest

from cluster.config import TrialConfig
from cluster.interface import Capacity
from cluster.local import LocalCluster
from workflows.journal import DRIVER, Journal, Tail
from workflows.planning import State
from workflows.shares import Share
from workflows.storage import Storage

EVENTS = "events"


class GrowingCluster(LocalCluster):
    cpus = 8

    def capacity(self) -> Capacity:
        return Capacity(cpus=self.cpus, gpus=0)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test moves."""
    time = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: time[0])
    return time


def test_share_grows_with_what_others_leave_and_with_the_cluster(
    storage: Storage, now: list[float]
) -> None:
    cluster, journal = GrowingCluster(), Journal(storage, EVENTS, DRIVER)
    searches = ["a.tune", "b.tune", "c.tune", "d.tune"]
    share = Share(cluster, TrialConfig(), searches, Tail(storage, EVENTS, writer=DRIVER))

    def later(**states: State) -> int:
        for name, state in states.items():
            journal.append("step", step=f"{name}.tune", state=state)
        journal.flush()
        now[0] += 10.0
        return share()

    assert share() == 2
    assert later(a=State.RUNNING, b=State.WAITING, c=State.REUSED) == 2
    assert later(d=State.FAILED) == 4
    assert later(b=State.RUNNING) == 4
    assert later(b=State.DONE) == 8
    cluster.cpus = 16
    assert share() == 8  # it is not asked about all the time
    assert later(a=State.RUNNING) == 16
    cluster.cpus = 0
    assert later() == 1


def test_only_the_driver_says_that_a_search_has_ended(storage: Storage) -> None:
    step = Journal(storage, EVENTS, "a.tune")
    step.append("step", step="b.tune", state=State.DONE)
    step.flush()
    tail = Tail(storage, EVENTS, writer=DRIVER)
    assert Share(GrowingCluster(), TrialConfig(), ["a.tune", "b.tune"], tail)() == 4
