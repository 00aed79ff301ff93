"""What trials came to, by the way that led there: nobody goes the same way twice.

A stage is what a trial is after so many epochs. Its key follows from all that it depends on, so
that trials which begin alike share their first stages, as in the stage trees of Hippo (Shin et al.
2022, VLDB 15), and a trial that is begun again finds what it has been through.
"""

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster import folders
from cluster.interface import Metrics
from cluster.space import Point

_FOLDER = "stages"
_RECORD = "stage.json"
_DIGITS = 32

Course = Callable[[Mapping[str, Any]], Sequence[Any]]
"""For each epoch of a point, all of the point that the state after it depends on; JSON-able."""


def keys_of(course: Course, point: Mapping[str, Any]) -> list[str]:
    """The keys of a trial's stages, one for each of its epochs."""
    return [
        hashlib.sha256(json.dumps([epoch, part], sort_keys=True).encode()).hexdigest()[:_DIGITS]
        for epoch, part in enumerate(course(point), start=1)
    ]


def apart(course: Course, point: Mapping[str, Any]) -> Sequence[Any]:
    """The course of a point that shares nothing with others."""
    return [dict(point)] * len(course(point))


def forks(course: Course, points: Iterable[Point]) -> frozenset[str]:
    """Keys of the stages behind which points go different ways; one that ends there goes none."""
    followers: dict[str, set[str]] = defaultdict(set)
    for point in points:
        for key, following in pairwise(keys_of(course, point)):
            followers[key].add(following)
    return frozenset(key for key, following in followers.items() if len(following) > 1)


def length_shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Epochs that two trials have in common, given their keys."""
    same = (number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(same, min(len(one), len(other)))


@dataclass(frozen=True)
class Stages:
    """Metrics of every stage of a search, and the states that somebody may go on from. Picklable.

    A stage is a folder with a record; the record names a folder with the state, or none. Whoever
    reads a record finds what it names whole.
    """

    directory: str
    """A folder or URL that every node sees."""
    forks: frozenset[str]
    """Keys whose states are kept for others."""

    def histories(self, keys: Sequence[str]) -> list[Metrics]:
        """Metrics after each epoch, of as many first stages as are known."""
        found: list[Metrics] = []
        for key in keys:
            record = self._record(key)
            if record is None:
                break
            found.append(record["metrics"])
        return found

    def epoch_of_state(self, keys: Sequence[str]) -> int:
        """The last of these stages that has a state, or 0."""
        found = 0
        for epoch, key in enumerate(keys, start=1):
            record = self._record(key)
            found = epoch if record is not None and record["state"] is not None else found
        return found

    def load(self, keys: Sequence[str], load: Callable[[Path], None]) -> int:
        """Have `load` read the state of the last of these stages that has one; its epoch, or 0."""
        for epoch in range(len(keys), 0, -1):
            record = self._record(keys[epoch - 1])
            if record is not None and record["state"] is not None:
                folders.read(f"{self._place(keys[epoch - 1])}/{record['state']}", load)
                return epoch
        return 0

    def write(self, key: str, metrics: Metrics, save: Callable[[Path], None] | None = None) -> None:
        """Keep a stage; with `save` its state, too, unless it is there."""
        known = self._record(key)
        state = known["state"] if known else None
        if save is not None and state is None:
            state = uuid.uuid4().hex
            folders.write(f"{self._place(key)}/{state}", save)
        self._put(key, {"metrics": dict(metrics), "state": state})

    def drop(self, key: str) -> None:
        """Remove the state of a stage, unless it is kept for others; its metrics stay."""
        if key not in self.forks:
            self.release(key)

    def release(self, key: str) -> None:
        """Remove the state of a stage that nobody goes on from any more; its metrics stay."""
        record = self._record(key)
        if record is not None and record["state"] is not None:
            self._put(key, {**record, "state": None})
            folders.remove(f"{self._place(key)}/{record['state']}")

    def _place(self, key: str) -> str:
        return f"{self.directory}/{_FOLDER}/{key}"

    def _record(self, key: str) -> Any:
        try:
            return json.loads(folders.read_file(f"{self._place(key)}/{_RECORD}"))
        except FileNotFoundError:
            return None

    def _put(self, key: str, record: Mapping[str, Any]) -> None:
        folders.write_file(f"{self._place(key)}/{_RECORD}", json.dumps(record).encode())
