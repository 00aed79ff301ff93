"""How a run meets what goes wrong: time limits, failures, stops, full disks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_steps import context, diamond, own_step

from cluster.local import LocalCluster
from workflows import planning, runner
from workflows.artifacts import Artifacts, attempts_folder
from workflows.execution import RunContext
from workflows.journal import Journal, read
from workflows.ledger import Ledger, Position, Release, stem_of
from workflows.planning import Selection, State
from workflows.run_result import RunResult
from workflows.steps import Step
from workflows.storage import Storage, StorageError


def run(
    steps: list[Step],
    run_context: RunContext,
    selection: Selection | None = None,
    *,
    fail_fast: bool = False,
) -> RunResult:
    paths = run_context.paths
    return runner.run(
        steps,
        planning.plan(steps, Artifacts(paths.storage).ledger, selection),
        run_context,
        Journal(paths.storage, paths.events, "run"),
        fail_fast=fail_fast,
    )


def test_graph_of_own_steps_is_computed_once(storage: Storage) -> None:
    result = run(diamond(), context(storage, LocalCluster(), "first"))
    assert set(result.states.values()) == {State.DONE}
    artifacts = Artifacts(storage)
    record = artifacts.find(diamond()[-1])
    assert record is not None
    assert (artifacts.verified(record) / "out.txt").read_text() == "bottom(left(top())right(top()))"
    assert record.facts == {"length": 31}
    again = run(diamond(), context(storage, LocalCluster(), "second"))
    assert set(again.states.values()) == {State.REUSED}


def test_own_error_is_told_in_one_line_with_the_log_and_what_is_kept(local: Storage) -> None:
    steps = [own_step("fine"), own_step("broken", function="fail")]
    steps.append(own_step("behind", steps[1]))
    result = run(steps, context(local, LocalCluster()))
    assert result.states == {
        "fine": State.DONE,
        "broken": State.FAILED,
        "behind": State.BLOCKED,
    }
    (failure,) = result.failures
    assert failure.cause == 'KeyError: "the step\'s own error"'
    assert "Traceback" in Path(failure.log).read_text()
    assert failure.kept == ""
    position = Artifacts(local).ledger.position(steps[1], Position())
    assert isinstance(position.entry, Release)


def test_first_failure_ends_a_run_that_is_to_fail_fast(local: Storage) -> None:
    steps = [own_step("broken", function="fail"), own_step("fine")]
    steps.append(own_step("behind", steps[1]))
    result = run(steps, context(local, LocalCluster()), fail_fast=True)
    assert result.states["broken"] is State.FAILED
    assert result.states["behind"] is State.BLOCKED
    going_on = run(steps, context(local, LocalCluster(), "again"))
    assert going_on.states["behind"] is State.DONE


def test_facts_that_no_record_can_hold_are_refused(local: Storage) -> None:
    result = run([own_step("x", function="lambda_result")], context(local, LocalCluster()))
    assert "own_steps:lambda_result returned dict, which cannot be kept" in result.failures[0].cause
    assert result.failures[0].is_input_error


def test_damaged_input_is_never_used_and_computed_anew_when_told(local: Storage) -> None:
    steps = diamond()
    run(steps[:1], context(local, LocalCluster(), "first"))
    artifacts = Artifacts(local)
    record = artifacts.find(steps[0])
    assert record is not None
    (artifacts.output(record) / "out.txt").write_text("topp()")
    result = run(steps, context(local, LocalCluster(), "second"))
    assert result.states["left"] is State.FAILED
    assert result.failures[0].cause.startswith("the output of top is damaged: out.txt")
    assert "--force top" in result.failures[0].cause
    force = Selection(force=frozenset({"top"}))
    anew = run(steps, context(local, LocalCluster(), "third"), force)
    assert set(anew.states.values()) == {State.DONE}
    bottom = artifacts.find(steps[-1])
    assert bottom is not None
    assert (artifacts.verified(bottom) / "out.txt").read_text() == "bottom(left(top())right(top()))"


def test_from_computes_a_step_and_all_behind_it_anew(local: Storage) -> None:
    steps = diamond()
    run(steps, context(local, LocalCluster(), "first"))
    selection = Selection(from_=frozenset({"left"}))
    result = run(steps, context(local, LocalCluster(), "second"), selection)
    assert result.states == {
        "top": State.REUSED,
        "left": State.DONE,
        "right": State.REUSED,
        "bottom": State.DONE,
    }
    artifacts = Artifacts(local)
    runs = {s.name: r.run for s in steps if (r := artifacts.find(s)) is not None}
    assert runs == {"top": "first", "left": "second", "right": "first", "bottom": "second"}


def test_only_runs_what_was_asked_for(local: Storage) -> None:
    steps = diamond()
    result = run(steps, context(local, LocalCluster()), Selection(only=frozenset({"top"})))
    assert result.states == {
        "top": State.DONE,
        "left": State.NOT_NEEDED,
        "right": State.NOT_NEEDED,
        "bottom": State.NOT_NEEDED,
    }


def test_stop_asked_for_elsewhere_starts_nothing_more(storage: Storage) -> None:
    run_context = context(storage, LocalCluster())
    run_context.paths.ask_to_stop()
    result = run(diamond(), run_context)
    assert result.is_stopped
    assert run_context.paths.was_asked_to_stop
    assert State.STOPPED in result.states.values()
    again = run(diamond(), context(storage, LocalCluster(), "again"))
    assert set(again.states.values()) <= {State.DONE, State.REUSED}


def test_disk_that_fills_up_is_told_and_the_run_goes_on_when_told_to(
    tmp_path: Path, small_disk: Path
) -> None:
    where = Storage.at(small_disk / "storage")
    steps = [own_step("first"), own_step("large", function="full_disk")]
    result = run(steps, context(where, LocalCluster(), "run1"))
    assert result.states == {"first": State.DONE, "large": State.FAILED}
    cause = result.failures[0].cause
    assert "No space left on device" in cause
    assert "MB free" in cause
    assert str(small_disk) in cause
    # What was written in vain is gone, what was done is whole, and there is room again.
    folder = attempts_folder(steps[1].kind, stem_of(steps[1].fingerprint))
    assert where.names(folder) == []
    small = [steps[0], own_step("small", steps[0])]
    again = run(small, context(where, LocalCluster(), "run2"))
    assert again.states == {"first": State.REUSED, "small": State.DONE}


def test_trouble_after_the_commit_takes_nothing_back(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the marker nor the removal of work matters once the record is there."""

    def refuse(self: Storage, name: str, *_: bytes) -> None:
        raise StorageError(f"{name} cannot be written")

    step = own_step("x")
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", refuse)
        patch.setattr(Ledger, "_mark", refuse)
        result = run([step], context(local, LocalCluster()))
    assert result.states == {"x": State.DONE}
    record = Artifacts(local).find(step)
    assert record is not None
    Artifacts(local).verified(record)


def test_own_commit_is_not_taken_for_a_lost_lease(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signs of life go on while work is removed behind the commit, however long that takes."""
    plain_delete = Storage.delete

    def slow(self: Storage, name: str) -> None:
        time.sleep(0.5)
        plain_delete(self, name)

    monkeypatch.setattr(Storage, "delete", slow)
    step = own_step("x")
    result = run([step], context(local, LocalCluster(), lease_s=0.3))
    assert result.states == {"x": State.DONE}
    record = Artifacts(local).find(step)
    assert record is not None
    Artifacts(local).verified(record)


def test_run_waits_while_the_storage_is_slow(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_create = Storage.create

    def slow(self: Storage, name: str, content: bytes, *, durable: bool = True) -> None:
        time.sleep(0.2)
        plain_create(self, name, content, durable=durable)

    monkeypatch.setattr(Storage, "create", slow)
    result = run(diamond(), context(local, LocalCluster()))
    assert set(result.states.values()) == {State.DONE}


def test_states_are_in_the_journal(local: Storage) -> None:
    run(diamond(), context(local, LocalCluster()))
    told = [e["state"] for e in read(local, "runs/run/events") if e["step"] == "top"]
    assert told == ["running", "done"]


MEMORY = """
import sys, threading, tracemalloc
from own_steps import own_step
from workflows import planning
from workflows.artifacts import Artifacts
from workflows.storage import Storage

ledger = Artifacts(Storage.at(sys.argv[1])).ledger


def bytes_of(count):
    tracemalloc.start()
    steps = [own_step(f"s{number}", function="nothing") for number in range(count)]
    plan = planning.plan(steps, ledger)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(plan.states) == count
    return kept


bytes_of(100)
small, large = bytes_of(1_000), bytes_of(4_000)
assert threading.active_count() < 50
print((large - small) / 3_000)
"""


def test_memory_of_a_run_grows_linearly_and_stays_small(local: Storage) -> None:
    # In a process of its own: what other tests' threads keep would count here.
    answer = subprocess.run(
        [sys.executable, "-c", MEMORY, str(local.root)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(answer.stdout) < 4_000
