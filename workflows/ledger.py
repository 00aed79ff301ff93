"""One log per step identity: who works on it, and what it came to.

Entries are numbered files, each created exclusively. Claims and commits compete for the same next
number: an owner whose claim is entry n can only commit as entry n + 1, and whoever took its lease
over has created that entry before. So a late owner cannot commit, whatever the clocks say; the
number is the fencing token.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workflows import failpoints, storage
from workflows.leases import Owner
from workflows.steps import Identified, StepRef
from workflows.storage import Storage, StorageError

logger = logging.getLogger(__name__)

_LEDGER = "ledger"
_DONE = "done"
_DIGITS = 6
_NO_SOURCE = "-"


class DamagedEntryError(StorageError):
    """An entry of a step's log is not what was written."""


class Record(BaseModel):
    """A finished step. Its existence means done; nothing like it is written before."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 2
    entry: Literal["commit"] = "commit"
    name: str
    kind: str
    version: int
    fingerprint: str
    spec: dict[str, Any]
    inputs: dict[str, str]
    """Fingerprints of its inputs, by the name the stage knows them by."""
    outside: dict[str, str]
    """Digests of what it read from outside, by path."""
    attempt: str
    facts: dict[str, Any]
    """What the stage found worth telling: counts, scores, choices."""
    files: dict[str, dict[str, Any]]
    """Size and SHA-256 of each output file."""
    run: str
    finished_at: str
    elapsed_s: float
    versions: dict[str, str]
    source: str | None = None
    """Digest of the code that computed it; None where it was taken in from elsewhere."""


class Claim(BaseModel):
    """A process is about to compute a step."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    entry: Literal["claim"] = "claim"
    run: str
    attempt: str
    owner: Owner
    lease_s: float
    """Without a sign of life for so long, anybody may take over."""


class Release(BaseModel):
    """The process that held the claim before gave it up."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    entry: Literal["release"] = "release"


class _Entry(BaseModel):
    """Any of them, told apart by `entry`."""

    value: Record | Claim | Release = Field(discriminator="entry")


@dataclass(frozen=True)
class Position:
    """Where a step's log ends, as far as somebody has read it."""

    number: int = 0
    """Of the newest entry; 0 where there is none."""

    entry: Record | Claim | Release | None = None
    """That entry; None where there is none, or where a marker said that it is a commit."""

    committed: int = 0
    """Number of the newest commit; 0 where there is none."""

    source: str | None = None
    """The source digest of that commit, as its marker tells it."""


class Ledger:
    """The logs of all steps in a storage.

    `ledger/<kind>/<fingerprint>.<number>.json` are the entries. A marker `done/<kind>/
    <fingerprint>.<number>.<source>` beside each commit lets one listing tell thousands of finished
    steps; it is written after the commit and made again when it is missing.
    """

    def __init__(self, where: Storage) -> None:
        self._storage = where

    def positions(self, steps: Iterable[Identified]) -> dict[str, Position]:
        """How each step stands, by fingerprint, in one listing a kind.

        A finished step is told by its marker alone.
        """
        steps = list(steps)
        marked = self._marked({step.kind for step in steps})
        found = {
            step.fingerprint: marked[(step.kind, _stem(step))]
            for step in steps
            if (step.kind, _stem(step)) in marked
        }
        unmarked = [step for step in steps if step.fingerprint not in found]
        first = self._storage.read_all(_name(step, 1) for step in unmarked)
        for step in unmarked:
            found[step.fingerprint] = (
                self.position(step, Position()) if _name(step, 1) in first else Position()
            )
        return found

    def position(self, step: Identified, known: Position) -> Position:
        """How a step stands now, read on from what is known."""
        found = known
        while (entry := self._entry(step, found.number + 1)) is not None:
            number = found.number + 1
            if isinstance(entry, Record):
                found = Position(number, entry, number, entry.source)
            else:
                found = Position(number, entry, found.committed, found.source)
        if found.committed > known.committed:
            with contextlib.suppress(OSError):  # one may look at what one may not write
                self._mark(step, found.committed, found.source)
        return found

    def record(self, step: Identified, number: int) -> Record | None:
        """The commit with a number; None where it was removed."""
        entry = self._entry(step, number)
        return entry if isinstance(entry, Record) else None

    def is_followed(self, step: Identified, position: Position) -> bool:
        """Whether somebody has added an entry behind a position."""
        return self._storage.exists(_name(step, position.number + 1))

    def is_lost(self, step: Identified, claimed: Position, attempt: str) -> bool:
        """Whether somebody else has followed an attempt's claim; its own commit is no loss."""
        entry = self._entry(step, claimed.number + 1)
        return entry is not None and not (isinstance(entry, Record) and entry.attempt == attempt)

    def append(self, step: Identified, after: Position, entry: Claim | Release) -> Position | None:
        """Add an entry; None where somebody else added one first.

        Not durable: no process lives on after a crash of the machine to need it.
        """
        number = after.number + 1
        content = entry.model_dump_json().encode()
        try:
            self._storage.create(_name(step, number), content, durable=False)
        except storage.AlreadyExistsError:
            return None
        failpoints.reach("ledger.append")
        return Position(number, entry, after.committed, after.source)

    def commit(self, step: Identified, claimed: Position, record: Record) -> Position | None:
        """Make a record the step's result, unless the claim was taken over: then None."""
        number = claimed.number + 1
        failpoints.reach("ledger.commit.before")
        try:
            self._storage.create(_name(step, number), record.model_dump_json(indent=1).encode())
        except storage.AlreadyExistsError:
            return None
        failpoints.reach("ledger.commit.after")
        try:
            self._mark(step, number, record.source)
        except OSError as error:  # whoever reads the log makes the marker again
            logger.warning("%s is committed, its marker could not be written: %s", step.name, error)
        failpoints.reach("ledger.commit.marked")
        return Position(number, record, number, record.source)

    def forget(self, kind: str, stem: str) -> None:
        """Remove all there is of a step: the marker first, so that nobody believes the rest."""
        for folder in (_DONE, _LEDGER):
            for name in self._storage.names(f"{folder}/{kind}"):
                if name.startswith(f"{stem}."):
                    self._storage.delete(f"{folder}/{kind}/{name}")

    def commits(self, kind: str) -> Iterator[Record]:
        """The newest result of every step of a kind; what cannot be read is left out."""
        for stem, numbers in self.logs(kind).items():
            for number in reversed(numbers):
                entry = None
                with contextlib.suppress(DamagedEntryError):
                    entry = self._entry(StepRef(kind, kind, stem), number)
                if isinstance(entry, Record):
                    yield entry
                    break

    def kinds(self) -> list[str]:
        """Kinds of steps that have a log."""
        return self._storage.names(_LEDGER)

    def logs(self, kind: str) -> dict[str, list[int]]:
        """Entry numbers of every step of a kind, ascending, by the stem of its fingerprint."""
        found: dict[str, list[int]] = {}
        for name in self._storage.names(f"{_LEDGER}/{kind}"):
            if not storage.is_partial(name):
                stem, number, _ = name.split(".")
                found.setdefault(stem, []).append(int(number))
        return found

    def _marked(self, kinds: Iterable[str]) -> dict[tuple[str, str], Position]:
        found: dict[tuple[str, str], Position] = {}
        for kind in kinds:
            for name in self._storage.names(f"{_DONE}/{kind}"):
                if storage.is_partial(name):
                    continue
                stem, digits, source = name.split(".")
                number = int(digits)
                if number >= found.get((kind, stem), Position()).number:
                    known = None if source == _NO_SOURCE else source
                    found[kind, stem] = Position(number, None, number, known)
        return found

    def _mark(self, step: Identified, number: int, source: str | None) -> None:
        name = f"{_DONE}/{step.kind}/{_stem(step)}.{number:0{_DIGITS}d}.{source or _NO_SOURCE}"
        self._storage.write(name, b"")

    def _entry(self, step: Identified, number: int) -> Record | Claim | Release | None:
        try:
            content = self._storage.read(_name(step, number))
        except FileNotFoundError:
            return None
        try:
            return _Entry.model_validate_json(b'{"value":' + content + b"}").value
        except ValidationError as error:
            damaged = self._storage.url(_name(step, number))
            raise DamagedEntryError(
                f"{damaged} is damaged: {error.errors()[0]['msg']}; put it back from a copy, or "
                f"remove it and all names that begin with {_stem(step)} in {_LEDGER}/{step.kind} "
                f"and {_DONE}/{step.kind} to compute the step anew"
            ) from error


def stem_of(fingerprint: str) -> str:
    """The part of a fingerprint that names files: 128 bits."""
    return fingerprint[:32]


def _stem(step: Identified) -> str:
    return stem_of(step.fingerprint)


def _name(step: Identified, number: int) -> str:
    return f"{_LEDGER}/{step.kind}/{_stem(step)}.{number:0{_DIGITS}d}.json"
