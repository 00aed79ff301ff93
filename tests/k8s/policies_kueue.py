"""What Kueue's webhooks refuse, and what makes its quotas mean something."""

from collections.abc import Iterator

from rendering import at
from world import RayObject, World

QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
_ELASTIC = "kueue.x-k8s.io/elastic-job"
_MOST_GROUPS = 17


def _queued(world: World) -> Iterator[RayObject]:
    return (ray for ray in world.ray_objects if QUEUE in ray.labels)


def queued_runs_give_back(world: World) -> Iterator[str]:
    """Quota comes back when the cluster is gone."""
    for ray in _queued(world):
        if ray.job and not ray.job.get("shutdownAfterJobFinishes"):
            yield f"{ray.title}: a queued run needs shutdownAfterJobFinishes"
        if ray.job.get("clusterSelector"):
            yield f"{ray.title}: a queued run has no clusterSelector"


def queued_groups_are_countable(world: World) -> Iterator[str]:
    """A workload has at most 18 sets of pods, of which one is the head."""
    for ray in _queued(world):
        if len(ray.groups) > _MOST_GROUPS:
            yield f"{ray.title}: a queued run has at most {_MOST_GROUPS} worker groups"
        if any(group.get("groupName") == "head" for group in ray.groups):
            yield f"{ray.title}: no worker group of a queued run may be called head"


def queued_autoscaling_is_elastic(world: World) -> Iterator[str]:
    """Else its webhook refuses the run."""
    for ray in _queued(world):
        annotations = at(ray.document, "metadata.annotations", {})
        if ray.is_autoscaled and annotations.get(_ELASTIC) != "true":
            yield f'{ray.title}: autoscaling in a queue needs the annotation {_ELASTIC}: "true"'


def queued_pods_are_counted(world: World) -> Iterator[str]:
    """A container without requests takes no quota."""
    for ray in _queued(world):
        for pod in ray.pods:
            for container in pod.containers:
                asked = at(container, "resources.requests", {})
                for name in ("cpu", "memory"):
                    if name not in asked:
                        yield f"{pod.owner} {container['name']}: a queued pod must request {name}"


def queues_reach_their_runs(world: World) -> Iterator[str]:
    """The RayJobs that a RayCronJob makes have none of its labels."""
    for ray in _queued(world):
        is_native = ray.document["kind"] == "RayCronJob" and not ray.document["spec"].get("suspend")
        if is_native:
            yield f"{ray.title}: an active RayCronJob hands no queue to its runs"


RULES = (
    queued_runs_give_back, queued_groups_are_countable, queued_autoscaling_is_elastic,
    queued_pods_are_counted, queues_reach_their_runs,
)  # fmt: skip
