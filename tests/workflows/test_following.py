"""Following a run whose cluster answers, falls silent, forgets; with a clock of our own."""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.remote import ContactError, RefusedError, RemoteState, RemoteStatus
from workflows.cli import app
from workflows.execution import RunPaths
from workflows.following import Follower, exit_code
from workflows.journal import DRIVER, Journal
from workflows.storage import Storage, StorageError

PENDING = RemoteStatus(RemoteState.PENDING, "waits for a node")
RUNNING = RemoteStatus(RemoteState.RUNNING)
DONE = RemoteStatus(RemoteState.SUCCEEDED, "fine", 0)
SILENT = ContactError("http://head:8265 does not answer")

Answer = RemoteStatus | Exception | None


@dataclass
class Scripted:
    """A cluster that gives its answers one a second, the last one for good."""

    answers: Iterable[Answer]
    logs: Iterable[str | Exception] = ("",)
    was_stopped: bool = False
    forgotten: RemoteStatus | None = None
    unwilling: int = 0
    """How often it does not answer when it is asked to stop."""
    now: float = 0.0
    _answers: Iterator[Answer] = field(init=False)
    _logs: Iterator[str | Exception] = field(init=False)
    _answer: Answer = None
    _log: str | Exception = ""

    def __post_init__(self) -> None:
        self._answers, self._logs = iter(self.answers), iter(self.logs)

    def status(self) -> RemoteStatus | None:
        self._answer = next(self._answers, self._answer)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def log(self) -> str:
        self._log = next(self._logs, self._log)
        if isinstance(self._log, Exception):
            raise self._log
        return self._log

    def stop(self) -> None:
        if self.unwilling:
            self.unwilling -= 1
            raise SILENT
        self.was_stopped = True


def follow(remote: Scripted, paths: RunPaths | None = None, **more: float) -> tuple[int, str]:
    def sleep(seconds: float) -> None:
        remote.now += seconds

    file = io.StringIO()
    console = Console(file=file, width=200)
    follower = Follower(remote, paths, console, clock=lambda: remote.now, sleep=sleep, **more)
    return follower.follow(), file.getvalue()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (DONE, 0),
        (RemoteStatus(RemoteState.FAILED, "", 1), 1),
        (RemoteStatus(RemoteState.FAILED, "the node died"), 1),
        (RemoteStatus(RemoteState.FAILED, "", 127), 1),
        (RemoteStatus(RemoteState.FAILED, "", 2), 2),
        (RemoteStatus(RemoteState.FAILED, "", 4), 4),
        (RemoteStatus(RemoteState.FAILED, "", 75), 4),
        (RemoteStatus(RemoteState.STOPPED, ""), 4),
    ],
)
def test_exit_codes(status: RemoteStatus, code: int) -> None:
    assert exit_code(status) == code


def test_why_it_waits_is_told_once() -> None:
    code, told = follow(Scripted([PENDING] * 5 + [RUNNING, DONE]))
    assert code == 0
    assert told.count("waiting: waits for a node") == 1


def test_what_is_not_admitted_in_time_is_withdrawn() -> None:
    remote = Scripted([PENDING])
    code, told = follow(remote, pending_timeout_s=60)
    assert code == 3
    assert remote.was_stopped
    assert "not begun within 60 s, and withdrawn: waits for a node" in told
    assert 60 < remote.now < 65


def test_withdrawing_is_tried_until_it_is_heard() -> None:
    remote = Scripted([PENDING], unwilling=3)
    code, told = follow(remote, pending_timeout_s=5)
    assert (code, remote.was_stopped) == (3, True)
    assert told.count("and withdrawn") == 1


def test_what_had_begun_and_waits_again_is_left_alone() -> None:
    """A retry of KubeRay's, or a run that Kueue has preempted."""
    remote = Scripted([PENDING, *[RUNNING] * 99, *[PENDING] * 99, RUNNING, DONE])
    code, _ = follow(remote, pending_timeout_s=60)
    assert (code, remote.was_stopped) == (0, False)


def test_who_was_let_in_once_is_not_turned_away_for_good() -> None:
    refused = RefusedError("you must be logged in")
    code, told = follow(Scripted([RUNNING, *[refused] * 30, RUNNING, DONE]))
    assert code == 0
    assert told.count("you must be logged in; trying again") == 1
    assert follow(Scripted([RUNNING, refused]))[0] == 5
    with pytest.raises(RefusedError):
        follow(Scripted([refused]))


def test_what_is_gone_may_have_been_stopped(tmp_path: Path) -> None:
    deleted = RemoteStatus(RemoteState.STOPPED, "its RayJob was deleted")
    code, told = follow(Scripted([RUNNING, None], forgotten=deleted))
    assert code == 4
    assert "stopped: its RayJob was deleted" in told
    done = run_in(tmp_path, outcome="succeeded")
    assert follow(Scripted([RUNNING, None], forgotten=deleted), done)[0] == 0
    assert follow(Scripted([None], forgotten=deleted))[0] == 5  # it was never seen


def test_the_log_has_no_gaps_and_no_doubles_when_contact_is_lost_for_a_while() -> None:
    logs = ["a\n", SILENT, "a\nb\n", "a\nb\n", SILENT, "a\nb\nc\n"]
    remote = Scripted([*[RUNNING] * 8, *[SILENT] * 100, *[RUNNING] * 30, DONE], logs)
    code, told = follow(remote)
    assert code == 0
    assert [line for line in told.splitlines() if len(line) == 1] == ["a", "b", "c"]
    assert told.count("does not answer; trying again") == 1


def run_in(folder: Path, *, outcome: str | None = None) -> RunPaths:
    paths = RunPaths(Storage.at(folder), "nightly")
    head = {"pipeline": "t", "started": "20260101-000000", "steps": {"pretrain": ["pretrain", "f"]}}
    paths.storage.write("runs/nightly/plan.json", json.dumps(head).encode())
    journal = Journal(paths.storage, paths.events, DRIVER)
    journal.append("run", outcome=None, said=[])
    journal.append("step", step="pretrain", state="running")
    if outcome:
        journal.append("step", step="pretrain", state="done", facts={"loss": 1})
        journal.append("run", outcome=outcome, said=["1 steps done", "report: /x"])
    return paths


@pytest.mark.parametrize(("outcome", "code"), [("succeeded", 0), ("failed", 1), ("stopped", 4)])
@pytest.mark.parametrize("answer", [None, SILENT])
def test_the_storage_tells_how_it_ended_when_the_cluster_is_gone(
    tmp_path: Path, outcome: str, code: int, answer: Answer
) -> None:
    remote = Scripted([RUNNING, answer])
    found, told = follow(remote, run_in(tmp_path, outcome=outcome))
    assert found == code
    assert "report: /x" in told
    assert remote.now > 300 or answer is None


@pytest.mark.parametrize("answer", [None, SILENT])
def test_nobody_knows(tmp_path: Path, answer: Answer) -> None:
    for paths in (None, run_in(tmp_path)):
        code, told = follow(Scripted([RUNNING, answer]), paths)
        assert code == 5
        assert "contact lost" in told


def test_the_view_is_drawn_from_the_journal_and_the_log_is_not_repeated(tmp_path: Path) -> None:
    paths = run_in(tmp_path, outcome="succeeded")
    code, told = follow(Scripted([RUNNING, RUNNING, DONE], ["from the log"]), paths)
    assert code == 0
    lines = told.splitlines()
    assert [line.split(" ", 1)[1] for line in lines[:2]] == [
        "pretrain: running",
        "pretrain: done loss 1",
    ]
    assert lines[2:] == ["1 steps done", "report: /x"]


def test_quietly_only_the_end_is_told(tmp_path: Path) -> None:
    paths = run_in(tmp_path, outcome="succeeded")
    answers = [PENDING, RUNNING, SILENT, RUNNING, DONE]
    assert follow(Scripted(answers), paths, is_quiet=True) == (0, "1 steps done\nreport: /x\n")
    assert follow(Scripted(answers, ["from the log\n"]), is_quiet=True) == (0, "")
    failed = RemoteStatus(RemoteState.FAILED, "its command ended with exit code 1", 1)
    code, told = follow(Scripted([RUNNING, failed], ["the cause\n"]), is_quiet=True)
    assert (code, told) == (1, "the cause\nfailed: its command ended with exit code 1\n")


def test_a_driver_that_died_before_it_said_anything_shows_its_log(tmp_path: Path) -> None:
    paths = RunPaths(Storage.at(tmp_path), "nightly")
    failed = RemoteStatus(RemoteState.FAILED, "its command ended with exit code 2", 2)
    code, told = follow(Scripted([RUNNING, failed], ["tone.csv: no such file\n"]), paths)
    assert code == 2
    assert told.splitlines()[0] == "tone.csv: no such file"


def test_a_storage_that_is_away_for_a_while_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = run_in(tmp_path, outcome="succeeded")
    names, calls = Storage.names, iter(range(100))

    def sometimes(self: Storage, folder: str, begin: str = "") -> list[str]:
        if next(calls) % 2:
            raise StorageError("the store is away")
        return names(self, folder, begin)

    monkeypatch.setattr(Storage, "names", sometimes)
    code, told = follow(Scripted([*[RUNNING] * 9, DONE]), paths)
    assert code == 0
    assert told.count("the store is away; looking again") == 1
    assert told.count("pretrain: done") == 1


def test_another_storage_of_the_same_name_hides_nothing(tmp_path: Path) -> None:
    """Where no run appears in the storage that is seen from here, the log is shown."""
    paths = RunPaths(Storage.at(tmp_path), "nightly")
    remote = Scripted([*[RUNNING] * 100, DONE], ["line\n"])
    code, told = follow(remote, paths)
    assert code == 0
    assert told.count("line") == 1


@pytest.mark.parametrize(
    ("outcome", "told"),
    [(None, "asked nightly to end"), ("succeeded", "nightly had succeeded")],
)
def test_who_stops_a_run_is_told_if_it_had_ended(
    tmp_path: Path, outcome: str | None, told: str
) -> None:
    paths = run_in(tmp_path, outcome=outcome)
    answer = CliRunner().invoke(app, ["stop", "--storage", str(tmp_path)])
    assert (answer.exit_code, answer.output) == (0, f"{told}\n")
    assert paths.was_asked_to_stop
