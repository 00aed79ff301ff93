"""Looks at the base while it is pretrained: their steps, when they run, what they take."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import write_pipeline
from own_steps import context, own_step

from cluster.config import RetryConfig
from cluster.interface import Outcome, Pending, TaskFailedError, WorkerLostError
from cluster.local import Done, LocalCluster
from trainers.branches import Branches, folder_of
from trainers.errors import DataError
from trainers.schedules import Leg
from workflows import branch, looks, runner
from workflows.artifacts import WORK, Artifacts, Attempt
from workflows.config import ConfigError, load_config
from workflows.execution import Computed, StageContext
from workflows.journal import read
from workflows.ledger import Position
from workflows.planning import State
from workflows.probing import BranchSpec
from workflows.run_result import RunResult
from workflows.session import Session
from workflows.steps import Step
from workflows.storage import Storage

BRANCHES = {"name": "wsd", "branches": [0.25, 0.5]}
LOOKS = {"tone.probe-5", "tone.probe-10", "tone.probe"}


@pytest.fixture
def probed(pipeline: dict[str, Any]) -> dict[str, Any]:
    """The tiny pipeline, whose task `tone` takes the base that a probe likes best."""
    pipeline["pretrain"]["schedule"] = BRANCHES
    pipeline["probe"] = {"tasks": ["tone"], "rows": 50}
    pipeline["tasks"]["tone"]["base"] = "best_probe"
    return pipeline


@pytest.fixture
def session(tmp_path: Path, probed: dict[str, Any]) -> Session:
    return Session.open(load_config(write_pipeline(tmp_path, probed)), tmp_path)


def test_each_branch_and_the_end_is_looked_at_and_a_task_may_take_the_best(
    session: Session,
) -> None:
    steps = {step.name: step for step in session.steps}
    inputs = {name: {ref.name for ref in step.inputs.values()} for name, step in steps.items()}
    assert inputs["pretrain.branch-5"] == {"pretrain"}
    assert steps["pretrain.branch-10"].spec.model_dump()["tokens"] == 12 * 256
    assert inputs["tone.probe-10"] == {"tone.data", "pretrain.branch-10"}
    assert inputs["tone.probe"] == {"tone.data", "pretrain"}
    assert inputs["tone.base"] == LOOKS | {"pretrain", "pretrain.branch-5", "pretrain.branch-10"}
    assert inputs["tone.tune"] >= {"tone.data", "tone.base"}
    assert inputs["places.tune"] >= {"places.data", "pretrain"}
    assert not any(name.startswith("places.probe") for name in steps)
    assert inputs["report"] >= LOOKS


def test_looks_change_nothing_that_was_there_before(
    session: Session, tmp_path: Path, probed: dict[str, Any]
) -> None:
    del probed["probe"], probed["tasks"]["tone"]["base"]
    plain = Session.open(load_config(write_pipeline(tmp_path, probed)), tmp_path)
    known = {step.name: step.fingerprint for step in session.steps}
    same = {step.name for step in plain.steps if known.get(step.name) == step.fingerprint}
    assert same >= {"pretrain", "places.final", "base.promote", "tone.data"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": {"name": "wsd"}}, "probe: looks at the branches of pretraining; give some"),
        ({"task": "ton"}, "probe.tasks: no task 'ton'; did you mean 'tone'"),
        ({"places": "best_probe"}, "tasks.places.base: best_probe needs a probe of places"),
    ],
)
def test_what_does_not_fit_is_told(
    tmp_path: Path, probed: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    if "schedule" in change:
        probed["pretrain"]["schedule"] = change["schedule"]
    if "task" in change:
        probed["probe"]["tasks"].append(change["task"])
    if "places" in change:
        probed["tasks"]["places"]["base"] = change["places"]
    with pytest.raises(ConfigError) as refused:
        load_config(write_pipeline(tmp_path, probed))
    assert message in str(refused.value)


class Cluster(LocalCluster):
    """Commits empty results; pretraining goes on until nothing else can."""

    def __init__(self, artifacts: Artifacts, *endings: Exception | None) -> None:
        self.artifacts, self.endings = artifacts, list(endings)
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.under_way: dict[Pending, tuple[Step, Attempt | None, str]] = {}

    def submit(self, function: Any, *args: Any, log: Path, worker: Any = None) -> Pending:
        assignment, run = args
        step: Step = assignment.step
        self.started.append(step.name)
        attempt = self.artifacts.begin(step, assignment.after, run.paths.run_id, lease_s=60)
        work = Done(Outcome())
        self.under_way[work] = (step, attempt, run.paths.run_id)
        return work

    def wait(self, pending: Any, timeout_s: float) -> list[Pending]:
        quick = [work for work in pending if not self._is_of_pretraining(work)]
        return [self._ended(work) for work in quick or pending[:1]]

    def cancel(self, pending: Any) -> None:
        self.cancelled += [self.under_way[work][0].name for work in pending]

    def _is_of_pretraining(self, work: Pending) -> bool:
        name = self.under_way[work][0].name
        return name == "pretrain" or (name.startswith("pretrain.branch") and bool(self.endings))

    def _ended(self, work: Pending) -> Pending:
        step, attempt, run = self.under_way[work]
        ending = self.endings.pop(0) if step.name == "pretrain" and self.endings else None
        assert attempt is not None
        if ending is not None:
            object.__setattr__(work, "outcome", Outcome(error=ending))
            return work
        position = self.artifacts.commit(step, attempt, {}, run=run)
        assert position is not None
        object.__setattr__(work, "outcome", Outcome(value=Computed(position.committed, {})))
        return work


def run(session: Session, cluster: Cluster) -> RunResult:
    retry = RetryConfig(max_attempts=2, delay_s=0)
    execution = session.config.cluster.model_copy(update={"retry": retry})
    shared = replace(session.context(cluster), execution=execution)
    return runner.run(session.steps, session.plan(), shared, session.journal)


def told(session: Session, step: str) -> list[str]:
    events = read(session.paths.storage, session.paths.events)
    return [event["state"] for event in events if event.get("step") == step]


def test_branches_are_looked_at_before_pretraining_ends(session: Session) -> None:
    cluster = Cluster(session.artifacts)
    result = run(session, cluster)
    assert set(result.states.values()) == {State.DONE}
    order = cluster.started
    events = read(session.paths.storage, session.paths.events)
    ended = [event["step"] for event in events if event.get("state") == "done"]
    assert ended.index("tone.probe-5") < ended.index("pretrain") < ended.index("tone.probe")
    assert order.index("pretrain") < order.index("pretrain.branch-5")
    assert ended.index("pretrain") < ended.index("tone.base") < ended.index("tone.tune")


def test_who_waits_for_a_pretraining_that_fails_is_ended(session: Session) -> None:
    cluster = Cluster(session.artifacts, TaskFailedError("ValueError", "diverged"))
    result = run(session, cluster)
    assert result.states["pretrain"] is State.FAILED
    assert result.states["pretrain.branch-5"] is State.BLOCKED
    assert result.states["tone.probe-5"] is State.BLOCKED
    assert set(cluster.cancelled) == {"pretrain.branch-5", "pretrain.branch-10"}
    assert [failure.step for failure in result.failures] == ["pretrain"]


def test_who_waits_for_a_pretraining_that_is_tried_again_waits_on(session: Session) -> None:
    cluster = Cluster(session.artifacts, WorkerLostError("node died"))
    result = run(session, cluster)
    assert set(result.states.values()) == {State.DONE}
    assert cluster.started.count("pretrain") == 2
    assert cluster.started.count("pretrain.branch-5") == 1
    assert cluster.cancelled == []
    assert told(session, "pretrain") == ["running", "waiting", "running", "done"]


STEP = own_step("pretrain", function="nothing")
TAKING = Step(
    name="pretrain.branch-5",
    kind="branch",
    version=1,
    spec=BranchSpec(start_step=5, tokens=100),
    inputs={"pretrain": STEP.ref},
)


class Pretraining:
    """An attempt at it that leaves branches."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.artifacts = storage, Artifacts(storage)
        attempt = self.artifacts.begin(STEP, Position(), "run", 60.0)
        assert attempt is not None
        self.attempt = attempt
        self.branches = Branches(attempt.work / "checkpoints", [], None)

    def write(self, weights: bytes) -> None:
        """The model of the branch, not published yet."""
        (self.branches.folder(5) / "model.safetensors").write_bytes(weights)

    def publish(self) -> None:
        """Tell that it is whole."""
        self.branches.add(Leg(5, 6, is_branch=True), {"validation_loss": 1.5}, is_written=True)

    def keep(self, *names: str) -> None:
        """Make files be seen by other nodes, in this order."""
        for name in () if self.storage.is_local else names:
            folder = f"{WORK}/checkpoints/{folder_of(5)}"
            content = (self.attempt.directory / folder / name).read_bytes()
            self.storage.write(f"{self.attempt.name}/{folder}/{name}", content)


@pytest.fixture
def taking(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> StageContext:
    """A step that takes a branch; where it would wait, `_Waiting` is raised instead."""

    def wait(seconds: float) -> None:
        raise _Waiting

    monkeypatch.setattr(branch, "time", SimpleNamespace(sleep=wait))
    artifacts = Artifacts(storage)
    attempt = artifacts.begin(TAKING, Position(), "run", 60.0)
    assert attempt is not None
    return StageContext(context(storage, LocalCluster()), TAKING, attempt, artifacts, {})


class _Waiting(Exception):  # noqa: N818 -- nothing is wrong
    pass


def test_a_branch_is_taken_when_it_is_whole_and_not_before(
    storage: Storage, taking: StageContext
) -> None:
    with pytest.raises(_Waiting):
        branch.take(taking)
    pretraining = Pretraining(storage)
    pretraining.write(b"half")
    with pytest.raises(_Waiting):
        branch.take(taking)
    pretraining.write(b"weights")
    pretraining.publish()
    pretraining.keep("branch.json")  # seen before the weights are
    if not storage.is_local:
        with pytest.raises(_Waiting):
            branch.take(taking)
        pretraining.keep("model.safetensors")
    facts = branch.take(taking)
    assert facts["validation_loss"] == 1.5
    assert (facts["start_step"], facts["stop_step"], facts["tokens"]) == (5, 6, 100)
    (only,) = taking.output.iterdir()
    assert only.read_bytes() == b"weights"


def test_a_branch_of_a_finished_pretraining_is_taken_from_its_output(
    storage: Storage, taking: StageContext
) -> None:
    pretraining = Pretraining(storage)
    pretraining.write(b"weights")
    pretraining.publish()
    pretraining.branches.collect(pretraining.attempt.output)
    assert pretraining.artifacts.commit(STEP, pretraining.attempt, {}, run="run") is not None
    assert branch.take(taking)["tokens"] == 100
    assert (taking.output / "model.safetensors").read_bytes() == b"weights"


def test_a_finished_pretraining_without_the_branch_is_told(
    storage: Storage, taking: StageContext
) -> None:
    pretraining = Pretraining(storage)
    (pretraining.attempt.output / "model.safetensors").write_bytes(b"adopted")
    assert pretraining.artifacts.commit(STEP, pretraining.attempt, {}, run="run") is not None
    record = pretraining.artifacts.find(STEP)
    assert record is not None
    with pytest.raises(DataError, match="has no branch of step 5: it was adopted"):
        branch.take(replace(taking, records={"pretrain": record}))


def test_of_equal_bases_the_one_that_has_read_the_most_is_taken() -> None:
    scores = {"early": {"mse": 0.5}, "late": {"mse": 0.5}, "end": {"mse": 0.7}}
    tokens = {"early": 1, "late": 2, "end": 3}
    assert looks.best_of("mse", scores, tokens) == "late"
    better = scores | {"early": {"mse": 0.4}}
    assert looks.best_of("mse", better, tokens) == "early"
    assert looks.best_of("accuracy", {n: {"accuracy": 1.0} for n in tokens}, tokens) == "end"
