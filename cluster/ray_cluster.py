"""The cluster protocol on Ray: connect, run functions, translate Ray's errors once."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import capacity, failures, orphans
from cluster.config import ClusterConfig, GangConfig, RetryConfig, WorkerConfig
from cluster.failures import GiveUp, Retry
from cluster.interface import (
    Capacity,
    Metrics,
    Outcome,
    Pending,
    Reporter,
    SearchPlan,
    TaskFailedError,
    Trial,
    TrialResult,
    UnreachableError,
    WorkerLostError,
)
from cluster.logs import redirected
from cluster.metrics import show

logger = logging.getLogger(__name__)

# Unix socket paths may have 107 characters; Ray adds about 70 to this folder.
_SHORT_TEMPORARY_FOLDER = "/tmp"
_FOLDER_PREFIX = "pretune-ray-"
_CONNECT_TIMEOUT_S = 10.0


class RayPending:
    """A Ray task under way."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def result(self) -> Outcome:
        """Wait for the end; Ray's own errors become `WorkerLostError`."""
        try:
            outcome: Outcome = ray.get(self.reference)
        except RayError as error:
            first_line = (str(error).strip().splitlines() or [""])[0]
            return Outcome(error=WorkerLostError(f"{type(error).__name__}: {first_line}"))
        return outcome


class RayCluster:
    """Implements `cluster.interface.Cluster`. Picklable: inside Ray it is used as it is."""

    def __init__(self, retry: RetryConfig) -> None:
        self._retry = retry

    def capacity(self) -> Capacity:
        """What each live node holds."""
        held = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return Capacity.of(*((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in held))

    def expect(self, bundles: Sequence[Mapping[str, float]]) -> None:
        """Ray's autoscaler keeps room for them until it is told of others; none has no effect."""
        request_resources(bundles=[dict(bundle) for bundle in bundles])

    def show(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Ray's metrics, on the node where this process is."""
        show(name, value, labels)

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        log: Path,
        worker: WorkerConfig | None = None,
    ) -> Pending:
        """Start `function(*args)` in a process of its own."""
        cpus, gpus = (worker.cpus, worker.gpus) if worker else (0, 0)
        run = _run.options(num_cpus=cpus, num_gpus=gpus, name=log.stem)
        return RayPending(run.remote(function, args, log))

    def on_every_node(
        self,
        function: Callable[..., Any],
        *args: Any,
        worker: WorkerConfig | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Outcome]:
        """One task pinned to each of these nodes."""
        cpus, gpus = (worker.cpus, worker.gpus) if worker else (0, 0)
        started = {}
        for node in live_nodes(worker):
            pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            run = _run_quietly.options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=pinned)
            started[name_of(node)] = RayPending(run.remote(function, args))
        if not started:
            return {}
        references = [pending.reference for pending in started.values()]
        _, silent = ray.wait(references, num_returns=len(references), timeout=timeout_s)
        lost = Outcome(error=WorkerLostError(f"no answer within {timeout_s or 0:.1f} s"))
        self.cancel([pending for pending in started.values() if pending.reference in silent])
        return {
            name: lost if pending.reference in silent else pending.result()
            for name, pending in started.items()
        }

    def wait(self, pending: Sequence[Pending], timeout_s: float) -> list[Pending]:
        """All that have ended, as soon as one has."""
        by_reference = {work.reference: work for work in pending if isinstance(work, RayPending)}
        references = list(by_reference)
        ready, _ = ray.wait(references, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return [by_reference[reference] for reference in ready]

    def cancel(self, pending: Sequence[Pending]) -> None:
        """Kill the processes at work and all they started."""
        references = [work.reference for work in pending if isinstance(work, RayPending)]
        # Ray ends the process that cancels a task whose result has just come.
        _, at_work = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        for reference in at_work:
            ray.cancel(reference, force=True, recursive=True)

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], worker: WorkerConfig, log: Path
    ) -> list[Any]:
        """One Ray task per item; a lost one is started again alone."""
        # By its name a worker is told apart from others, in the list of processes too.
        run = _run.options(num_cpus=worker.cpus, num_gpus=worker.gpus, name=log.stem)

        def start(index: int) -> RayPending:
            item_log = log.with_suffix(f".{index}.log")
            return RayPending(run.remote(function, (items[index],), item_log))

        pending = [start(index) for index in range(len(items))]
        values: list[Any] = []
        for index in range(len(items)):
            attempt = 1
            while (error := (outcome := pending[index].result()).error) is not None:
                self._pause_or_raise(error, attempt, pending)
                attempt += 1
                pending[index] = start(index)
            values.append(outcome.value)
        return values

    def map_on_gangs(
        self,
        function: Callable[[Any, int], Any],
        items: Sequence[Any],
        gang: GangConfig,
        *,
        directory: str,
        log: Path,
    ) -> list[Any]:
        """A gang per item; see `cluster.interface.Cluster.map_on_gangs`."""
        from cluster import gang_map  # imports torch, as above

        at_once = capacity.slots(self.capacity(), gang, gang.most_workers)
        return gang_map.run(
            function,
            items,
            gang,
            self._retry,
            at_once=max(1, at_once),
            directory=directory,
            log=log,
        )

    def run_gang(
        self,
        function: Callable[[Reporter], None],
        gang_config: GangConfig,
        *,
        name: str,
        directory: str,
        log: Path,
        on_report: Callable[[Metrics], None],
    ) -> None:
        """Ray Train around `function`; see `cluster.interface.Cluster.run_gang`."""
        from cluster import gang  # imports torch, which workers of a map have no use for

        gang.run(
            function,
            gang_config,
            self._retry,
            name=name,
            directory=directory,
            log=log,
            on_report=on_report,
        )

    def run_trials(
        self,
        trial: Callable[[Any], Trial],
        shared: Any,
        plan: SearchPlan,
        *,
        directory: str,
        log: Path,
        on_result: Callable[[str, Metrics], None],
    ) -> list[TrialResult]:
        """Ray Tune around `trial`; see `cluster.interface.Cluster.run_trials`."""
        from cluster import trials  # imports much, as above

        return trials.run(
            trial,
            shared,
            plan,
            max_failures=self._retry.max_attempts - 1,
            directory=directory,
            log=log,
            on_result=on_result,
        )

    def _pause_or_raise(
        self, error: WorkerLostError | TaskFailedError, attempt: int, others: Sequence[Pending]
    ) -> None:
        match failures.decide(error, attempt=attempt, retry=self._retry):
            case Retry(delay_s):
                logger.warning("attempt %d ended with %s; trying again", attempt, error)
                time.sleep(delay_s)
            case GiveUp():
                self.cancel(others)
                raise error


@contextlib.contextmanager
def connect(config: ClusterConfig) -> Iterator[RayCluster]:
    """A cluster for the length of the block: the one at `config.address`, or a local Ray.

    A Ray that somebody else started here is never joined unless its address is given: `local`
    makes Ray ignore RAY_ADDRESS and the address file of other sessions. The local Ray's processes
    and files are gone when the block ends.

    Raises:
        UnreachableError: nothing answers at `config.address`.
    """
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    temporary = None
    handler = signal.getsignal(signal.SIGTERM)
    # Ray announces here a change of what it does for tasks without GPUs; ours use none then.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if config.address:
        try:
            check_reachable(config.address)
        except UnreachableError as error:
            remedy = "start one there, or drop cluster.address to run on a local Ray"
            raise UnreachableError(f"{error}; {remedy}") from error
        ray.init(address=config.address, **quiet)
    else:
        _remove_folders_of_killed_drivers()
        prefix = f"{_FOLDER_PREFIX}{os.getpid()}-"
        temporary = tempfile.mkdtemp(prefix=prefix, dir=_SHORT_TEMPORARY_FOLDER)
        with _nobody_watches():
            ray.init(address="local", include_dashboard=False, _temp_dir=temporary, **quiet)
    try:
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own, which exits at once
        with orphans.swept():
            yield RayCluster(config.retry)
    finally:
        ray.shutdown()
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _nobody_watches() -> Iterator[None]:
    """Processes that begin now start none that would tell them when their node is to go.

    It would cost each gang seconds; the one node of a local Ray goes with the driver.
    """
    name = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    before = os.environ.get(name)
    os.environ.setdefault(name, "0")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def live_nodes(worker: WorkerConfig | None = None) -> list[dict[str, Any]]:
    """The nodes that could hold `worker` if nothing else did, as Ray lists them."""
    cpus, gpus = (worker.cpus, worker.gpus) if worker else (0, 0)
    return [
        node
        for node in ray.nodes()
        if node["Alive"]
        and node["Resources"].get("CPU", 0) >= cpus
        and node["Resources"].get("GPU", 0) >= gpus
    ]


def name_of(node: Mapping[str, Any]) -> str:
    """What a node is called, of those that `ray.nodes()` lists."""
    return f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"


def _remove_folders_of_killed_drivers() -> None:
    """A driver that was killed could not remove its Ray's files; the next one here does."""
    for folder in Path(_SHORT_TEMPORARY_FOLDER).glob(f"{_FOLDER_PREFIX}[0-9]*-*"):
        try:
            os.kill(int(folder.name.split("-")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (PermissionError, ValueError):
            continue  # somebody else's


def check_reachable(address: str) -> None:
    """Ray itself would try for minutes and then end the process."""
    host, separator, port = address.rpartition(":")
    if not separator:
        return  # `auto`: Ray looks the address up
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise UnreachableError(f"no Ray cluster answers at {address}: {error}") from error


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def _run(function: Callable[..., Any], args: tuple[Any, ...], log: Path) -> Outcome:
    with redirected(log):
        return _outcome(function, args)


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def _run_quietly(function: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
    return _outcome(function, args)


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
    try:
        return Outcome(value=function(*args))
    except (WorkerLostError, TaskFailedError) as error:
        traceback.print_exc()
        return Outcome(error=error)
    except Exception as error:
        traceback.print_exc()
        return Outcome(error=TaskFailedError.of(error))
