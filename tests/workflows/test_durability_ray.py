"""How a run on a real Ray meets what goes wrong in its processes."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_steps import context, own_step

from cluster.config import ClusterConfig, WorkerConfig
from cluster.ray_cluster import RayCluster, connect
from workflows import planning, runner
from workflows.artifacts import Artifacts
from workflows.journal import Journal, read
from workflows.ledger import Claim, Position, Release
from workflows.planning import State
from workflows.run_result import RunResult
from workflows.steps import Step
from workflows.storage import Storage

pytestmark = pytest.mark.ray

ONE_CPU = WorkerConfig()


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    with connect(ClusterConfig()) as connected:
        yield connected
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def run(
    graph: list[Step],
    cluster: RayCluster,
    where: Storage,
    *,
    fail_fast: bool = False,
    **settings: object,
) -> RunResult:
    run_context = context(where, cluster, "run", **settings)
    return runner.run(
        graph,
        planning.plan(graph, Artifacts(where).ledger),
        run_context,
        Journal(where, run_context.paths.events, "run"),
        fail_fast=fail_fast,
    )


def is_released(where: Storage, step: Step) -> bool:
    position = Artifacts(where).ledger.position(step, Position())
    return isinstance(position.entry, Release)


def test_step_whose_process_is_killed_is_tried_again(
    cluster: RayCluster, local: Storage, tmp_path: Path
) -> None:
    step = own_step("dies", function="die_once", resources=ONE_CPU, path=str(tmp_path / "died"))
    result = run([step], cluster, local, lease_s=3600)
    assert result.states == {"dies": State.DONE}
    told = [e for e in read(local, "runs/run/events") if e["state"] == "running"]
    assert [event["attempt"] for event in told] == [1, 2]


def test_step_that_takes_too_long_is_ended_and_the_others_go_on(
    cluster: RayCluster, local: Storage
) -> None:
    hangs = own_step("hangs", function="hang", resources=ONE_CPU)
    steps = [hangs, own_step("behind", hangs), own_step("fine", resources=ONE_CPU)]
    started = time.monotonic()
    result = run(steps, cluster, local, steps={"hangs": {"timeout_s": 2.0}})
    assert time.monotonic() - started < 60
    assert result.states == {
        "hangs": State.FAILED,
        "behind": State.BLOCKED,
        "fine": State.DONE,
    }
    assert result.failures[0].cause == "not done after 2 s"
    assert is_released(local, hangs)


def test_first_of_two_that_take_too_long_ends_a_run_that_is_to_fail_fast(
    cluster: RayCluster, local: Storage
) -> None:
    steps = [own_step(name, function="hang", resources=ONE_CPU) for name in ("one", "two")]
    limits = {step.name: {"timeout_s": 5.0} for step in steps}
    result = run(steps, cluster, local, fail_fast=True, steps=limits)
    assert sorted(result.states.values()) == [State.BLOCKED, State.FAILED]
    assert all(is_released(local, step) for step in steps)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell starts what is in the background with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_once_begun(where: Storage, step: Step) -> None:
    ledger = Artifacts(where).ledger
    while ledger.position(step, Position()).number == 0:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def test_interrupt_ends_what_runs_and_releases_it(cluster: RayCluster, local: Storage) -> None:
    hangs = own_step("hangs", function="hang", resources=ONE_CPU)
    threading.Thread(target=interrupt_once_begun, args=(local, hangs)).start()
    result = run([hangs, own_step("behind", hangs)], cluster, local)
    assert result.is_stopped
    assert result.states == {"hangs": State.STOPPED, "behind": State.STOPPED}
    assert is_released(local, hangs)


def test_step_that_does_not_heed_a_stop_in_time_is_ended(
    cluster: RayCluster, local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_HEED_STOP", {"custom"})
    hangs = own_step("hangs", function="hang", resources=ONE_CPU)
    threading.Thread(target=interrupt_once_begun, args=(local, hangs)).start()
    result = run([hangs], cluster, local, stop_grace_s=1.0)
    assert result.is_stopped
    assert result.states == {"hangs": State.STOPPED}
    assert is_released(local, hangs)


def test_second_interrupt_waits_for_nothing(
    cluster: RayCluster, local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_HEED_STOP", {"custom"})
    hangs = own_step("hangs", function="hang", resources=ONE_CPU)

    def interrupt_twice() -> None:
        interrupt_once_begun(local, hangs)
        while not local.exists("runs/run/stop"):
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_twice).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run([hangs], cluster, local, stop_grace_s=3600.0)
    assert time.monotonic() - started < 60
    assert is_released(local, hangs)


def test_wide_graph_is_computed_by_few_processes(cluster: RayCluster, local: Storage) -> None:
    steps = [own_step(f"s{n}", function="nothing", resources=ONE_CPU) for n in range(60)]
    result = run(steps, cluster, local)
    assert set(result.states.values()) == {State.DONE}
    claims = [Artifacts(local).ledger._entry(step, 1) for step in steps]
    assert len({claim.owner.pid for claim in claims if isinstance(claim, Claim)}) <= 4


def test_long_chain_runs(cluster: RayCluster, local: Storage) -> None:
    steps = [own_step("s0", function="nothing", resources=ONE_CPU)]
    for number in range(1, 300):
        steps.append(own_step(f"s{number}", steps[-1], function="nothing", resources=ONE_CPU))
    assert set(run(steps, cluster, local).states.values()) == {State.DONE}
