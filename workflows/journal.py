"""What happened in a run, as it happens: JSON lines, in files of each writing process' own."""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workflows import storage
from workflows.storage import Storage

Event = Mapping[str, Any]

DRIVER = "run"
"""The writer that says how steps begin and end."""

_SUFFIX = ".jsonl"
_FLUSH_EVERY_S = 1.0


@dataclass
class Journal:
    """Appends events of one writer. Picklable: stages take it to other processes.

    In a folder each writer has one growing file. An object store cannot append: there events are
    gathered for a second and put as one object.
    """

    storage: Storage
    directory: str
    """Name in the storage."""
    writer: str
    listeners: list[Callable[[Event], None]] = field(default_factory=list)
    """Hear each event once it is written, in this process."""
    _waiting: list[str] = field(default_factory=list)
    _flushed_at: float = 0.0

    def append(self, event: str, **facts: Any) -> None:
        """Add an event; a line is written in one call, so readers never see half of one."""
        told = {"time": time.time(), "event": event, **facts}
        line = json.dumps(told) + "\n"
        if self.storage.is_local:
            self._append_local(line)
        else:
            self._waiting.append(line)
            self.flush_if_due()
        for listener in self.listeners:
            listener(told)

    def flush_if_due(self) -> None:
        """Write what still waits, if the last time was a second ago."""
        if time.time() - self._flushed_at >= _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write what still waits."""
        if not self._waiting:
            return
        # Named by time, so that a listing gives them in order.
        name = f"{self.writer}.{time.time_ns()}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
        self.storage.write(f"{self.directory}/{name}", "".join(self._waiting).encode())
        self._waiting.clear()
        self._flushed_at = time.time()

    def _append_local(self, line: str) -> None:
        path = self.storage.path(f"{self.directory}/{self.writer}{_SUFFIX}")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        try:
            descriptor = os.open(path, flags, 0o644)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, flags, 0o644)
        try:
            os.write(descriptor, line.encode())
        except OSError as error:
            raise storage.StorageError(storage.explain(error, str(path))) from error
        finally:
            os.close(descriptor)


def read(where: Storage, directory: str) -> list[Event]:
    """All events of a run, oldest first."""
    return Tail(where, directory).new()


class Tail:
    """Reads a run's events as they come, each once; of one writer, or of all."""

    def __init__(self, where: Storage, directory: str, writer: str | None = None) -> None:
        self._storage, self._directory = where, directory
        self._begin = "" if writer is None else f"{writer}."
        self._offsets: dict[str, int] = {}

    def new(self) -> list[Event]:
        """Events since the last call, oldest first."""
        found = self._storage.names(self._directory, self._begin)
        names = [name for name in found if name.endswith(_SUFFIX)]
        events = (
            [event for name in names for event in self._appended(name)]
            if self._storage.is_local
            else list(self._objects(name for name in names if name not in self._offsets))
        )
        return sorted(events, key=lambda event: event["time"])

    def _appended(self, name: str) -> Iterable[Event]:
        path = self._storage.path(f"{self._directory}/{name}")
        try:
            with path.open("rb") as file:
                file.seek(self._offsets.get(name, 0))
                # A writer that was killed may leave half a line.
                complete = file.read().rpartition(b"\n")[0]
        except OSError as error:
            raise storage.StorageError(storage.explain(error, str(path), "read")) from error
        if complete:
            self._offsets[name] = self._offsets.get(name, 0) + len(complete) + 1
        return _events(complete)

    def _objects(self, names: Iterable[str]) -> Iterable[Event]:
        contents = self._storage.read_all(f"{self._directory}/{name}" for name in names)
        for name, content in contents.items():
            self._offsets[name.rpartition("/")[2]] = len(content)
            yield from _events(content)


def _events(lines: bytes) -> list[Event]:
    found = []
    for line in lines.splitlines():
        # A full disk leaves half a line, and the next event goes on in it: both are lost.
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
