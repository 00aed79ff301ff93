"""Runs that were: what each was about and how far it came, from the storage alone."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workflows.execution import RunPaths
from workflows.journal import read
from workflows.progress import RunView
from workflows.storage import Storage

PLAN = "plan.json"
PIPELINE = "pipeline.yaml"

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


def run_ids(where: Storage) -> list[str]:
    """The runs of a storage, oldest first: their names end with date, time and a random part."""
    return sorted(where.names("runs"), key=lambda name: name.rsplit("-", 3)[1:])


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
    own = [name for name in run_ids(where) if name.rsplit("-", 3)[0] == pipeline]
    for run_id in reversed(own[-most:]):
        found = head(where, run_id)
        if found is not None:
            yield found


def view(paths: RunPaths) -> RunView:
    """How far a run is."""
    found = head(paths.storage, paths.run_id)
    shown = RunView(found.steps if found else ())
    for event in read(paths.storage, paths.events):
        shown.take(event)
    return shown
