"""Gangs whose ranks hang, whose nodes go and come: on a real Ray of several nodes."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from toys import GangOfSteps, GangThatWatches, write_to

from cluster.config import ClusterConfig, GangConfig, RetryConfig, WorkerRange
from cluster.interface import WorkerLostError
from cluster.leaving import Leaving
from cluster.ray_cluster import RayCluster, connect

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass
class Nodes:
    """A head without CPUs, and nodes that come and go."""

    cluster: Cluster
    connected: RayCluster
    alive: list[object] = field(default_factory=list)

    def add(self, cpus: int = 1) -> None:
        self.alive.append(self.cluster.add_node(num_cpus=cpus))

    def clear(self) -> None:
        for node in self.alive:
            if node in self.cluster.list_all_nodes():
                self.cluster.remove_node(node, allow_graceful=False)
        self.alive.clear()


@pytest.fixture(scope="module")
def running(no_token: None) -> Iterator[Nodes]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        config = ClusterConfig(address=cluster.address, retry=RetryConfig(max_attempts=2))
        with connect(config) as connected:
            yield Nodes(cluster, connected)
    finally:
        cluster.shutdown()


@pytest.fixture
def nodes(running: Nodes) -> Iterator[Nodes]:
    yield running
    running.clear()


@dataclass(frozen=True)
class Line:
    """What a rank wrote at a step."""

    step: int
    size: int
    node: str
    at: float


def lines(folder: Path, rank: int = 0) -> list[Line]:
    path = folder / f"steps{rank}"
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [Line(int(step), int(size), node, float(at)) for step, size, node, at in rows]


def run_gang(
    nodes: Nodes, toy: GangOfSteps, workers: int | WorkerRange, disturb: Callable[[], None]
) -> None:
    """Run the toy; once it has made five steps, disturb it."""

    def when_it_runs() -> None:
        while len(lines(toy.folder)) < 5:
            time.sleep(0.05)
        disturb()

    threading.Thread(target=when_it_runs, daemon=True).start()
    nodes.connected.run_gang(
        toy,
        GangConfig(workers=workers),
        name="gang",
        directory=str(toy.folder / "ray"),
        log=toy.folder / "gang.log",
        on_report=partial(write_to, toy.folder / "reports"),
    )


def send(folder: Path, rank: int, number: int) -> None:
    os.kill(int((folder / f"pid{rank}").read_text()), number)


def test_elastic_gang_goes_on_with_fewer_workers_when_a_node_is_gone(
    nodes: Nodes, tmp_path: Path
) -> None:
    nodes.add()
    nodes.add()

    def remove_node() -> None:
        node = nodes.alive[-1]
        nodes.cluster.remove_node(node, allow_graceful=False)

    run_gang(nodes, GangOfSteps(tmp_path, 40), WorkerRange(min=1, max=2), remove_node)
    told = lines(tmp_path)
    assert [told[0].size, told[-1].size] == [2, 1]
    assert told[-1].step == 39
    assert {line.step for line in told} == set(range(40))


def test_gang_leaves_a_node_that_is_drained_and_this_counts_as_no_attempt(
    nodes: Nodes, tmp_path: Path
) -> None:
    """`max_attempts` would allow one lost worker, and one is lost as well."""
    nodes.add()
    nodes.add()
    nodes.add()
    drained: list[str] = []
    left: list[int] = []

    def drain() -> None:
        drained.append(lines(tmp_path)[-1].node)
        leaving = Leaving(nodes.cluster.address, drained[0])
        leaving.announce(300)
        left.append(leaving.wait_for_ranks(60))
        while len({line.node for line in lines(tmp_path)}) < 2:
            time.sleep(0.1)
        send(tmp_path, 1, signal.SIGKILL)

    run_gang(nodes, GangOfSteps(tmp_path, 150), 2, drain)
    told = lines(tmp_path)
    assert left == [0]
    assert told[0].node == drained[0]
    assert told[-1].node != drained[0]
    assert told[-1].step == 149
    assert "saved after step" in (tmp_path / "gang.log").read_text()
    # It saved before it left: no step was made twice because of the drain.
    first = [line.step for line in told if line.node == drained[0]]
    after = [line.step for line in told if line.node != drained[0]]
    assert after[0] == first[-1] + 1


def test_hung_rank_ends_its_gang_which_starts_again(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(cpus=2)
    stopped: list[float] = []

    def stop() -> None:
        send(tmp_path, 1, signal.SIGSTOP)
        stopped.append(time.time())

    run_gang(nodes, GangThatWatches(tmp_path, 30, least_s=5.0), 2, stop)
    told = lines(tmp_path)
    assert told[-1].step == 29
    back = next(line.at for line in told if line.at > stopped[0] + 4)
    assert back - stopped[0] < 90
    log = (tmp_path / "gang.rank0.log").read_text()
    assert "no step for" in log
    assert "GangThatWatches" in log or "__call__" in log  # where it hung


def test_rank_that_is_terminated_is_a_lost_worker(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(cpus=2)
    run_gang(nodes, GangOfSteps(tmp_path, 30), 2, partial(send, tmp_path, 1, signal.SIGTERM))
    assert lines(tmp_path)[-1].step == 29


def test_gang_that_loses_workers_too_often_is_given_up(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(cpus=2)

    def kill_twice() -> None:
        for _ in range(2):
            made = len(lines(tmp_path, 1))
            while len(lines(tmp_path, 1)) == made:  # who dies while a gang starts does not count
                time.sleep(0.05)
            send(tmp_path, 1, signal.SIGKILL)

    with pytest.raises(WorkerLostError, match=r"rank \d of the gang (was lost|lost a peer)"):
        run_gang(nodes, GangOfSteps(tmp_path, 10_000), 2, kill_twice)
    assert ray.is_initialized()
