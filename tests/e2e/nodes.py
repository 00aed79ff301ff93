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

import requests
from processes import wait_for

RAY = str(Path(sys.executable).with_name("ray"))
HOST, PORT = "127.0.0.1", 6390  # outside the range from which Ray gives ports to workers
ADDRESS = f"{HOST}:{PORT}"
SETTINGS = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_AUTO_CONNECT": "0"}
"""For the nodes, and for those who talk to them."""


DASHBOARD_PORT = 8366
URL = f"http://{HOST}:{DASHBOARD_PORT}"


def with_token(token: str) -> dict[str, str]:
    """Settings of nodes that ask for a token, and that find `pretune` to be submitted to."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "PATH": path}


class Nodes:
    """Ray nodes, started by `ray start` and ended by their process numbers."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        """With settings of all nodes, the head has a dashboard."""
        self._folder = Path(f"/tmp/nodes-{os.getpid()}")  # socket paths must be short
        self._processes: list[subprocess.Popen[bytes]] = []
        self._settings = settings

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
            *(f"--include-dashboard={str(bool(self._settings)).lower()}",),
            *(f"--dashboard-port={DASHBOARD_PORT}", f"--node-ip-address={HOST}"),
        ]
        joining = [f"--address={ADDRESS}", f"--node-ip-address={HOST}"]
        command = [
            *(*through, RAY, "start", *(joining if self._processes else head)),
            *(f"--num-cpus={cpus}", "--disable-usage-stats", "--block"),
        ]
        log = Path(f"{self._folder}.{len(self._processes)}.log")
        with log.open("wb") as output:
            own = SETTINGS | dict(self._settings or {}) | dict(settings or {})
            environment = os.environ | own
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        self._processes.append(process)
        wait_for(self._is_there if self._settings else _answers, timeout_s=60)
        log.unlink()

    def raylet(self, number: int) -> int:
        """The process of a node's raylet, a child of `ray start`."""
        starter = self._processes[number].pid
        children = Path(f"/proc/{starter}/task/{starter}/children").read_text().split()
        (raylet,) = (
            child
            for child in children
            if Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/raylet")
        )
        return int(raylet)

    def _is_there(self) -> bool:
        """Whether the dashboard knows of all nodes."""
        assert self._settings is not None
        headers = {"Authorization": f"Bearer {self._settings['RAY_AUTH_TOKEN']}"}
        try:
            answer = requests.get(f"{URL}/nodes?view=summary", headers=headers, timeout=5)
            return len(answer.json()["data"]["summary"]) == len(self._processes)
        except (requests.RequestException, KeyError):
            return False


def _answers() -> bool:
    try:
        socket.create_connection((HOST, PORT), timeout=1).close()
    except OSError:
        return False
    return True


def nodes_alive() -> int:
    """As a driver sees it that has no token."""
    code = (
        f"import ray; ray.init(address='{ADDRESS}', log_to_driver=False)\n"
        "print('nodes', sum(node['Alive'] for node in ray.nodes()))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | SETTINGS, capture_output=True, text=True
    )
    return int(told.stdout.rpartition("nodes ")[2] or 0)
