"""The whole suite runs on a folder and on an object store."""

import json
from pathlib import Path

import pytest
from own_steps import own_step

from workflows.artifacts import Artifacts, Attempt
from workflows.garbage import Collector
from workflows.leases import Owner
from workflows.ledger import Claim, Position
from workflows.models import ModelStore
from workflows.steps import Step
from workflows.storage import Storage

OLD, NEW = own_step("old"), own_step("new")


def begin(where: Storage, step: Step, after: Position | None = None) -> Attempt:
    attempt = Artifacts(where).begin(step, after or Position(), "run", lease_s=60)
    assert attempt is not None
    return attempt


def finish(where: Storage, step: Step) -> None:
    attempt = begin(where, step)
    (attempt.output / "a.txt").write_text(step.name)
    Artifacts(where).commit(step, attempt, {}, run="run")


def plan(where: Storage, number: int, *steps: Step, pipeline: str = "own") -> None:
    content = {
        "schema_version": 2,
        "pipeline": pipeline,
        "steps": {step.name: [step.kind, step.fingerprint] for step in steps},
    }
    name = f"runs/{pipeline}-20260101-00000{number}-abcd/plan.json"
    where.write(name, json.dumps(content).encode())


def collected(where: Storage, keep_runs: int = 10) -> list[str]:
    """What is found, and then removed."""
    collector = Collector(where, keep_runs=keep_runs, sleep=lambda _: None)
    found = collector.find()
    collector.remove(found)
    assert collector.find() == []
    return sorted(garbage.why for garbage in found)


def test_what_a_kept_run_planned_stays(storage: Storage) -> None:
    finish(storage, OLD)
    finish(storage, NEW)
    plan(storage, 1, OLD)
    plan(storage, 2, NEW)
    assert collected(storage) == []
    assert collected(storage, keep_runs=1) == ["an old run", "no kept run planned this step"]
    artifacts = Artifacts(storage)
    assert artifacts.find(OLD) is None
    record = artifacts.find(NEW)
    assert record is not None
    artifacts.verified(record)
    assert storage.names("runs") == ["own-20260101-000002-abcd"]


def test_runs_of_each_pipeline_are_kept_for_themselves(storage: Storage) -> None:
    finish(storage, OLD)
    finish(storage, NEW)
    plan(storage, 1, OLD, pipeline="first")
    plan(storage, 2, NEW, pipeline="second")
    assert collected(storage, keep_runs=1) == []


def test_telling_removes_nothing(storage: Storage) -> None:
    finish(storage, OLD)
    before = storage.find("")
    assert len(Collector(storage, keep_runs=1).find()) == 1
    assert storage.find("") == before


def test_step_a_model_of_the_store_came_from_stays(storage: Storage, tmp_path: Path) -> None:
    final = Step(name="t.final", kind="final", version=1, spec=OLD.spec)
    finish(storage, final)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    ModelStore(storage).add(
        "own.t", tmp_path / "model", fingerprint=final.fingerprint, attempt="a", task={}, scores={}
    )
    assert collected(storage) == []
    assert Artifacts(storage).find(final) is not None


def test_pretraining_of_a_version_stays_if_it_was_promoted(
    storage: Storage, tmp_path: Path
) -> None:
    promoted, other = (
        Step(name="pretrain", kind="pretrain", version=number, spec=OLD.spec) for number in (1, 2)
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    store = ModelStore(storage)
    for number, step in enumerate((promoted, other)):
        finish(storage, step)
        version = store.add(
            "own.base",
            tmp_path / "model",
            fingerprint=step.fingerprint,
            attempt=f"a{number}",
            task={},
            scores={},
            more={"objective": "causal"},
        )
        if step is promoted:
            store.promote(version, expected=None, reason="", run="run")
    assert collected(storage) == ["no kept run planned this step"]
    assert Artifacts(storage).find(promoted) is not None
    assert Artifacts(storage).find(other) is None


def test_a_damaged_log_of_a_task_keeps_nobody_from_collecting(
    local: Storage, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    store = ModelStore(local)
    version = store.add(
        "own.t", tmp_path / "model", fingerprint="f", attempt="a", task={}, scores={}
    )
    store.promote(version, expected=None, reason="", run="run")
    local.write("models/own.t/log/000001.json", b"{}")
    finish(local, OLD)
    assert collected(local) == ["no kept run planned this step"]


def test_files_no_version_has_are_removed(storage: Storage) -> None:
    storage.write("models/own.t/files/abc/model.safetensors", b"x")
    assert collected(storage) == ["no version has these files"]
    assert storage.find("models") == {}


def test_work_a_next_run_could_go_on_from_stays(storage: Storage) -> None:
    plan(storage, 1, NEW)
    for after in (None, Position(1)):
        attempt = begin(storage, NEW, after)
        saved = attempt.work / "checkpoints"
        saved.mkdir()
        (saved / "weights").write_text("w")
        if not storage.is_local:
            storage.upload(saved, f"{attempt.name}/work/checkpoints")
    Artifacts(storage).release(NEW, attempt)
    assert collected(storage) == ["an attempt that came to nothing"]
    heir = begin(storage, NEW, Position(3))
    (name,) = heir.earlier("checkpoints").values()
    assert storage.read(f"{name}/weights") == b"w"


def foreign_claim(where: Storage, step: Step) -> None:
    """A process on another host works on a step."""
    owner = Owner(host="elsewhere", machine="another boot", pid=1, started=0)
    claim = Claim(run="other", attempt="000001-x", owner=owner, lease_s=60)
    Artifacts(where).ledger.append(step, Position(), claim)
    where.write(f"artifacts/{step.kind}/{step.fingerprint[:32]}/000001-x/work/c", b"checkpoint")


def test_live_lease_of_this_machine_is_never_touched(storage: Storage) -> None:
    attempt = begin(storage, OLD)  # by this very process
    assert collected(storage, keep_runs=1) == []
    (attempt.output / "a.txt").write_text("late")
    assert Artifacts(storage).commit(OLD, attempt, {}, run="run") is not None


def test_step_that_is_claimed_after_the_look_stays(storage: Storage) -> None:
    finish(storage, OLD)
    collector = Collector(storage, keep_runs=1)
    (garbage,) = collector.find()
    heir = begin(storage, OLD, Position(2, None, 2))  # somebody computes it anew
    assert collector.remove([garbage]) == []
    (heir.output / "a.txt").write_text("anew")
    position = Artifacts(storage).commit(OLD, heir, {}, run="run")
    assert position is not None
    assert position.committed == 4


def test_removed_step_is_computed_as_if_it_had_never_been(storage: Storage) -> None:
    finish(storage, OLD)
    assert collected(storage, keep_runs=1) == ["no kept run planned this step"]
    assert storage.find("ledger") == storage.find("done") == storage.find("artifacts") == {}
    finish(storage, OLD)
    record = Artifacts(storage).find(OLD)
    assert record is not None
    Artifacts(storage).verified(record)


class Elsewhere:
    """Time passes, and the other host shows signs of life or does not."""

    def __init__(self, where: Storage, step: Step, *, is_alive: bool) -> None:
        self.now, self._storage, self._is_alive = 0.0, where, is_alive
        self._name = f"leases/{step.kind}/{step.fingerprint[:32]}.1"

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += 10 * seconds
        if self._is_alive:
            self._storage.write(self._name, str(self.now).encode())


@pytest.mark.parametrize("is_alive", [True, False])
def test_process_on_another_host_is_watched_for_its_lease(storage: Storage, is_alive: bool) -> None:
    foreign_claim(storage, OLD)
    time = Elsewhere(storage, OLD, is_alive=is_alive)
    collector = Collector(storage, keep_runs=1, clock=time.clock, sleep=time.sleep)
    found = [garbage.why for garbage in collector.find()]
    assert time.now > 60
    assert ("no kept run planned this step" in found) is not is_alive


def test_sizes_are_told(storage: Storage) -> None:
    finish(storage, OLD)
    (garbage,) = Collector(storage, keep_runs=1).find()
    assert garbage.size_bytes == len("old")
