"""The command in processes of its own, and what it leaves behind."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PRETUNE = str(Path(sys.executable).with_name("pretune"))


def pretune(*arguments: object, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [PRETUNE, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | settings,
    )


def traces_of_ray() -> set[str]:
    """Processes and folders of local Rays, whosever they are."""
    found = {str(folder) for folder in Path("/tmp").glob("pretune-ray-*")}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "pretune-ray-" in command or command.startswith("ray::"):
            found.add(f"{path.parent.name} {command}")
    return found


def wait_for(condition: Callable[[], bool], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)
