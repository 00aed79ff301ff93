"""Does the plan fit the cluster, and how many trials at once. Pure arithmetic."""

from collections.abc import Mapping

from cluster.config import ClusterConfig, GangConfig, TrialConfig, WorkerConfig
from cluster.interface import Capacity


class CapacityError(ValueError):
    """The pipeline asks for more than the cluster can ever hold."""


def slots(capacity: Capacity, worker: WorkerConfig, workers: int = 1) -> int:
    """How many times the whole cluster holds so many of `worker` at once."""
    by_cpu = capacity.cpus // worker.cpus
    by_gpu = capacity.gpus // worker.gpus if worker.gpus else by_cpu
    return int(min(by_cpu, by_gpu)) // workers


def check(config: ClusterConfig, capacity: Capacity, own_steps: Mapping[str, WorkerConfig]) -> None:
    """Refuse what could only wait forever.

    Args:
        config: the gang and the trials.
        capacity: of the whole cluster.
        own_steps: what the user's own steps are given, by name.

    Raises:
        CapacityError: names the setting, what it asks for and what there is.
    """
    wanted: list[tuple[str, WorkerConfig, int]] = [
        ("cluster.pretrain", config.pretrain, config.pretrain.least_workers),
        ("cluster.trials", config.trials, config.trials.workers),
        *((f"steps.{name}.resources", worker, 1) for name, worker in own_steps.items()),
    ]
    for name, worker, count in wanted:
        if not slots(capacity, worker, count):
            raise CapacityError(
                f"{name} asks for {_describe(worker, count)}, but the whole cluster has "
                f"{capacity.cpus:g} CPUs and {capacity.gpus:g} GPUs; "
                f"{'lower ' + name + '.workers' if count > 1 else 'ask for less'} "
                "or run on a larger cluster"
            )


def trials_at_once(capacity: Capacity, trial: TrialConfig, searches: int) -> int:
    """Trials of one search that run at once when `searches` searches share the cluster."""
    return max(1, slots(capacity, trial, trial.workers) // max(1, searches))


def _describe(worker: WorkerConfig, count: int) -> str:
    gpus = f" and {worker.gpus:g} GPUs" if worker.gpus else ""
    each = f"{worker.cpus} CPUs{gpus}"
    is_gang = count > 1 or isinstance(worker, GangConfig)
    return f"{count} workers with {each} each" if is_gang else each
