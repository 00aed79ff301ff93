"""What finished steps leave behind: an attempt's folder, believed once a record names it."""

import logging
import platform
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from cluster.cache import cache_folder
from trainers import manifest
from workflows import failpoints
from workflows.leases import Owner
from workflows.ledger import Claim, Ledger, Position, Record, Release, stem_of
from workflows.steps import Identified, Step, plain
from workflows.storage import Storage, sync_tree
from workflows.streams import Stream

logger = logging.getLogger(__name__)

ARTIFACTS = "artifacts"
OUTPUT = "output"
WORK = "work"

_DISTRIBUTIONS = ("pretune", "ray", "torch", "transformers", "deepspeed")


class DamagedArtifactError(RuntimeError):
    """A finished step's files are not what they were when it finished."""


@dataclass(frozen=True)
class Finished:
    """A finished step: its record and its output folder."""

    record: Record
    output: Path


@dataclass(frozen=True)
class Attempt:
    """One try at a step, under a claim, in a folder of its own."""

    storage: Storage
    claimed: Position
    name: str
    """Of its folder in the storage."""

    directory: Path
    """Where this process writes: that folder, or one on this node that is uploaded at the end."""

    @property
    def id(self) -> str:
        """What the record and the claim call it."""
        return self.name.rpartition("/")[2]

    @property
    def output(self) -> Path:
        """What the step leaves behind."""
        return self.directory / OUTPUT

    @property
    def work(self) -> Path:
        """What only a further attempt would want, on this node: checkpoints."""
        return self.directory / WORK

    @property
    def shared_work(self) -> str:
        """The same in the storage, where every node sees it: a path or URL."""
        return self.storage.url(f"{self.name}/{WORK}")

    @property
    def earlier_work(self) -> list[str]:
        """Names of the work folders of attempts before this one, newest first.

        Attempts before the step's last commit are left out: who computes a step anew wants nothing
        of what was computed then.
        """
        folder, _, own = self.name.rpartition("/")
        names = sorted(self.storage.names(folder), reverse=True)
        since_commit = f"{self.claimed.committed + 1:06d}"
        return [f"{folder}/{name}/{WORK}" for name in names if since_commit <= name < own]

    def earlier(self, part: str) -> dict[Path, str]:
        """A part of earlier attempts' work, newest first: names by their places on this node.

        To be read only, and from an object store only when it was fetched.
        """
        names = [f"{name}/{part}" for name in self.earlier_work]
        return {self.storage.place(name): name for name in names if self.storage.names(name)}

    def go_on_with(self, part: str) -> None:
        """Copy a part of the newest earlier attempt's work, where there is any, to this one's."""
        for name in self.earlier_work:
            if self.storage.names(f"{name}/{part}"):
                self.storage.copy(f"{name}/{part}", f"{self.name}/{WORK}/{part}")
                return


class Artifacts:
    """All artifacts of a storage: `artifacts/<kind>/<fingerprint>/<attempt>/output/`."""

    def __init__(self, where: Storage) -> None:
        self.storage = where
        self.ledger = Ledger(where)

    def find(self, step: Identified) -> Record | None:
        """The record of a finished step; None where it is yet to be done."""
        position = self.ledger.positions([step])[step.fingerprint]
        return self.ledger.record(step, position.committed)

    def output(self, record: Record) -> Path:
        """A finished step's output folder; from an object store, a copy on this node."""
        return self.storage.fetched(output_name(record))

    def excerpt(self, record: Record, names: Iterable[str]) -> Path:
        """Its output folder on this node, in which those files are that it has of these.

        Raises:
            DamagedFileError: one of them is not what the record says.
        """
        own = [name for name in names if name in record.files]
        stream = Stream(
            self.storage, output_name(record), record.files, keep=len(own), is_unverified=True
        )
        for name in own:
            stream(name)
        return stream.place

    def verified(self, record: Record) -> Path:
        """The output folder, after every byte was compared with the record.

        Raises:
            DamagedArtifactError: names the file and the way out.
        """
        damaged = self.storage.damage(output_name(record), record.files)
        if damaged:
            raise DamagedArtifactError(
                f"the output of {record.name} is damaged: {damaged} "
                f"(in {self.storage.url(output_name(record))}); "
                f"compute it anew with --force {record.name}"
            )
        return self.output(record)

    def begin(self, step: Identified, after: Position, run: str, lease_s: float) -> Attempt | None:
        """Claim a step and make an empty attempt; None where somebody else claimed it first."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        own = f"{after.number + 1:06d}-{stamp}-{uuid.uuid4().hex[:8]}"
        claim = Claim(run=run, attempt=own, owner=Owner.current(), lease_s=lease_s)
        claimed = self.ledger.append(step, after, claim)
        if claimed is None:
            return None
        name = f"{_folder(step)}/{own}"
        local = self.storage.is_local
        directory = self.storage.path(name) if local else cache_folder() / "attempts" / own
        attempt = Attempt(self.storage, claimed, name, directory)
        attempt.output.mkdir(parents=True)
        attempt.work.mkdir()
        failpoints.reach("artifacts.begin")
        return attempt

    def commit(
        self,
        step: Step,
        attempt: Attempt,
        facts: Mapping[str, Any],
        *,
        run: str,
        elapsed_s: float = 0.0,
        source: str | None = None,
    ) -> Position | None:
        """Make an attempt the step's result; None where its claim was taken over: then it is gone.

        The files are durable before the record names them.
        """
        record = Record(
            name=step.name,
            kind=step.kind,
            version=step.version,
            fingerprint=step.fingerprint,
            spec=plain(step.spec),
            inputs={name: other.fingerprint for name, other in step.inputs.items()},
            outside=dict(step.outside),
            attempt=attempt.id,
            facts=dict(facts),
            files=manifest.describe(attempt.output),
            run=run,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            elapsed_s=round(elapsed_s, 3),
            versions=_versions(),
            source=source,
        )
        if self.storage.is_local:
            if record.files:
                sync_tree(attempt.output, up_to=Path(self.storage.root))
        else:
            self.storage.upload(attempt.output, f"{attempt.name}/{OUTPUT}")
        failpoints.reach("artifacts.commit.stored")
        position = self.ledger.commit(step, attempt.claimed, record)
        if position is None:
            self.discard(attempt)
            return None
        failpoints.reach("artifacts.commit.recorded")
        try:
            self.storage.delete(f"{attempt.name}/{WORK}")
        except OSError as error:  # the step is done all the same; `gc` removes what is left
            logger.warning("work of %s could not be removed: %s", step.name, error)
        if not self.storage.is_local:
            shutil.rmtree(attempt.directory, ignore_errors=True)
        return position

    def release(self, step: Identified, attempt: Attempt) -> None:
        """Give up an attempt that failed: its claim and output go, its work stays for the next.

        An attempt that was committed before something went wrong keeps all it has.
        """
        position = self.ledger.position(step, attempt.claimed)
        if isinstance(position.entry, Record) and position.entry.attempt == attempt.id:
            return
        # First of all make room: the disk may be full.
        shutil.rmtree(attempt.output, ignore_errors=True)
        has_work = any(path.is_file() for path in attempt.work.rglob("*"))
        if not self.storage.is_local or not has_work:
            shutil.rmtree(attempt.directory, ignore_errors=True)
        self.ledger.append(step, attempt.claimed, Release())

    def discard(self, attempt: Attempt) -> None:
        """Remove all that an attempt wrote."""
        self.storage.delete(attempt.name)
        shutil.rmtree(attempt.directory, ignore_errors=True)


def attempts_folder(kind: str, stem: str) -> str:
    """The folder of a step's attempts."""
    return f"{ARTIFACTS}/{kind}/{stem}"


def output_name(record: Record) -> str:
    """Name of a finished step's output folder in the storage."""
    return f"{_folder(record)}/{record.attempt}/{OUTPUT}"


def _folder(step: Identified | Record) -> str:
    return attempts_folder(step.kind, stem_of(step.fingerprint))


@cache
def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: installed_version(name) for name in _DISTRIBUTIONS
    }
