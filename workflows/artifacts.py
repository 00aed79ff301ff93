"""What finished steps leave behind: an attempt's folder, believed once a record names it."""

import platform
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from trainers import manifest
from workflows import storage
from workflows.steps import Step, plain

RECORD = "record.json"
OUTPUT = "output"
WORK = "work"

_DISTRIBUTIONS = ("pretune", "ray", "torch", "transformers", "deepspeed")


class DamagedArtifactError(RuntimeError):
    """A finished step's files are not what they were when it finished."""


class Record(BaseModel):
    """A finished step. Its existence means done; nothing like it is written before."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    name: str
    kind: str
    version: int
    fingerprint: str
    spec: dict[str, Any]
    inputs: dict[str, str]
    outside: dict[str, str]
    attempt: str
    facts: dict[str, Any]
    """What the stage found worth telling: counts, scores, choices."""
    files: dict[str, dict[str, Any]]
    """Size and SHA-256 of each output file."""
    finished_at: str
    elapsed_s: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Finished:
    """A finished step: its record and its output folder."""

    record: Record
    output: Path


@dataclass(frozen=True)
class Attempt:
    """One try at a step, in a folder of its own."""

    directory: Path

    @property
    def output(self) -> Path:
        """What the step leaves behind."""
        return self.directory / OUTPUT

    @property
    def work(self) -> Path:
        """What only a further attempt would want: checkpoints, a search's state."""
        return self.directory / WORK

    @property
    def earlier_work(self) -> list[Path]:
        """The work folders of attempts before this one, newest first. To be read only."""
        others = [path for path in self.directory.parent.iterdir() if path != self.directory]
        newest_first = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
        return [path / WORK for path in newest_first if (path / WORK).is_dir()]


class Artifacts:
    """All artifacts below a storage folder: `<kind>/<fingerprint>/{record.json,attempts/}`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def record(self, step: Step) -> Record | None:
        """The record of a finished step; None where it is yet to be done."""
        path = self._directory(step) / RECORD
        if not path.is_file():
            return None
        return Record.model_validate_json(path.read_bytes())

    def output(self, step: Step) -> Path:
        """The output folder of a finished step."""
        record = self.record(step)
        assert record is not None, f"{step.name} is not finished"
        return self._attempt(step, record.attempt).output

    def verify(self, step: Step) -> None:
        """Compare every byte of a finished step with its record.

        Raises:
            DamagedArtifactError: names the file and the way out.
        """
        record = self.record(step)
        assert record is not None, f"{step.name} is not finished"
        damaged = manifest.first_damage(self.output(step), record.files)
        if damaged:
            raise DamagedArtifactError(
                f"the output of {step.name} is damaged: {damaged}; remove "
                f"{self._directory(step)} and run again to compute it anew"
            )

    def begin(self, step: Step) -> Attempt:
        """A new, empty attempt."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        attempt = self._attempt(step, f"{stamp}-{uuid.uuid4().hex[:8]}")
        attempt.output.mkdir(parents=True)
        attempt.work.mkdir()
        return attempt

    def commit(
        self, step: Step, attempt: Attempt, facts: Mapping[str, Any], elapsed_s: float
    ) -> Record:
        """Make an attempt the step's result, unless another attempt came first: then that one is.

        The files are durable before the record names them.
        """
        for path in attempt.output.rglob("*"):
            storage.sync(path)
        record = Record(
            name=step.name,
            kind=step.kind,
            version=step.version,
            fingerprint=step.fingerprint,
            spec=plain(step.spec),
            inputs={name: other.fingerprint for name, other in step.inputs.items()},
            outside=dict(step.outside),
            attempt=attempt.directory.name,
            facts=dict(facts),
            files=manifest.describe(attempt.output),
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            elapsed_s=round(elapsed_s, 3),
            versions={"python": platform.python_version()}
            | {name: installed_version(name) for name in _DISTRIBUTIONS},
        )
        try:
            storage.create(
                self._directory(step) / RECORD, record.model_dump_json(indent=1).encode()
            )
        except storage.AlreadyExistsError:
            shutil.rmtree(attempt.directory)
        else:
            shutil.rmtree(attempt.work)
        first = self.record(step)
        assert first is not None
        return first

    def _directory(self, step: Step) -> Path:
        return self._root / step.kind / step.fingerprint[:32]

    def _attempt(self, step: Step, name: str) -> Attempt:
        return Attempt(self._directory(step) / "attempts" / name)
