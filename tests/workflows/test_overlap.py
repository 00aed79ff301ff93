"""Two runs of one pipeline at the same time, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import run_graph

from workflows.artifacts import Artifacts
from workflows.journal import read
from workflows.ledger import Record
from workflows.storage import Storage

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


class Runs:
    """Processes that run the same two steps in one storage."""

    def __init__(self, where: Storage, folder: Path) -> None:
        self.storage, self.folder = where, folder
        self.go = folder / "go"
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, run_id: str, lease_s: float = 60.0) -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "run_graph.py"), self.storage.root, run_id]
        process = subprocess.Popen(
            [*command, str(lease_s), str(self.begun), str(self.go)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(HERE)},
        )
        self.processes.append(process)
        return process

    @property
    def begun(self) -> Path:
        return self.folder / "begun"

    def end(self, process: subprocess.Popen[str]) -> str:
        printed, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return printed.strip()

    def record(self, name: str) -> Record | None:
        steps = {s.name: s for s in run_graph.graph(str(self.begun), str(self.go))}
        return Artifacts(self.storage).find(steps[name])

    def times_run(self, step: str) -> list[str]:
        return [
            run
            for run in self.storage.names("runs")
            for event in read(self.storage, f"runs/{run}/events")
            if event.get("step") == step and event.get("state") == "done"
        ]

    def told(self, run_id: str) -> list[str]:
        events = read(self.storage, f"runs/{run_id}/events")
        return [event["cause"] for event in events if event.get("cause")]


@pytest.fixture
def runs(storage: Storage, tmp_path: Path) -> Iterator[Runs]:
    started = Runs(storage, tmp_path)
    yield started
    for process in started.processes:
        process.kill()
        process.wait()


def eventually(claim: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def test_each_step_is_computed_once_and_the_second_run_waits_and_reuses(runs: Runs) -> None:
    first = runs.start("first")
    eventually(runs.begun.exists)
    second = runs.start("second")
    eventually(lambda: runs.told("second"))
    assert runs.told("second") == ["run first computes it"]
    assert second.poll() is None
    runs.go.touch()
    # Whoever sees first that a step can begin computes it; only the held one is sure to be first's.
    assert runs.end(first).split()[0] == "done"
    assert runs.end(second).split()[0] == "reused"
    assert runs.times_run("waits") == ["first"]
    assert len(runs.times_run("reads")) == 1


def test_when_the_first_is_killed_the_second_takes_over_at_once(runs: Runs) -> None:
    """At once: on one machine a dead process is known to be dead, however long its lease."""
    first = runs.start("first", lease_s=3600)
    eventually(runs.begun.exists)
    second = runs.start("second", lease_s=3600)
    eventually(lambda: runs.told("second"))
    runs.begun.unlink()
    first.send_signal(signal.SIGKILL)
    first.wait()
    eventually(runs.begun.exists)
    runs.go.touch()
    assert runs.end(second) == "done done"
    assert runs.times_run("waits") == ["second"]


def test_frozen_owner_that_wakes_after_its_lease_was_taken_cannot_commit(runs: Runs) -> None:
    first = runs.start("first", lease_s=2.0)
    eventually(runs.begun.exists)
    first.send_signal(signal.SIGSTOP)
    runs.begun.unlink()
    second = runs.start("second", lease_s=2.0)
    eventually(runs.begun.exists)
    runs.go.touch()
    assert runs.end(second) == "done done"
    first.send_signal(signal.SIGCONT)
    assert runs.end(first) == "reused reused"
    record = runs.record("waits")
    assert record is not None
    assert record.run == "second"
    assert runs.times_run("waits") == ["second"]


def test_frozen_owner_that_wakes_while_its_heir_works_gives_up(runs: Runs) -> None:
    first = runs.start("first", lease_s=2.0)
    eventually(runs.begun.exists)
    first.send_signal(signal.SIGSTOP)
    runs.begun.unlink()
    second = runs.start("second", lease_s=2.0)
    eventually(runs.begun.exists)
    first.send_signal(signal.SIGCONT)
    eventually(lambda: "run second computes it" in runs.told("first"))
    runs.go.touch()
    assert runs.end(second).split()[0] == "done"
    assert runs.end(first).split()[0] == "reused"
    assert runs.times_run("waits") == ["second"]


def test_busy_owner_keeps_its_lease(runs: Runs) -> None:
    """Longer at work than its lease is long, but with signs of life."""
    first = runs.start("first", lease_s=2.0)
    eventually(runs.begun.exists)
    second = runs.start("second", lease_s=2.0)
    time.sleep(5.0)
    runs.go.touch()
    assert runs.end(first).split()[0] == "done"
    assert runs.end(second).split()[0] == "reused"


def test_many_runs_at_once_compute_each_step_once(runs: Runs) -> None:
    runs.go.touch()
    for number in range(6):
        runs.start(f"run{number}")
    ended = [runs.end(process) for process in runs.processes]
    assert len(ended) == 6
    assert len(runs.times_run("waits")) == 1
    assert len(runs.times_run("reads")) == 1
