"""Everything a process prints and logs goes to one file."""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.cache import cache_folder

_TRIAL_MARK = "==> trial "

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def of_this_process(log: Path) -> Path:
    """The log of a slot, beside that of its step; other nodes have processes of this number."""
    return log.with_suffix(f".slot-{socket.gethostname()}-{os.getpid()}.log")


def mark_trial(trial: str) -> None:
    """Say in the log of a slot that what follows is of this trial."""
    sys.stdout.write(f"{_TRIAL_MARK}{trial}\n")


def parts_of_trial(log: str, trial: str) -> Iterator[str]:
    """What the log of a slot says of a trial, each time that the slot took it up."""
    for part in f"\n{log}".split(f"\n{_TRIAL_MARK}")[1:]:
        name, _, told = part.partition("\n")
        if name == trial:
            yield told


@contextlib.contextmanager
def redirected(log: Path) -> Iterator[None]:
    """Append this process's output (Python's and C's) to `log` while the block runs.

    A relative path is below this node's cache folder.
    """
    log = cache_folder() / log
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter(_FORMAT))
        root = logging.getLogger()
        level_before = root.level
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            root.removeHandler(handler)
            root.setLevel(level_before)
            file.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
