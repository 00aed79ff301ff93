"""Named places in every commit path where a test can kill the process."""

import os
import signal

VARIABLE = "PRETUNE_FAIL_AT"
"""`name` or `name:count`: kill this process when it reaches the place for the count-th time."""

_reached: dict[str, int] = {}


def reach(name: str) -> None:
    """Do nothing, unless a test asked for the process to die here: as by a power cut."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    place, _, count = wanted.partition(":")
    if place == name:
        _reached[name] = _reached.get(name, 0) + 1
        if _reached[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
