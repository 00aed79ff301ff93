from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.capacity import CapacityError
from cluster.config import ClusterConfig, GangConfig
from cluster.interface import Capacity
from cluster.local import LocalCluster
from workflows.demand import Demand
from workflows.steps import Step

GANG = [{"CPU": 4}] * 2


@dataclass
class Growing(LocalCluster):
    """Has another node after so many seconds."""

    grows_at_s: float
    now: float = 0.0
    asked: list[Any] = field(default_factory=list)

    def capacity(self) -> Capacity:
        return Capacity.of(*[(4, 0)] * (2 if self.now >= self.grows_at_s else 1))

    def expect(self, bundles: Sequence[Mapping[str, float]]) -> None:
        self.asked.append(list(bundles))

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def demand_of(cluster: Growing, wait_s: float = 0.0, steps: Sequence[Step] = ()) -> Demand:
    config = ClusterConfig(pretrain=GangConfig(workers=2, cpus=4), wait_for_nodes_s=wait_s)
    return Demand(cluster, config, steps, {}, clock=lambda: cluster.now, sleep=cluster.sleep)


def test_what_can_never_be_met_fails_at_once() -> None:
    cluster = Growing(float("inf"))
    with pytest.raises(CapacityError, match="2 workers with 4 CPUs each, but the whole cluster"):
        demand_of(cluster).wait(print)
    assert (cluster.now, cluster.asked) == (0, [])


def test_what_may_come_is_asked_and_waited_for_and_given_back() -> None:
    cluster, told = Growing(grows_at_s=30), []
    demand_of(cluster, wait_s=60).wait(told.append)
    assert 30 <= cluster.now < 35
    assert cluster.asked == [GANG, []]
    assert len(told) == 1
    assert told[0].startswith("waiting 60 s at most for nodes: cluster.pretrain asks for 2 workers")


def test_what_does_not_come_in_time_fails_with_the_numbers() -> None:
    cluster = Growing(grows_at_s=90)
    demand = demand_of(cluster, wait_s=60)
    with pytest.raises(CapacityError, match="has 4 CPUs"):
        demand.wait(print)
    demand.release()
    assert 60 <= cluster.now < 65
    assert cluster.asked == [GANG, []]


def test_the_gangs_nodes_are_asked_for_while_its_last_input_is_computed() -> None:
    from cluster.schema import Schema

    class Spec(Schema):
        """Nothing."""

    tokens = Step(name="tokens", kind="tokens", spec=Spec(), version=1, inputs={})
    pretrain = Step(
        name="pretrain", kind="pretrain", spec=Spec(), version=1, inputs={"tokens": tokens.ref}
    )
    cluster = Growing(0)
    demand = demand_of(cluster, steps=[tokens, pretrain])
    for of_tokens, of_pretrain in (
        ("waiting", "waiting"),
        ("running", "waiting"),
        ("done", "waiting"),
        ("done", "running"),
        ("done", "done"),
    ):
        demand.look({"tokens": of_tokens, "pretrain": of_pretrain})
    demand.release()
    assert cluster.asked == [GANG, []]
