"""What nodes are and whom they reach, asked on each of them. Measures; judges nothing."""

import asyncio
import contextlib
import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.worker import get_dashboard_url
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import tokens
from cluster.config import WorkerConfig
from cluster.interface import Outcome, UnreachableError
from cluster.jobs import Jobs
from cluster.ray_cluster import RayCluster, live_nodes, name_of
from cluster.remote import ContactError, RefusedError

_DISTRIBUTIONS = ("ray", "torch", "deepspeed", "transformers", "pretune")
_PACKAGES = ("cluster", "trainers", "workflows")
_SHARED_MEMORY = Path("/dev/shm")

_HEALTH_CHECK_S = 10.0
_NVIDIA_SMI_S = 10.0
_SURVEY_MEETING_S = 5.0
_SLACK_S = 5.0
_CONNECT_S = 2.0
_CONNECTIONS_AT_ONCE = 32
_CLOCK_READINGS = 5


@dataclass(frozen=True)
class Gpu:
    """As `nvidia-smi` tells of it."""

    name: str
    driver: str
    memory_mib: str


@dataclass(frozen=True)
class Clock:
    """How far a node's clock is ahead of that of the driver's node."""

    offset_s: float
    uncertainty_s: float
    """Half the time that asking took."""


@dataclass(frozen=True)
class NodeFacts:
    """One node."""

    address: str
    versions: Mapping[str, str | None]
    """Of Python and what pipelines are made with; None for what is not installed."""
    cpus: int
    ray_cpus: float
    gpus: tuple[Gpu, ...]
    ray_gpus: float
    gpu_problem: str | None
    """Why `nvidia-smi` tells nothing, where there is one."""
    memory_bytes: int
    shared_memory_bytes: int | None
    """Of /dev/shm; None where there is no such thing."""
    temporary_folder: str
    """Ray's, for logs and what does not fit into memory."""
    disk_bytes: int
    disk_free_bytes: int
    clock: Clock
    is_token_asked_for: bool
    unreached: Mapping[str, str]
    """What could not be connected to, `node port (what)`, and why."""


def check_answers(address: str) -> None:
    """Return if a Ray answers at an address, and takes this process's token.

    `ray.init` tries for minutes and cannot be interrupted; a process that is sent ahead can be.

    Raises:
        UnreachableError: it does not, in time; tells why, and what to do.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        answer = subprocess.run(
            command, capture_output=True, timeout=_HEALTH_CHECK_S, check=False, text=True
        )
        if answer.returncode == 0:
            return
        said, why = answer.stderr, (answer.stderr.strip().splitlines() or ["(no message)"])[-1]
    except subprocess.TimeoutExpired as error:
        # Bytes even with text=True: https://github.com/python/cpython/issues/87597
        said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else ""
        why = f"no Ray answers within {_HEALTH_CHECK_S:g} s"
    if "InvalidAuthToken" in said or "Unauthenticated" in said:
        raise UnreachableError(
            f"the cluster at {address} does not take the token; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH to the file of the token the cluster was started with"
        )
    raise UnreachableError(
        f"{address}: {why}; give the port of the head's GCS (ray start --port, 6379 by default), "
        "and see that the head is alive: ray status"
    )


def survey(cluster: RayCluster, *, timeout_s: float) -> dict[str, Outcome]:
    """The `NodeFacts` of each live node, by its name; all at once, as each connects to all."""
    with _meeting(len(live_nodes()), _SURVEY_MEETING_S) as meeting:
        return cluster.on_every_node(_facts, meeting, timeout_s=timeout_s)


@dataclass(frozen=True)
class Rendezvous:
    """Where functions that run on several nodes at once find each other."""

    meeting: Any
    nodes: int

    def __call__(self, port: int) -> tuple[int, tuple[str, ...], str, int]:
        """Come, with a port that this node listens at.

        This node's rank, the names of all by rank, and the host and port of the first.

        Raises:
            TimeoutError: others did not come.
        """
        ports = ray.get(self.meeting.join.remote(_own_id(), port))
        if len(ports) < self.nodes:
            raise TimeoutError(f"{len(ports)} of {self.nodes} nodes came")
        ids = sorted(ports)
        nodes = {node["NodeID"]: node for node in live_nodes()}
        names = tuple(name_of(nodes[node_id]) for node_id in ids)
        return ids.index(_own_id()), names, nodes[ids[0]]["NodeManagerAddress"], ports[ids[0]]


def together(
    cluster: RayCluster,
    function: Callable[[Rendezvous], Any],
    worker: WorkerConfig,
    *,
    timeout_s: float,
) -> dict[str, Outcome]:
    """Run a function at the same time on each node that can hold `worker`; how it ended, by name.

    Not a gang: to start and end one of two ranks took Ray Train 33 to 40 s on two busy cores, and
    this 3 to 5 s.
    """
    nodes = len(live_nodes(worker))
    with _meeting(nodes, timeout_s - _SLACK_S) as meeting:
        return cluster.on_every_node(
            function, Rendezvous(meeting, nodes), worker=worker, timeout_s=timeout_s
        )


def dashboard() -> str | None:
    """What is wrong with Ray's dashboard, asked from here; None if nothing is."""
    address = get_dashboard_url()
    if not address:
        return "the head has no dashboard"
    try:
        Jobs(address, tokens.find()).ray_version()
    except (ContactError, RefusedError, tokens.TokenError) as error:
        return str(error)
    return None


def versions() -> dict[str, str | None]:
    """Of Python and what pipelines are made with, in this process."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    # Two checkouts of one version differ.
    found["pretune"] = f"{found['pretune']} (code {_code_digest()})"
    return found


class _Meeting:
    """An actor on the driver's node: tells its clock, and who listens where."""

    def __init__(self, nodes: int, patience_s: float) -> None:
        self._patience_s = patience_s
        self._ports: dict[str, int] = {}
        self._all_listen, self._all_are_done = asyncio.Barrier(nodes), asyncio.Barrier(nodes)

    async def time(self) -> float:
        return time.time()

    async def join(self, node_id: str, port: int) -> dict[str, int]:
        """The ports of all nodes, or of those that came in time."""
        self._ports[node_id] = port
        await self._meet(self._all_listen)
        return dict(self._ports)

    async def leave(self) -> None:
        """Returns when nobody connects any more."""
        await self._meet(self._all_are_done)

    async def _meet(self, barrier: asyncio.Barrier) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(barrier.wait(), self._patience_s)


@contextlib.contextmanager
def _meeting(nodes: int, patience_s: float) -> Iterator[Any]:
    """A handle of a `_Meeting` of so many nodes, each of which waits so long for the others."""
    here = NodeAffinitySchedulingStrategy(_own_id(), soft=False)
    actor = ray.remote(_Meeting).options(num_cpus=0, scheduling_strategy=here)
    meeting = actor.remote(nodes, patience_s)
    try:
        yield meeting
    finally:
        ray.kill(meeting)


def _facts(meeting: Any) -> NodeFacts:
    nodes = live_nodes()
    own = next(node for node in nodes if node["NodeID"] == _own_id())
    gpus, gpu_problem = _gpus()
    # <folder>/<session>/sockets/raylet
    folder = Path(own["RayletSocketName"]).parents[2]
    disk = shutil.disk_usage(folder)
    has_shared = _SHARED_MEMORY.is_dir()
    return NodeFacts(
        address=own["NodeManagerAddress"],
        versions=versions(),
        cpus=os.cpu_count() or 1,
        ray_cpus=own["Resources"].get("CPU", 0.0),
        gpus=gpus,
        ray_gpus=own["Resources"].get("GPU", 0.0),
        gpu_problem=gpu_problem,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        shared_memory_bytes=shutil.disk_usage(_SHARED_MEMORY).total if has_shared else None,
        temporary_folder=str(folder),
        disk_bytes=disk.total,
        disk_free_bytes=disk.free,
        clock=min(
            (_clock(meeting) for _ in range(_CLOCK_READINGS)), key=lambda one: one.uncertainty_s
        ),
        is_token_asked_for=is_token_auth_enabled(),
        unreached=_unreached(meeting, own, nodes),
    )


def _own_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total"]
    if shutil.which(command[0]) is None:
        return (), None
    try:
        answer = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            timeout=_NVIDIA_SMI_S,
            check=False,
            text=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), str(error)
    if answer.returncode:
        return (), (answer.stdout or answer.stderr).strip().partition("\n")[0]
    rows = [line.split(", ") for line in answer.stdout.strip().splitlines()]
    return tuple(Gpu(*row) for row in rows), None


def _clock(meeting: Any) -> Clock:
    asked, started = time.time(), time.perf_counter()
    there = ray.get(meeting.time.remote())
    half = (time.perf_counter() - started) / 2
    return Clock(asked + half - there, half)


def _unreached(meeting: Any, own: Mapping[str, Any], nodes: list[dict[str, Any]]) -> dict[str, str]:
    """Ports of other nodes that cannot be connected to: Ray's, and one as gloo and NCCL take."""
    with socket.create_server(("", 0), backlog=1024) as listening:
        free = ray.get(meeting.join.remote(own["NodeID"], listening.getsockname()[1]))
        wanted = [
            (node, port, what)
            for node in nodes
            for port, what in (
                (node["NodeManagerPort"], "raylet"),
                (node["ObjectManagerPort"], "object store"),
                (free.get(node["NodeID"]), "free port"),
            )
            if node["NodeID"] != own["NodeID"] and port is not None
        ]
        with ThreadPoolExecutor(_CONNECTIONS_AT_ONCE) as pool:
            causes = pool.map(
                lambda one: _cause_of_silence(one[0]["NodeManagerAddress"], one[1]), wanted
            )
            found = {
                f"{name_of(node)} {port} ({what})": cause
                for (node, port, what), cause in zip(wanted, causes, strict=True)
                if cause is not None
            }
        ray.get(meeting.leave.remote())
    return found


def _cause_of_silence(host: str, port: int) -> str | None:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        return str(error)
    return None


def _code_digest() -> str:
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:8]
