"""Does the plan fit the cluster, and how many trials at once. Pure arithmetic."""

from collections.abc import Mapping

from cluster.config import ClusterConfig, GangConfig, TrialConfig, WorkerConfig
from cluster.interface import Capacity, NodeCapacity

Bundle = dict[str, float]
"""Resources that one node is to have."""

_ROUNDING = 1e-9
_SCARCE = ("GPU", "CPU")


_LEAST_POLL_S, _POLLS_PER_S = 0.5, 1000
"""Ray Train's own two seconds would delay each restart by one on average; its controller, one
process, cannot ask many more workers than this."""


class CapacityError(ValueError):
    """The pipeline asks for more than the cluster can ever hold."""


def slots(capacity: Capacity, worker: WorkerConfig, workers: int = 1) -> int:
    """How many times the cluster holds so many of `worker` at once, each on one node."""
    return sum(_on(node, worker) for node in capacity.nodes) // workers


def poll_s(workers: int) -> float:
    """Seconds between two looks of a gang's controller at its workers."""
    return max(_LEAST_POLL_S, workers / _POLLS_PER_S)


def _on(node: NodeCapacity, worker: WorkerConfig) -> int:
    by_cpu = node.cpus // worker.cpus
    if not worker.gpus:
        return int(by_cpu)
    # A share of a GPU is a share of one: what two GPUs have left is no third share.
    each = worker.gpus
    by_gpu = node.gpus // each if each >= 1 else node.gpus * int(1 / each + _ROUNDING)
    return int(min(by_cpu, by_gpu))


def check(config: ClusterConfig, capacity: Capacity, own_steps: Mapping[str, WorkerConfig]) -> None:
    """Refuse what could only wait forever.

    Args:
        config: the gang and the trials.
        capacity: of the whole cluster.
        own_steps: what the user's own steps are given, by name.

    Raises:
        CapacityError: names the setting, what it asks for and what there is.
    """
    for name, worker, count in _wanted(config, own_steps):
        if not slots(capacity, worker, count):
            fits = slots(capacity, worker)
            lower = f"lower {name}.workers" if count > 1 and fits else "ask for less"
            raise CapacityError(
                f"{name} asks for {_describe(worker, count)}, but {_held(capacity)}; {lower}, run "
                "on a larger cluster, or wait for nodes that come: cluster.wait_for_nodes_s"
            )


def trials_at_once(capacity: Capacity, trial: TrialConfig, searches: int) -> int:
    """Trials of one search that run at once when `searches` searches share the cluster."""
    return max(1, slots(capacity, trial, trial.workers) // max(1, searches))


def largest(config: ClusterConfig, own_steps: Mapping[str, WorkerConfig]) -> list[Bundle]:
    """What an autoscaler is told to have nodes for all that is asked for, one after another."""
    asked = [bundles(worker, count) for _, worker, count in _wanted(config, own_steps)]
    return max(asked, key=lambda all_: [sum(one.get(key, 0) for one in all_) for key in _SCARCE])


def bundles(worker: WorkerConfig, workers: int) -> list[Bundle]:
    """Resources of so many workers, as an autoscaler is told of them."""
    gpus = {"GPU": worker.gpus} if worker.gpus else {}
    return [{"CPU": worker.cpus, **gpus}] * workers


def _wanted(
    config: ClusterConfig, own_steps: Mapping[str, WorkerConfig]
) -> list[tuple[str, WorkerConfig, int]]:
    """The settings, and the workers that each must have at once at the least."""
    return [
        ("cluster.pretrain", config.pretrain, config.pretrain.least_workers),
        ("cluster.trials", config.trials, config.trials.workers),
        *((f"steps.{name}.resources", worker, 1) for name, worker in own_steps.items()),
    ]


def _held(capacity: Capacity) -> str:
    held = f"the whole cluster has {capacity.cpus:g} CPUs and {capacity.gpus:g} GPUs"
    if len(capacity.nodes) < 2:
        return held
    largest = max(capacity.nodes, key=lambda node: (node.gpus, node.cpus))
    return (
        f"{held} on {len(capacity.nodes)} nodes, the largest with {largest.cpus:g} CPUs and "
        f"{largest.gpus:g} GPUs"
    )


def _describe(worker: WorkerConfig, count: int) -> str:
    gpus = f" and {worker.gpus:g} GPUs" if worker.gpus else ""
    each = f"{worker.cpus} CPUs{gpus}"
    is_gang = count > 1 or isinstance(worker, GangConfig)
    return f"{count} workers with {each} each" if is_gang else each
