"""What is wrong with a cluster: every node asked, each question for a limited time."""

import contextlib
import dataclasses
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import requests

from cluster import capacity, preflight
from cluster.capacity import CapacityError
from cluster.config import ClusterConfig, RetryConfig, WorkerConfig
from cluster.interface import Capacity, Outcome
from cluster.ray_cluster import RayCluster, check_reachable, connect
from trainers import collective
from trainers.collective import AllReduce
from workflows import diagnosis, visibility
from workflows.config import PipelineConfig
from workflows.diagnosis import Finding, Level, MlflowSight, StorageSpeed
from workflows.execution import without_secrets
from workflows.storage import Storage, StorageError

_TOTAL_S = 55.0
_LEAST_S = 10.0
_SURVEY_S, _STORAGE_S, _MLFLOW_S = 15.0, 8.0, 8.0
# The driver's own part of it comes on top.
_HERE_TOO_S = _STORAGE_S + 2.0
_HTTP_S = 4.0
_STORAGE_BYTES = 8 << 20
_ALL_REDUCE_BYTES = 64 << 20
_FOLDER = "doctor"


@dataclass(frozen=True)
class Wanted:
    """What is looked at."""

    address: str | None
    """Of the cluster; None for a local Ray of this machine."""
    storage: Storage | None
    pipeline: PipelineConfig | None


@dataclass
class Examination:
    """What was found, and what was measured on the way."""

    findings: list[Finding] = field(default_factory=list)
    nodes: dict[str, preflight.NodeFacts] = field(default_factory=dict)
    storage: dict[str, StorageSpeed] = field(default_factory=dict)
    all_reduce: AllReduce | None = None
    seconds: float = 0.0

    @property
    def has_errors(self) -> bool:
        """Whether some pipeline will fail."""
        return any(finding.level is Level.ERROR for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        reduced = self.all_reduce
        rate = {"bus_bytes_per_s": reduced.bus_bytes_per_s} if reduced else {}
        return {
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "nodes": {name: dataclasses.asdict(facts) for name, facts in self.nodes.items()},
            "storage": {name: dataclasses.asdict(speed) for name, speed in self.storage.items()},
            "all_reduce": dataclasses.asdict(reduced) | rate if reduced else None,
            "seconds": round(self.seconds, 1),
        }


def examine(wanted: Wanted, tell: Callable[[str], None]) -> Examination:
    """Ask everything, for a minute at most; `tell` hears what is asked now."""
    found, started = Examination(), time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            tell("connecting")
            cluster = stack.enter_context(_connected(wanted.address))
        except (OSError, RuntimeError) as error:
            what, _, remedy = str(error).partition("; ")
            remedy = remedy or "give the address of a live cluster's head: HOST:PORT of its GCS"
            found.findings.append(Finding("cluster", Level.ERROR, what, remedy=remedy))
        else:
            _examine(cluster, wanted, found, tell, until=started + _TOTAL_S)
    found.seconds = time.monotonic() - started
    return found


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[RayCluster]:
    if address and address != "auto":
        check_reachable(address)
        preflight.check_answers(address)
    # Who looks for trouble does not want it repaired.
    with connect(ClusterConfig(address=address, retry=RetryConfig(max_attempts=1))) as cluster:
        yield cluster


def _examine(
    cluster: RayCluster,
    wanted: Wanted,
    found: Examination,
    tell: Callable[[str], None],
    *,
    until: float,
) -> None:
    tell("asking the nodes")
    nodes, errors = _parted(preflight.survey(cluster, timeout_s=_SURVEY_S))
    found.nodes.update(nodes)
    found.findings += [
        *diagnosis.silent(errors),
        *diagnosis.of_nodes(nodes, preflight.versions()),
        *_dashboard(wanted.address),
        *_capacity(cluster, wanted.pipeline),
    ]
    if wanted.storage is not None:
        tell("reading and writing the storage")
        found.findings += _storage(cluster, wanted.storage, found.storage)
    tell("asking MLflow")
    sights, _ = _parted(cluster.on_every_node(mlflow_sight, timeout_s=_MLFLOW_S))
    found.findings += diagnosis.of_mlflow(mlflow_sight(), sights)
    tell("summing over the nodes")
    # Nobody waits long for nodes that were silent before.
    left_s = 0.0 if errors else until - time.monotonic()
    found.findings += _all_reduce(cluster, found, max(_LEAST_S, left_s))


def mlflow_sight() -> MlflowSight:
    """What this process makes of MLFLOW_TRACKING_URI."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return MlflowSight(None)
    shown = without_secrets(uri)
    if not uri.startswith("http"):
        return MlflowSight(shown)
    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=_HTTP_S)
    except requests.RequestException as error:
        # Its text repeats the URI.
        return MlflowSight(shown, f"does not answer ({type(error).__name__})")
    if answer.status_code >= requests.codes.server_error:
        return MlflowSight(shown, f"answers with HTTP {answer.status_code}")
    return MlflowSight(shown)


def _dashboard(address: str | None) -> list[Finding]:
    if address is None:
        return []  # a local Ray has none
    problem = preflight.dashboard()
    if problem is None:
        return [Finding("dashboard", Level.OK, "answers here: pretune submit works")]
    remedy = (
        "pretune submit needs it: start the head with --include-dashboard=true and "
        "--dashboard-host=0.0.0.0, and open its port, 8265 by default"
    )
    return [Finding("dashboard", Level.WARNING, problem, remedy=remedy)]


def _capacity(cluster: RayCluster, pipeline: PipelineConfig | None) -> list[Finding]:
    if pipeline is None:
        return []
    own = {name: step.resources for name, step in pipeline.steps.items()}
    try:
        capacity.check(pipeline.cluster, cluster.capacity(), own)
    except CapacityError as error:
        what, _, remedy = str(error).partition("; ")
        return [Finding("capacity", Level.ERROR, what, remedy=remedy)]
    return [Finding("capacity", Level.OK, f"{pipeline.name} fits the cluster")]


def _storage(cluster: RayCluster, where: Storage, speeds: dict[str, StorageSpeed]) -> list[Finding]:
    """Whether all nodes see it, and then how fast it is."""
    try:
        blind = _within(_HERE_TOO_S, partial(visibility.look, where, cluster, timeout_s=_STORAGE_S))
        found = diagnosis.of_storage(where.root, blind, visibility.way_out(where))
        if any(blind.values()):
            return found
        outcomes = _within(_HERE_TOO_S, partial(_speeds, cluster, where))
    except (TimeoutError, StorageError) as error:
        what = f"{where.root}: {str(error) or f'no answer here within {_HERE_TOO_S:g} s'}"
        remedy = "see that this machine has it mounted, its credentials, and its network"
        return [Finding("storage", Level.ERROR, what, remedy=remedy)]
    measured, errors = _parted(outcomes)
    speeds.update(measured)
    return [*found, *diagnosis.of_speeds(measured, errors)]


def _speeds(cluster: RayCluster, where: Storage) -> dict[str, Outcome]:
    """Nodes read what was written here, not what their own caches hold."""
    name = f"{_FOLDER}/{uuid.uuid4().hex}"
    where.create(name, os.urandom(_STORAGE_BYTES))
    try:
        return cluster.on_every_node(_speed, where, name, timeout_s=_STORAGE_S)
    finally:
        where.delete(name)


def _speed(where: Storage, name: str) -> StorageSpeed:
    started = time.perf_counter()
    content = where.read(name)
    read_s = time.perf_counter() - started
    own = f"{_FOLDER}/{uuid.uuid4().hex}"
    content = os.urandom(len(content))
    started = time.perf_counter()
    where.create(own, content)
    write_s = time.perf_counter() - started
    where.delete(own)
    return StorageSpeed(len(content) / read_s, len(content) / write_s)


def _all_reduce(cluster: RayCluster, found: Examination, timeout_s: float) -> list[Finding]:
    """One rank on each node that can hold one, on a GPU where nodes have some."""
    held = cluster.capacity().nodes
    has_gpus = any(node.gpus >= 1 for node in held)
    worker = WorkerConfig(gpus=1 if has_gpus else 0)
    if sum(capacity.slots(Capacity((node,)), worker) > 0 for node in held) < 2:
        return [Finding("all-reduce", Level.OK, "one node takes workers: there is no network")]
    measure = partial(collective.measure, _ALL_REDUCE_BYTES, is_on_gpu=has_gpus)
    outcomes = preflight.together(cluster, measure, worker, timeout_s=timeout_s)
    measured, errors = _parted(outcomes)
    if measured and not errors:
        found.all_reduce = next(iter(measured.values()))
        return [diagnosis.of_all_reduce(found.all_reduce)]
    return diagnosis.of_failed_all_reduce(errors)


def _parted(outcomes: Mapping[str, Outcome]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and errors, by node."""
    values = {node: outcome.value for node, outcome in outcomes.items() if outcome.error is None}
    return values, {node: str(outcome.error) for node, outcome in outcomes.items() if outcome.error}


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """What a function returns or raises.

    Raises:
        TimeoutError: it has not ended; a call to a file system that hangs can only be left behind.
    """
    ended: list[Outcome | BaseException] = []

    def run() -> None:
        try:
            ended.append(Outcome(value=function()))
        except BaseException as error:  # it is raised where it is waited for
            ended.append(error)

    thread = threading.Thread(target=run, name="doctor", daemon=True)
    thread.start()
    thread.join(max(0.0, seconds))
    if not ended:
        raise TimeoutError
    (end,) = ended
    if isinstance(end, BaseException):
        raise end
    return end.value
