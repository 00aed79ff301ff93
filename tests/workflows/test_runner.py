"""The order of steps, on the cluster that runs in this process, with the tiny pipeline."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import write_pipeline

from cluster.config import RetryConfig, WorkerConfig
from cluster.interface import Outcome, Pending, WorkerLostError
from cluster.local import Done, LocalCluster
from workflows import runner
from workflows.artifacts import Artifacts
from workflows.config import load_config
from workflows.execution import Computed
from workflows.journal import read
from workflows.ledger import stem_of
from workflows.planning import State
from workflows.run_result import RunResult
from workflows.session import Session
from workflows.steps import Step


class Cluster(LocalCluster):
    """Runs no step but commits an empty result for it; may lose or fail some."""

    def __init__(self, artifacts: Artifacts) -> None:
        self.artifacts = artifacts
        self.started: list[str] = []
        self.lose: dict[str, int] = {}
        self.fail: set[str] = set()

    def submit(
        self, function: Any, *args: Any, log: Path, worker: WorkerConfig | None = None
    ) -> Pending:
        assignment, context = args
        step: Step = assignment.step
        self.started.append(step.name)
        attempt = self.artifacts.begin(step, assignment.after, context.paths.run_id, lease_s=60)
        assert attempt is not None
        if self.lose.get(step.name, 0) > 0:
            self.lose[step.name] -= 1
            return Done(Outcome(error=WorkerLostError("node died")))
        if step.name in self.fail:
            return super().submit(_raise, step.name, log=log)
        position = self.artifacts.commit(step, attempt, {}, run=context.paths.run_id)
        assert position is not None
        return Done(Outcome(value=Computed(position.committed, {})))


def _raise(name: str) -> None:
    raise KeyError(name)


@pytest.fixture
def session(tmp_path: Path, pipeline: dict[str, Any]) -> Session:
    return Session.open(load_config(write_pipeline(tmp_path, pipeline)), tmp_path)


def run(session: Session, cluster: Cluster, max_attempts: int = 3) -> RunResult:
    retry = RetryConfig(max_attempts=max_attempts, delay_s=0)
    execution = session.config.cluster.model_copy(update={"retry": retry})
    context = replace(session.context(cluster), execution=execution)
    return runner.run(session.steps, session.plan(), context, session.journal)


def test_every_step_runs_once_behind_its_inputs(session: Session) -> None:
    cluster = Cluster(session.artifacts)
    result = run(session, cluster)
    assert set(result.states.values()) == {State.DONE}
    assert sorted(cluster.started) == sorted(step.name for step in session.steps)
    place = {name: number for number, name in enumerate(cluster.started)}
    for step in session.steps:
        assert all(place[other.name] < place[step.name] for other in step.inputs.values())


def test_second_run_reuses_everything(session: Session) -> None:
    run(session, Cluster(session.artifacts))
    assert set(session.plan().states.values()) == {State.REUSED}


def test_finished_step_does_not_rebuild_its_ancestors(session: Session) -> None:
    run(session, Cluster(session.artifacts))
    for step in session.steps:
        if step.kind in ("corpus", "tokens", "tune", "promote"):
            session.artifacts.ledger.forget(step.kind, stem_of(step.fingerprint))
    states = session.plan().states
    assert states["corpus"] is State.NOT_NEEDED
    assert states["tone.tune"] is State.NOT_NEEDED
    assert states["pretrain"] is State.REUSED
    assert states["tone.promote"] is State.WAITING
    cluster = Cluster(session.artifacts)
    run(session, cluster)
    assert sorted(cluster.started) == ["places.promote", "tone.promote"]


def test_failed_task_stops_neither_the_other_nor_the_report(session: Session) -> None:
    cluster = Cluster(session.artifacts)
    cluster.fail = {"tone.tune"}
    result = run(session, cluster)
    assert result.states["tone.tune"] is State.FAILED
    assert result.states["tone.final"] is State.BLOCKED
    assert result.states["tone.promote"] is State.BLOCKED
    assert result.states["places.promote"] is State.DONE
    assert "report" in cluster.started
    (failure,) = result.failures
    assert failure.step == "tone.tune"
    assert failure.cause == "KeyError: 'tone.tune'"
    assert "KeyError" in Path(failure.log).read_text()
    assert not failure.is_input_error


def test_what_the_code_raised_is_not_tried_again(session: Session) -> None:
    cluster = Cluster(session.artifacts)
    cluster.fail = {"corpus"}
    run(session, cluster)
    assert cluster.started.count("corpus") == 1


def test_what_the_cluster_broke_is_tried_again(session: Session) -> None:
    cluster = Cluster(session.artifacts)
    cluster.lose = {"corpus": 2}
    result = run(session, cluster)
    assert cluster.started.count("corpus") == 3
    assert result.failures == []


def test_what_the_cluster_breaks_too_often_fails(session: Session) -> None:
    cluster = Cluster(session.artifacts)
    cluster.lose = {"corpus": 3}
    result = run(session, cluster)
    assert result.states["corpus"] is State.FAILED
    assert "attempt 3 of 3" in result.failures[0].cause


def test_interrupted_run_goes_on_where_it_was(session: Session) -> None:
    class Interrupted(Cluster):
        def submit(
            self, function: Any, *args: Any, log: Path, worker: WorkerConfig | None = None
        ) -> Pending:
            if args[0].step.name == "tone.final":
                raise KeyboardInterrupt
            return super().submit(function, *args, log=log)

    result = run(session, Interrupted(session.artifacts))
    assert result.is_stopped
    assert result.states["tone.final"] is State.STOPPED
    assert result.states["pretrain"] is State.DONE
    cluster = Cluster(session.artifacts)
    again = replace(session, paths=replace(session.paths, run_id="again"))
    assert set(run(again, cluster).states.values()) == {State.DONE, State.REUSED}
    assert "pretrain" not in cluster.started
    assert "tone.final" in cluster.started


def test_journal_tells_the_states_of_every_step(session: Session) -> None:
    run(session, Cluster(session.artifacts))
    events = read(session.paths.storage, session.paths.events)
    told = [event["state"] for event in events if event.get("step") == "pretrain"]
    assert told == ["running", "done"]
    assert all(json.dumps(event) for event in events)
