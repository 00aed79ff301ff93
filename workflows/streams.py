"""Files of a finished step, each brought to a node when a worker there opens it."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.cache import cache_folder
from trainers import manifest
from workflows.storage import Storage, key_of


class DamagedFileError(RuntimeError):
    """A finished step's file is not what it was when it finished."""


@dataclass(frozen=True)
class Stream:
    """Opens files of a finished step by name, on any node. Picklable.

    In a folder that all nodes see they are opened where they are; the step that reads them has
    verified them, or they are compared now. From an object store a file is fetched to this node's
    cache, its bytes are compared with the record, and the files that were opened longest ago make
    room for it.
    """

    storage: Storage
    folder: str
    files: Mapping[str, Mapping[str, Any]]
    """The record's manifest."""
    keep: int
    """Files of an object store that stay on a node."""
    is_unverified: bool = False
    """Whether files in a folder that all nodes see are compared when they are opened, too."""

    def __call__(self, name: str) -> Path:
        """Where the file is on this node.

        Raises:
            DamagedFileError: it is not what the record says.
        """
        place = self.place / name
        if self.storage.is_local:
            if self.is_unverified:
                self._require_whole(name, manifest.digest_of(place))
            return place
        try:
            os.utime(place)
        except FileNotFoundError:
            self._fetch(name, place)
            self._make_room()
        return place

    @property
    def place(self) -> Path:
        """The folder on this node in which files are that were opened."""
        if self.storage.is_local:
            return self.storage.path(self.folder)
        return cache_folder() / "streams" / key_of(self.storage.url(self.folder))

    def _fetch(self, name: str, place: Path) -> None:
        content = self.storage.read(f"{self.folder}/{name}")
        self._require_whole(name, hashlib.sha256(content).hexdigest())
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a file that is here is believed
        partial.rename(place)

    def _require_whole(self, name: str, digest: str) -> None:
        if digest != self.files[name]["sha256"]:
            raise DamagedFileError(
                f"{self.storage.url(f'{self.folder}/{name}')} has other bytes than were written; "
                "compute the step that wrote it anew with --force"
            )

    def _make_room(self) -> None:
        """Remove what was opened longest ago; who has it mapped still reads it."""
        opened: list[tuple[float, Path]] = []
        for path in self.place.rglob("*"):
            if path.is_dir():
                continue
            try:
                opened.append((path.stat().st_mtime, path))
            except FileNotFoundError:  # another process of this node was faster
                continue
        for time, path in sorted(opened)[: -self.keep]:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime == time:  # else somebody has just opened it
                    path.unlink()
