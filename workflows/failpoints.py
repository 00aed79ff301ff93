"""Named places in every commit path where a test can kill the process."""

import os
import signal

VARIABLE = "PRETUNE_FAIL_AT"
"""`name:count`: kill this process when it reaches the place for the count-th time."""

reached: dict[str, int] = {}
"""How often each place was reached, where the variable is set."""


def reach(name: str) -> None:
    """Do nothing, unless a test asked for the process to die here: as by a power cut."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    reached[name] = reached.get(name, 0) + 1
    if wanted == f"{name}:{reached[name]}":
        os.kill(os.getpid(), signal.SIGKILL)
