"""What happened in a run, as it happens: one file of JSON lines for each writing process."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]

_SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Journal:
    """Appends events to one writer's file. Picklable: stages take it to other processes."""

    directory: Path
    writer: str

    def append(self, event: str, **facts: Any) -> None:
        """Add an event; a line is written in one call, so readers never see half of one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": time.time(), "event": event, **facts}) + "\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        descriptor = os.open(self.directory / f"{self.writer}{_SUFFIX}", flags, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def read(directory: Path) -> list[Event]:
    """All events of a run, oldest first."""
    events = [event for path in directory.glob(f"*{_SUFFIX}") for event in _events(path)]
    return sorted(events, key=lambda event: event["time"])


class Tail:
    """Reads a run's events as they come, each once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offsets: dict[Path, int] = {}

    def new(self) -> list[Event]:
        """Events since the last call, oldest first."""
        events: list[Event] = []
        for path in self._directory.glob(f"*{_SUFFIX}"):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                complete = file.read().rpartition(b"\n")[0]
            if complete:
                self._offsets[path] = self._offsets.get(path, 0) + len(complete) + 1
                events += [json.loads(line) for line in complete.splitlines()]
        return sorted(events, key=lambda event: event["time"])


def _events(path: Path) -> Iterator[Event]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):  # a writer that was killed may leave half a line
                yield json.loads(line)
