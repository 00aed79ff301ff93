"""Ray Train: N workers around one function."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray.train
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from cluster import failures
from cluster.capacity import poll_s
from cluster.config import GangConfig, RetryConfig
from cluster.failures import GiveUp, Retry
from cluster.interface import (
    Metrics,
    NodeLeavingError,
    Reporter,
    TaskFailedError,
    WorkerLostError,
)
from cluster.logs import redirected
from cluster.metrics import show

logger = logging.getLogger(__name__)

# Ray Train raises these for a worker that is gone; their module is not public.
_LOST_WORKER_ERRORS = {"WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError"}
# What gloo and NCCL tell the survivors when a peer dies in the middle of a collective.
_LOST_PEER_SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "remote process exited",
)
_LEAVING_ERROR = "LeavingError"

_POLL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
# Seconds until workers that are nowhere to be placed are counted anew: a node that died passes for
# alive for a while. It bounds the placement alone, not what the workers do when they start.
_ELASTIC_PLACEMENT = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
# A resize ends the workers unasked and costs a restart and the steps since the last checkpoint.
_RESIZE_EVERY_S = 300.0


@dataclass(frozen=True)
class RankReporter:
    """Hands rank 0's metrics on and forgets the others'.

    Not `ray.train.report`: it holds one result and is emptied every two seconds, so a training
    that reports more often would wait for it.
    """

    rank: int
    on_report: Callable[[Metrics], None]

    def report(self, metrics: Metrics) -> None:
        """Take one rank's metrics; rank 0's are Ray's metrics, too."""
        if self.rank == 0:
            for name, value in metrics.items():
                show(name, float(value), {})
            self.on_report(metrics)

    def is_leaving(self) -> bool:
        """Whether a node that holds a rank is being drained: see `Reporter.is_leaving`."""
        return ray.train.get_preemption_info() is not None


@dataclass(frozen=True)
class _Rank:
    """What Ray Train calls on each worker."""

    function: Callable[[Reporter], None]
    log: Path
    on_report: Callable[[Metrics], None]

    def __call__(self) -> None:
        rank = ray.train.get_context().get_world_rank()
        with redirected(self.log.with_suffix(f".rank{rank}.log")):
            self.function(RankReporter(rank, self.on_report))


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Starts two processes less for each gang, which would import for seconds and stay as long.

    No rank is given a Ray data set, and `cluster.orphans` gives reservations back.
    """

    def _create_default_callbacks(self) -> list[object]:
        not_needed = (DatasetsCallback, PlacementGroupCleanerCallback)
        made = super()._create_default_callbacks()
        return [callback for callback in made if not isinstance(callback, not_needed)]


class _Judge(UserCallback):  # type: ignore[misc]
    """Decides in Ray Train's controller whether a gang that ended badly is started again.

    Ray Train itself counts what the code raised and what the cluster broke alike. It is told to
    retry everything, and an error raised here ends it. So the controller, which also resizes the
    gang, outlives a lost worker.
    """

    def __init__(self, retry: RetryConfig | None, log: Path, start: int) -> None:
        """The first start is 1; those before this one count as attempts."""
        self._retry, self._log = retry, log
        self._attempts = start - 1

    def after_exception(
        self,
        run_context: object,
        worker_exceptions: Mapping[int, BaseException],
    ) -> None:
        """Go on silently for another attempt.

        Raises:
            TaskFailedError, WorkerLostError: there shall be none.
        """
        error = _translated(worker_exceptions)
        if self._retry is None:
            raise error
        if not isinstance(error, NodeLeavingError):
            self._attempts += 1
        match failures.decide(error, attempt=self._attempts, retry=self._retry):
            case Retry():
                with redirected(self._log):
                    logger.warning("the gang ended with %s; starting it again", error)
            case GiveUp():
                raise error


def run(
    function: Callable[[Reporter], None],
    gang: GangConfig,
    retry: RetryConfig | None,
    *,
    name: str,
    directory: str,
    log: Path,
    on_report: Callable[[Metrics], None],
) -> None:
    """Run `function` on every rank of `gang` until all have ended well.

    Without `retry` it is started once.

    Raises:
        TaskFailedError: a rank raised.
        WorkerLostError: processes or nodes were lost more often than `retry` allows.
    """
    os.environ.setdefault(_POLL, f"{poll_s(gang.most_workers):g}")
    if gang.least_workers < gang.most_workers:
        os.environ.setdefault(*_ELASTIC_PLACEMENT)
    start = 1
    while True:
        trainer = _Trainer(
            _Rank(function, log, on_report),
            torch_config=TorchConfig(backend="nccl" if gang.gpus else "gloo"),
            scaling_config=_scaling(gang),
            run_config=RunConfig(
                name=name,
                storage_path=directory,
                failure_config=FailureConfig(
                    max_failures=-1, max_preemption_failures=-1 if retry else 0
                ),
                callbacks=[_Judge(retry, log, start)],
            ),
        )
        try:
            trainer.fit()
        except (TrainingFailedError, RayActorError) as error:
            _pass_over_or_raise(error, start, retry)
        else:
            return
        start += 1


def _pass_over_or_raise(error: Exception, start: int, retry: RetryConfig | None) -> None:
    """Return if Ray Train's controller fell over a worker that died, which it does not retry.

    It sees to workers that die while they train. One that dies while the others are being started
    ends the controller itself.

    Raises:
        TaskFailedError, WorkerLostError: the gang is not started again.
    """
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    if isinstance(cause, TaskFailedError | WorkerLostError):
        raise cause from error
    lost = WorkerLostError(f"{type(cause).__name__}: {_first_line(cause)}")
    is_worker = cause is not error and isinstance(cause, RayActorError)
    if retry is None or not is_worker:
        raise lost from error
    match failures.decide(lost, attempt=start, retry=retry):
        case Retry():
            logger.warning("the gang could not be started: %s; starting it again", lost)
        case GiveUp():
            raise lost from error


def _scaling(gang: GangConfig) -> ScalingConfig:
    least, most = gang.least_workers, gang.most_workers
    return ScalingConfig(
        num_workers=most if least == most else (least, most),
        use_gpu=bool(gang.gpus),
        resources_per_worker={"CPU": gang.cpus, "GPU": gang.gpus},
        elastic_resize_monitor_interval_s=_RESIZE_EVERY_S,
    )


def _translated(causes: Mapping[int, BaseException]) -> TaskFailedError | WorkerLostError:
    """The cause among the ranks' errors: when one dies, the others fail in its wake."""
    leaving = [cause for cause in causes.values() if _is_leaving(cause)]
    if leaving:
        return NodeLeavingError(str(leaving[0]))
    for rank, cause in causes.items():
        if _is_dead(cause):
            return WorkerLostError(f"rank {rank} of the gang was lost: {_first_line(cause)}")
    for rank, cause in causes.items():
        if any(sign in str(cause) for sign in _LOST_PEER_SIGNS):
            return WorkerLostError(f"rank {rank} of the gang lost a peer: {_first_line(cause)}")
    return TaskFailedError.of(next(iter(causes.values())))


def _death(cause: BaseException) -> BaseException:
    """What Ray says of a worker that is gone, out of what Ray Train wraps it in."""
    found: BaseException = getattr(cause, "health_check_failure", cause)
    return found


def _is_leaving(cause: BaseException) -> bool:
    """Whether a rank ended because its node was announced to go, with or without saving."""
    died = _death(cause)
    was_preempted = isinstance(died, RayActorError) and died.preempted
    return was_preempted or type(cause).__name__ == _LEAVING_ERROR


def _is_dead(cause: BaseException) -> bool:
    """Whether a rank's error says that its process is gone."""
    return isinstance(cause, RayError) or type(cause).__name__ in _LOST_WORKER_ERRORS


def _first_line(cause: BaseException) -> str:
    return (str(_death(cause)).strip().splitlines() or [""])[0]
