"""Ray Train: N workers around one function."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray.train
from ray.exceptions import RayActorError, RayError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from cluster.config import GangConfig
from cluster.interface import Metrics, Reporter, TaskFailedError, WorkerLostError
from cluster.logs import redirected

# Ray Train raises these for a worker that is gone; their module is not public.
_LOST_WORKER_ERRORS = {"WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError"}
# What gloo and NCCL tell the survivors when a peer dies in the middle of a collective.
_LOST_PEER_SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "remote process exited",
)


@dataclass(frozen=True)
class RankReporter:
    """Hands rank 0's metrics on and forgets the others'.

    Not `ray.train.report`: it holds one result and is emptied every two seconds, so a training
    that reports more often would wait for it.
    """

    rank: int
    on_report: Callable[[Metrics], None]

    def report(self, metrics: Metrics) -> None:
        """Take one rank's metrics."""
        if self.rank == 0:
            self.on_report(metrics)


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


def run(
    function: Callable[[Reporter], None],
    gang: GangConfig,
    *,
    name: str,
    directory: str,
    log: Path,
    on_report: Callable[[Metrics], None],
) -> None:
    """Run `function` once on every rank of `gang`; one attempt, no retries.

    Raises:
        TaskFailedError: a rank raised.
        WorkerLostError: a process or node was lost.
    """
    resources = {"CPU": gang.cpus, "GPU": gang.gpus}
    trainer = TorchTrainer(
        _Rank(function, log, on_report),
        torch_config=TorchConfig(backend="nccl" if gang.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=gang.workers, use_gpu=bool(gang.gpus), resources_per_worker=resources
        ),
        run_config=RunConfig(name=name, storage_path=directory),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        raise _translated(error) from error
    except (TrainingFailedError, RayActorError) as error:
        raise WorkerLostError(f"{type(error).__name__}: {error}") from error


def _translated(error: WorkerGroupError) -> TaskFailedError | WorkerLostError:
    """The cause among the ranks' errors: when one dies, the others fail in its wake."""
    causes = error.worker_failures
    lost = [rank for rank, cause in causes.items() if _is_lost(cause)]
    if lost:
        return WorkerLostError(f"rank {lost[0]} of the gang was lost: {causes[lost[0]]}")
    return TaskFailedError.of(next(iter(causes.values())))


def _is_lost(cause: BaseException) -> bool:
    """Whether a rank's error says that a process died, its own or a peer's."""
    return (
        isinstance(cause, RayError)
        or type(cause).__name__ in _LOST_WORKER_ERRORS
        or any(sign in str(cause) for sign in _LOST_PEER_SIGNS)
    )
