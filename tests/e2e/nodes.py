"""A real Ray of several nodes on this machine, each with an environment of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from processes import wait_for

RAY = str(Path(sys.executable).with_name("ray"))
HOST, PORT = "127.0.0.1", 6390  # outside the range from which Ray gives ports to workers
ADDRESS = f"{HOST}:{PORT}"
SETTINGS = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_AUTO_CONNECT": "0"}
"""For the nodes, and for those who talk to them."""


class Nodes:
    """Ray nodes, started by `ray start` and ended by their process numbers."""

    def __init__(self) -> None:
        self._folder = Path(f"/tmp/nodes-{os.getpid()}")  # socket paths must be short
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(
        self,
        *,
        cpus: int,
        settings: Mapping[str, str] | None = None,
        through: Sequence[str] = (),
    ) -> None:
        """Start a node, the first as the head, through another command where one is given."""
        head = [
            *("--head", f"--port={PORT}", f"--temp-dir={self._folder}"),
            *("--include-dashboard=false", f"--node-ip-address={HOST}"),
        ]
        joining = [f"--address={ADDRESS}", f"--node-ip-address={HOST}"]
        command = [
            *(*through, RAY, "start", *(joining if self._processes else head)),
            *(f"--num-cpus={cpus}", "--disable-usage-stats", "--block"),
        ]
        log = Path(f"{self._folder}.{len(self._processes)}.log")
        with log.open("wb") as output:
            environment = os.environ | SETTINGS | dict(settings or {})
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        self._processes.append(process)
        wait_for(_answers, timeout_s=60)
        log.unlink()


def _answers() -> bool:
    try:
        socket.create_connection((HOST, PORT), timeout=1).close()
    except OSError:
        return False
    return True
