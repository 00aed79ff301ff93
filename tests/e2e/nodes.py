"""A real Ray of several nodes on this machine, each with an environment of its own."""

import contextlib
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
        self._head = HOST

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
        host: str = HOST,
    ) -> None:
        """Start a node, the first as the head, through another command where one is given."""
        if not self._processes:
            self._head = host
        head = [
            *("--head", f"--port={PORT}", f"--temp-dir={self._folder}"),
            *(f"--include-dashboard={str(bool(self._settings)).lower()}",),
            *(f"--dashboard-port={DASHBOARD_PORT}", f"--node-ip-address={host}"),
            f"--dashboard-host={host}",
        ]
        joining = [f"--address={self._head}:{PORT}", f"--node-ip-address={host}"]
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

    def kill(self, number: int) -> None:
        """End a node as a power cut does, with all its processes; the first is the head."""
        process = self._processes.pop(number)
        for pid in [process.pid, *_descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(timeout=60)
        if not number:
            shutil.rmtree(self._folder, ignore_errors=True)

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
            url = f"http://{self._head}:{DASHBOARD_PORT}/nodes?view=summary"
            answer = requests.get(url, headers=headers, timeout=5)
            found = answer.json()["data"]["summary"]
            alive = [node for node in found if node["raylet"]["state"] == "ALIVE"]
            return len(alive) == len(self._processes)
        except (requests.RequestException, KeyError):
            return False


def _descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they started."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(path.parent.name))
    children = parents.get(pid, [])
    return [*children, *(pid for child in children for pid in _descendants(child))]


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
