"""How often each test split was opened: in the storage, before anybody looks."""

import json
from datetime import UTC, datetime

from workflows import storage
from workflows.storage import Storage

_FOLDER = "openings"
_DIGITS = 32


def open_test(where: Storage, split: str, *, step: str, run: str) -> int:
    """Write down that a test split is opened; how often that has been, this time included.

    Written first: who dies behind it may have seen the rows. Every pipeline of the storage with the
    same rows counts, and every attempt.

    Args:
        where: the storage.
        split: digest of its rows.
        step: which opens it.
        run: it is part of.
    """
    folder = f"{_FOLDER}/{split[:_DIGITS]}"
    opened_at = datetime.now(UTC).isoformat(timespec="seconds")
    entry = json.dumps({"schema_version": 1, "step": step, "run": run, "opened_at": opened_at})
    while True:
        names = [name for name in where.names(folder) if not storage.is_partial(name)]
        number = len(names) + 1
        try:
            where.create(f"{folder}/{number:06d}.json", entry.encode())
        except storage.AlreadyExistsError:
            continue
        return number
