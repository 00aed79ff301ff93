"""A folder of this process alone on the node's own disk, for state that does not fit in memory."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from trainers.errors import DataError

_PREFIX = "pretune-"
_LOCK = "lock"


@contextmanager
def own_folder(parent: Path, *, field: str) -> Iterator[Path]:
    """A new folder in `parent`, removed at the end; those of dead processes are removed now.

    A process holds a lock on a file of its folder, which ends with it however it ends.

    Args:
        parent: may be shared with other processes; made where it is missing.
        field: of the configuration, that names it.

    Raises:
        DataError: nothing can be written there.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with (parent / f"{_PREFIX}{_LOCK}").open("a") as turn:  # nobody sees a folder without lock
            fcntl.flock(turn, fcntl.LOCK_EX)
            _remove_left_over(parent)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            lock = (folder / _LOCK).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise DataError(
            f"{field}: nothing can be written in {parent} on {os.uname().nodename} "
            f"({error.strerror}); name a folder on a disk of each node"
        ) from error
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_left_over(parent: Path) -> None:
    for path in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        with path.open("a") as lock:
            if _can_take(lock):
                shutil.rmtree(path.parent, ignore_errors=True)


def _can_take(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
