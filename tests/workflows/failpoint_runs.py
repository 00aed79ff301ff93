"""Runs that are killed at a failpoint and run again: `failpoint_runs.py NAME FOLDER`.

In a process of its own, without pytest and torch, so that a fork costs little.
"""

import json
import os
import signal
import sys
from pathlib import Path

from own_steps import context, diamond, own_step

from cluster.local import LocalCluster
from workflows import failpoints, planning, runner
from workflows.artifacts import Artifacts
from workflows.garbage import Collector
from workflows.journal import Journal, read
from workflows.ledger import Record
from workflows.models import ModelStore
from workflows.planning import State
from workflows.steps import Step
from workflows.storage import Storage, is_partial


def graph(where: Storage) -> list[Step]:
    """Steps with files, one that publishes what another wrote, one that fails."""
    steps = diamond()
    published = own_step("published", steps[-1], function="publish", storage=where.root)
    return [*steps, published, own_step("failing", function="fail")]


def run(where: Storage, run_id: str) -> runner.RunResult:
    steps, artifacts = graph(where), Artifacts(where)
    return runner.run(
        steps,
        planning.plan(steps, artifacts.ledger),
        context(where, LocalCluster(), run_id),
        Journal(where, f"runs/{run_id}/events", "run"),
    )


def killed(where: Storage, fail_at: str) -> bool:
    """Run in a child that dies at a point; whether it did."""
    child = os.fork()
    if child == 0:
        os.environ[failpoints.VARIABLE] = fail_at
        failpoints.reached.clear()
        try:
            run(where, "killed")
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def reached(folder: Path) -> dict[str, int]:
    """How often an undisturbed run comes by each point."""
    os.environ[failpoints.VARIABLE] = "none"
    run(Storage.at(folder), "run")
    del os.environ[failpoints.VARIABLE]
    found = dict(failpoints.reached)
    failpoints.reached.clear()
    return found


def records(where: Storage) -> dict[str, Record]:
    artifacts = Artifacts(where)
    found = {step.name: artifacts.find(step) for step in graph(where)}
    return {name: record for name, record in found.items() if record is not None}


def commits(where: Storage, step: Step) -> int:
    ledger = Artifacts(where).ledger
    return sum(ledger.record(step, number) is not None for number in range(1, 20))


def killed_and_run_again(folder: Path, fail_at: str) -> None:
    """Kill a run at a point, run again, collect the garbage; check all there is to check."""
    where = Storage.at(folder)
    assert killed(where, fail_at), f"{fail_at} was not reached"
    before = records(where)
    # What is believed is whole.
    for record in before.values():
        Artifacts(where).verified(record)
    result = run(where, "next")
    assert result.states.pop("failing") is State.FAILED
    assert set(result.states.values()) <= {State.DONE, State.REUSED}
    # What was committed has not run again.
    ran = {e["step"] for e in read(where, "runs/next/events") if e.get("state") == "running"}
    assert ran.isdisjoint(before), fail_at
    after = records(where)
    assert {n: r.attempt for n, r in before.items()}.items() <= {
        n: r.attempt for n, r in after.items()
    }.items()
    for step in graph(where)[:-1]:
        assert commits(where, step) == 1
        Artifacts(where).verified(after[step.name])
    output = Artifacts(where).output(after["bottom"]) / "out.txt"
    assert output.read_text() == "bottom(left(top())right(top()))"
    store = ModelStore(where)
    assert str(store.champion("own.model")) == "own.model@1"
    assert len(store.log("own.model")) == 1
    assert_no_litter(where)


def assert_no_litter(where: Storage) -> None:
    """After `gc` nothing is left but what undisturbed runs leave."""
    write_plans(where)
    collector = Collector(where, keep_runs=10)
    collector.remove(collector.find())
    assert collector.find() == []
    found = records(where)
    names = where.find("")
    assert not [name for name in names if is_partial(name)]
    attempts = {tuple(name.split("/")[1:4]) for name in names if name.startswith("artifacts/")}
    assert {attempt for _, _, attempt in attempts} <= {r.attempt for r in found.values()}
    folders = {path.name for path in Path(where.root).glob("artifacts/*/*/*")}
    assert folders == {record.attempt for record in found.values()}
    assert len(where.names("models/own.model/files")) == 1
    assert where.names("leases") == [] or where.find("leases") == {}


def write_plans(where: Storage) -> None:
    """Runs without a session have no plan; `gc` reaches artifacts from plans."""
    steps = {step.name: [step.kind, step.fingerprint] for step in graph(where)}
    plan = {"schema_version": 2, "pipeline": "own", "steps": steps}
    where.write("runs/own-20260101-000000-abcd/plan.json", json.dumps(plan).encode())


def main(name: str, folder: str) -> None:
    """Kill at a point each time that a run comes by it; or tell how often it comes by each."""
    if name == "count":
        print(json.dumps(reached(Path(folder))))
        return
    for count in range(1, reached(Path(folder, "undisturbed"))[name] + 1):
        killed_and_run_again(Path(folder, str(count)), f"{name}:{count}")
        print(count)


if __name__ == "__main__":
    main(*sys.argv[1:])
