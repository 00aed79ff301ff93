"""What was found in a file, kept between plans for as long as the file does not change."""

import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.cache import cache_folder

logger = logging.getLogger(__name__)

_FILE = "digests-1.sqlite"
_TIMEOUT_S = 5.0
_SETTLED_AFTER_NS = 2_000_000_000
_KEPT_FOR_S = 90 * 24 * 3600
_UNUSABLE = (sqlite3.Error, OSError, RuntimeError, ValueError)

_TABLE = """
CREATE TABLE IF NOT EXISTS findings (
    path BLOB, question TEXT, state TEXT NOT NULL, sha256 TEXT NOT NULL, columns TEXT NOT NULL,
    seal TEXT NOT NULL, stored_at_s INTEGER NOT NULL, PRIMARY KEY (path, question)
) WITHOUT ROWID
"""
_FIND = "SELECT sha256, columns, seal FROM findings WHERE path = ? AND question = ? AND state = ?"
_STORE = "INSERT OR REPLACE INTO findings VALUES (?, ?, ?, ?, ?, ?, ?)"
_FORGET = "DELETE FROM findings WHERE stored_at_s < ?"


@dataclass(frozen=True)
class Finding:
    """What a file holds."""

    sha256: str
    """Of its bytes, in hexadecimal."""

    columns: tuple[str, ...] | None
    """Names of its columns; None where the format has none."""


class DigestCache:
    """Findings of earlier plans, in one SQLite file that processes share.

    A finding holds while the file keeps its size, inode, time of modification and time of change:
    nobody can set the last one back. It only saves time: where the cache is damaged, locked or
    not writable, that is warned of once and files are read as if there were none.

    The journal is SQLite's default, not the write-ahead log: that cannot be opened in a read-only
    folder, nor shared on a network file system, where home folders often are.
    """

    def __init__(self, path: Path | None = None, now_ns: Callable[[], int] = time.time_ns) -> None:
        """Open the cache; `path` None is the one of the user."""
        self._path: Path | str = path or "of digests"
        self._now_ns = now_ns
        self._new: list[tuple[bytes, str, str, str, str, str, int]] = []
        self._database: sqlite3.Connection | None = None
        with self._given_up_on_error():
            self._path = path or cache_folder() / _FILE
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Every statement is its own transaction unless BEGIN says otherwise.
            self._database = sqlite3.connect(self._path, _TIMEOUT_S, isolation_level=None)
            self._database.execute(_TABLE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Keep what was found, also when a later file was refused."""
        with self._given_up_on_error():
            self._save()
        self._close()

    def finding(self, file: Path, question: str, look: Callable[[], Finding]) -> Finding:
        """What is in a file; `look` reads it, unless an earlier answer to `question` holds.

        A file that changed in the two seconds before it was read is not remembered: it may change
        again within the same tick of its clock, which nobody could tell afterwards.

        Args:
            file: may be missing; then `look` says so.
            question: what `look` checks; it is asked again when that changes.
            look: what it raises is passed on and not remembered.
        """
        before = _stat(file)
        if self._database is None or before is None:
            return look()
        key, state = os.fsencode(file.absolute()), _state(before)
        with self._given_up_on_error():
            row = self._database.execute(_FIND, (key, question, state)).fetchone()
            # SQLite notices damage to its structure, not to what it stores.
            if row is not None and row[2] == _seal(key, question, state, *row[:2]):
                names = json.loads(row[1])
                return Finding(row[0], None if names is None else tuple(names))
        now_ns = self._now_ns()
        found = look()
        after = _stat(file)
        is_settled = now_ns - max(before.st_mtime_ns, before.st_ctime_ns) >= _SETTLED_AFTER_NS
        if is_settled and after is not None and _state(after) == state:
            entry = (key, question, state, found.sha256, json.dumps(found.columns))
            self._new.append((*entry, _seal(*entry), now_ns // 10**9))
        return found

    def _save(self) -> None:
        if self._database is None or not self._new:
            return
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany(_STORE, self._new)
        self._database.execute(_FORGET, (self._now_ns() // 10**9 - _KEPT_FOR_S,))
        self._database.execute("COMMIT")

    @contextmanager
    def _given_up_on_error(self) -> Iterator[None]:
        try:
            yield
        except _UNUSABLE as error:
            self._close()
            logger.warning(
                "the cache %s is not used: %s; files are read again, only time is lost; "
                "a damaged cache may be deleted, PRETUNE_CACHE names another folder",
                self._path,
                error,
            )

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = None


def _seal(*entry: object) -> str:
    return hashlib.sha256(repr(entry).encode()).hexdigest()


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def _state(stat: os.stat_result) -> str:
    """Text, for an inode may not fit into SQLite's integers."""
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
