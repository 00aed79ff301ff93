"""Runs that were: what each was about and how far it came, from the storage alone."""

import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from workflows.execution import RunPaths
from workflows.journal import DRIVER, Tail, read
from workflows.progress import RunView
from workflows.storage import Storage

PLAN = "plan.json"
PIPELINE = "pipeline.yaml"
SUBMISSION = "submission.json"
"""Where a run was submitted to; written before there is anything else of it."""

STAMP = "%Y%m%d-%H%M%S"
_MADE = re.compile(r"(?P<pipeline>.+)-(?P<started>\d{8}-\d{6})-[0-9a-z]{4}")

_GIT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class RunHead:
    """What a run was about."""

    run_id: str
    pipeline: str
    steps: dict[str, tuple[str, str]]
    """Kind and fingerprint by the step's name."""
    folder: str = ""
    """Of the pipeline file."""
    commit: str | None = None
    """Of the repository that folder is in; `-dirty` where something was changed since."""


@dataclass(frozen=True)
class RunName:
    """A run, and what is known of it without its journal."""

    started: str
    """Date and time, UTC; or when it was submitted, or nothing where neither is known."""
    run_id: str
    pipeline: str


def new_run_id(pipeline: str) -> str:
    """A name that no other run has, and that tells when it began."""
    return f"{pipeline}-{datetime.now(UTC).strftime(STAMP)}-{uuid.uuid4().hex[:4]}"


def runs(where: Storage) -> list[RunName]:
    """The runs of a storage, oldest first; of names that users gave their files are read."""
    return sorted(
        (name_of(where, run_id) for run_id in where.names("runs")),
        key=lambda run: (run.started, run.run_id),
    )


def run_ids(where: Storage) -> list[str]:
    """The names of the runs of a storage, oldest first."""
    return [run.run_id for run in runs(where)]


def name_of(where: Storage, run_id: str) -> RunName:
    """What is known of a run by its name, or by what it begins with."""
    made = _MADE.fullmatch(run_id)
    if made:
        return RunName(made["started"], run_id, made["pipeline"])
    for name in (PLAN, SUBMISSION):
        try:
            told = json.loads(where.read(f"runs/{run_id}/{name}"))
        except FileNotFoundError:
            continue
        return RunName(told["started"], run_id, told["pipeline"])
    return RunName("", run_id, "")


def head(where: Storage, run_id: str) -> RunHead | None:
    """What a run was about; None where it was killed before it wrote that down."""
    try:
        content = json.loads(where.read(f"runs/{run_id}/{PLAN}"))
    except FileNotFoundError:
        return None
    steps = {name: (kind, fingerprint) for name, (kind, fingerprint) in content["steps"].items()}
    told = {name: content[name] for name in ("folder", "commit") if name in content}
    return RunHead(run_id, content["pipeline"], steps, **told)


def commit_of(folder: Path) -> str | None:
    """The commit a folder's repository is at, `-dirty` with changes; None outside of one."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(
            describe,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def heads(where: Storage, pipeline: str, *, most: int) -> Iterator[RunHead]:
    """What the newest runs of a pipeline were about, newest first."""
    own = [run.run_id for run in runs(where) if run.pipeline == pipeline]
    for run_id in reversed(own[-most:]):
        found = head(where, run_id)
        if found is not None:
            yield found


def view(paths: RunPaths, *, of_driver: bool = False) -> RunView:
    """How far a run is; from its driver's events alone, no more than the states of its steps."""
    found = head(paths.storage, paths.run_id)
    shown = RunView(found.steps if found else ())
    driver = Tail(paths.storage, paths.events, DRIVER)
    for event in driver.new() if of_driver else read(paths.storage, paths.events):
        shown.take(event)
    return shown
