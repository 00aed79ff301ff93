"""From what was measured on a cluster to what is wrong with it, and what to do. Pure."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cluster.preflight import NodeFacts
from trainers.collective import AllReduce

HERE = "this command"
"""What the process that asks is called beside the nodes."""

# Below it Ray's objects go to the disk, and NCCL finds no room. Docker's default is 64 MiB.
_LEAST_SHARED_MEMORY_BYTES = 1 << 30
# Ray's local_fs_capacity_threshold: fuller than this, no object is written any more.
_FULL_DISK = 0.95
_LEAST_FREE_BYTES = 10e9
# S3 refuses what was signed more than a quarter of an hour ago (RequestTimeTooSkewed).
_SIGNATURE_S = 900.0
_NOTICED_S = 1.0
_LOOPBACK = ("127.", "::1", "localhost")
# Half of what a gigabit Ethernet carries.
_SLOW_LINK_BYTES_PER_S = 0.06e9
_SLOW_STORAGE_BYTES_PER_S = 10e6


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """Pipelines run, and something will be slow, unsafe or not there."""
    ERROR = "error"
    """Some pipeline will fail."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    what: str
    node: str | None = None
    """None where it is about the cluster."""
    remedy: str | None = None
    """What to do, where something is wrong."""


@dataclass(frozen=True)
class StorageSpeed:
    """Of one node."""

    read_bytes_per_s: float
    write_bytes_per_s: float


@dataclass(frozen=True)
class MlflowSight:
    """What one node makes of MLFLOW_TRACKING_URI."""

    uri: str | None
    """Without secrets; None where the variable is not set."""
    problem: str | None = None
    """Why its server cannot be used, where there is one."""


Nodes = Mapping[str, NodeFacts]
_Problem = tuple[Level, str, str]


def of_nodes(nodes: Nodes, here: Mapping[str, str | None]) -> list[Finding]:
    """All that follows from the nodes' facts and the versions of the process that asks."""
    if not nodes:
        return []
    disk = [facts.disk_free_bytes for facts in nodes.values()]
    clocks = [abs(facts.clock.offset_s) for facts in nodes.values()]
    return [
        *_versions({HERE: here} | {name: facts.versions for name, facts in nodes.items()}),
        *_each("machines", nodes, _machine, _machines(nodes)),
        *_gpus(nodes),
        *_each("/dev/shm", nodes, _shared_memory, "large enough"),
        *_each("disk", nodes, _disk, f"{_gigabytes(min(disk))} GB free at the least"),
        *_each("clocks", nodes, _clock, f"within {max(clocks):.3f} s of this one"),
        *_each("ports", nodes, _ports, "each node reaches all others"),
        _token(nodes),
    ]


def silent(errors: Mapping[str, str]) -> list[Finding]:
    """Nodes that could not be asked."""
    remedy = (
        "see that the node is alive (ray list nodes), and that its Python has the same pretune, "
        "Ray and torch; its raylet's log tells more"
    )
    return [
        Finding("nodes", Level.ERROR, f"could not be asked: {error}", node, remedy)
        for node, error in errors.items()
    ]


def of_all_reduce(measured: AllReduce) -> Finding:
    """How fast the network is."""
    rate = measured.bus_bytes_per_s
    what = (
        f"{measured.backend} over {len(measured.places)} nodes: {rate / 1e9:.2f} GB/s on the bus, "
        f"{measured.size_bytes / 1e6:.0f} MB in {measured.seconds * 1e3:.0f} ms"
    )
    if rate < _SLOW_LINK_BYTES_PER_S:
        remedy = (
            "see which network it takes: NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME names the fast "
            "one, NCCL_DEBUG=INFO shows what NCCL chose"
        )
        return Finding("all-reduce", Level.WARNING, f"{what}: slow", remedy=remedy)
    return Finding("all-reduce", Level.OK, what)


def of_failed_all_reduce(errors: Mapping[str, str]) -> list[Finding]:
    """Why there is nothing to tell of the network, by node."""
    remedy = (
        "see that no other work holds the node (ray status); open all TCP ports between the "
        "nodes; of several networks, name one: NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME"
    )
    return [
        Finding("all-reduce", Level.ERROR, error, node, remedy) for node, error in errors.items()
    ]


def of_storage(root: str, blind: Mapping[str, str | None], way_out: str) -> list[Finding]:
    """Whether all nodes see it; `blind` is why one does not, by its name."""
    return [
        Finding("storage", Level.ERROR, f"{root} is not seen: {why}", node, way_out)
        for node, why in blind.items()
        if why is not None
    ] or [Finding("storage", Level.OK, f"{root} is seen by {_all(len(blind))}")]


def of_speeds(speeds: Mapping[str, StorageSpeed], errors: Mapping[str, str]) -> list[Finding]:
    """How fast each node reads and writes the storage, or why it cannot."""
    remedy = "let the user of the node's processes write there"
    found = [
        Finding("storage", Level.ERROR, f"cannot be used: {error}", node, remedy)
        for node, error in errors.items()
    ]
    for node, speed in speeds.items():
        slowest = min(speed.read_bytes_per_s, speed.write_bytes_per_s)
        if slowest < _SLOW_STORAGE_BYTES_PER_S:
            what = f"slow: {_rates([speed])}"
            way_out = "checkpoints are as slow; take another storage, or another mount of it"
            found.append(Finding("storage", Level.WARNING, what, node, way_out))
    if found or not speeds:
        return found
    return [Finding("storage", Level.OK, f"the slowest node: {_rates(speeds.values())}")]


def of_mlflow(here: MlflowSight, nodes: Mapping[str, MlflowSight]) -> list[Finding]:
    """Where steps will write their mirror, and whether they can."""
    remedy = (
        "start the server, or correct MLFLOW_TRACKING_URI; runs go on without it, and pretune "
        "models sync writes the mirror later"
    )
    found = [
        Finding("MLflow", Level.WARNING, f"{sight.uri}: {sight.problem}", node, remedy)
        for node, sight in nodes.items()
        if sight.problem
    ]
    others = {node: sight.uri for node, sight in nodes.items() if sight.uri != here.uri}
    for node, uri in others.items():
        what = f"MLFLOW_TRACKING_URI is {uri or 'not set'} there, and {here.uri or 'not set'} here"
        way_out = "set it alike wherever ray start is called: steps take that of their node"
        found.append(Finding("MLflow", Level.WARNING, what, node, way_out))
    if found:
        return found
    if here.uri is None:
        return [Finding("MLflow", Level.OK, "no server is set; the mirror is a local database")]
    return [Finding("MLflow", Level.OK, f"{here.uri} is what all nodes use")]


def _versions(by_node: Mapping[str, Mapping[str, str | None]]) -> list[Finding]:
    found = []
    for name in by_node[HERE]:
        holders: dict[str, list[str]] = defaultdict(list)
        for node, versions in by_node.items():
            holders[versions.get(name) or "none"].append(node)
        if len(holders) > 1:
            told = "; ".join(f"{version} on {', '.join(at)}" for version, at in holders.items())
            what = f"{name} differs: {told}"
        elif "none" in holders:
            what = f"{name} is not installed"
        else:
            continue
        remedy = "install the same everywhere: pip install -r requirements.lock, or one image"
        found.append(Finding("versions", Level.ERROR, what, remedy=remedy))
    if found:
        return found
    alike = ", ".join(f"{name} {version}" for name, version in by_node[HERE].items())
    return [Finding("versions", Level.OK, f"alike everywhere: {alike}")]


def _machines(nodes: Nodes) -> str:
    cpus = sum(facts.ray_cpus for facts in nodes.values())
    least = min(facts.memory_bytes for facts in nodes.values())
    return f"{_all(len(nodes))}, {cpus:g} CPUs, {_gigabytes(least)} GB of memory at the least"


def _machine(facts: NodeFacts) -> _Problem | None:
    if facts.ray_cpus <= facts.cpus:
        return None
    return (
        Level.WARNING,
        f"Ray counts {facts.ray_cpus:g} CPUs where there are {facts.cpus}",
        "start the node with ray start --num-cpus as many as there are",
    )


def _gpus(nodes: Nodes) -> list[Finding]:
    found = _each("GPUs", nodes, _gpu, "")
    drivers: dict[str, list[str]] = defaultdict(list)
    for name, facts in nodes.items():
        for driver in {gpu.driver for gpu in facts.gpus}:
            drivers[driver].append(name)
    if len(drivers) > 1:
        told = "; ".join(f"{driver} on {', '.join(at)}" for driver, at in drivers.items())
        remedy = "install the same driver on all nodes"
        found.append(Finding("GPUs", Level.WARNING, f"drivers differ: {told}", remedy=remedy))
    kinds = sorted({gpu.name for facts in nodes.values() for gpu in facts.gpus})
    number = sum(len(facts.gpus) for facts in nodes.values())
    what = f"{number}: {', '.join(kinds)}, driver {', '.join(drivers)}" if number else "none"
    return [problem for problem in found if problem.what] or [Finding("GPUs", Level.OK, what)]


def _gpu(facts: NodeFacts) -> _Problem | None:
    there, counted = len(facts.gpus), facts.ray_gpus
    if facts.gpu_problem:
        remedy = "mend the driver: nvidia-smi must list the GPUs on the node, in its container too"
        return Level.ERROR, f"nvidia-smi: {facts.gpu_problem}", remedy
    if counted > there:
        what = f"Ray counts {counted:g} GPUs, nvidia-smi {there}"
        return Level.ERROR, what, "start the node with ray start --num-gpus as many as there are"
    if there and (facts.versions.get("torch") or "").endswith("+cpu"):
        return Level.ERROR, "torch is built for CPUs alone", "install torch's CUDA build there"
    if counted < there:
        what = f"Ray uses {counted:g} of {there} GPUs"
        return Level.WARNING, what, "start the node with ray start --num-gpus as many as there are"
    return None


def _shared_memory(facts: NodeFacts) -> _Problem | None:
    size = facts.shared_memory_bytes
    if size is None or size >= _LEAST_SHARED_MEMORY_BYTES:
        return None
    return (
        Level.WARNING,
        f"{size / 2**20:.0f} MiB: Ray's objects go to the disk, NCCL may find no room",
        "give the container more: docker run --shm-size=8g; on Kubernetes an emptyDir in memory",
    )


def _disk(facts: NodeFacts) -> _Problem | None:
    place = f"{facts.temporary_folder}, Ray's temporary folder,"
    used, free = 1 - facts.disk_free_bytes / facts.disk_bytes, _gigabytes(facts.disk_free_bytes)
    remedy = "make room, or start the node with ray start --temp-dir on a larger disk"
    if used >= _FULL_DISK:
        what = f"{place} is {used:.0%} full ({free} GB free): Ray writes no objects there"
        return Level.ERROR, what, remedy
    if facts.disk_free_bytes < _LEAST_FREE_BYTES:
        return Level.WARNING, f"{place} has {free} GB free", remedy
    return None


def _clock(facts: NodeFacts) -> _Problem | None:
    offset, doubt = facts.clock.offset_s, facts.clock.uncertainty_s
    surely = abs(offset) - doubt
    if surely < _NOTICED_S:
        return None
    side = "ahead of" if offset > 0 else "behind"
    what = f"{abs(offset):.1f} s {side} this one (within {doubt:.3f} s)"
    remedy = "run a time service on every node (chrony, systemd-timesyncd)"
    if surely > _SIGNATURE_S:
        return Level.ERROR, f"{what}: S3 refuses its requests", remedy
    return Level.WARNING, f"{what}: times in journal and MLflow will mislead", remedy


def _ports(facts: NodeFacts) -> _Problem | None:
    if not facts.unreached:
        return None
    told = "; ".join(f"{place}: {cause}" for place, cause in facts.unreached.items())
    remedy = "open all TCP ports between the nodes: Ray, gloo and NCCL take free ones as they come"
    return Level.ERROR, f"does not reach {told}", remedy


def _token(nodes: Nodes) -> Finding:
    exposed = sorted(
        {
            facts.address
            for facts in nodes.values()
            if not facts.is_token_asked_for and not facts.address.startswith(_LOOPBACK)
        }
    )
    if not exposed:
        return Finding("token", Level.OK, "asked for, or the cluster is of this machine alone")
    return Finding(
        "token",
        Level.WARNING,
        f"none is asked for: whoever reaches {', '.join(exposed)} can run any code there",
        remedy="start every node with RAY_AUTH_MODE=token and one token (ray get-auth-token "
        "--generate), or let nobody but the nodes reach them",
    )


def _each(
    check: str, nodes: Nodes, judge: Callable[[NodeFacts], _Problem | None], fine: str
) -> list[Finding]:
    """The nodes with which something is wrong; one finding for all where nothing is."""
    problems = {name: problem for name, facts in nodes.items() if (problem := judge(facts))}
    return [
        Finding(check, level, what, name, remedy)
        for name, (level, what, remedy) in problems.items()
    ] or [Finding(check, Level.OK, fine)]


def _all(nodes: int) -> str:
    return "the node" if nodes == 1 else f"all {nodes} nodes"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f}"


def _rates(speeds: Iterable[StorageSpeed]) -> str:
    found: Sequence[StorageSpeed] = list(speeds)
    read = min(speed.read_bytes_per_s for speed in found)
    write = min(speed.write_bytes_per_s for speed in found)
    return f"reads {read / 1e6:,.0f} MB/s, writes {write / 1e6:,.0f} MB/s"
