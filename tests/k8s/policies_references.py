"""Names lead to objects: in the overlay, or among those that somebody else has made."""

from collections import defaultdict
from collections.abc import Iterator

from policies_kueue import PRIORITY, QUEUE
from rendering import at, title
from schemas import Document
from world import Pod, World


def volumes_and_variables_are_there(world: World) -> Iterator[str]:
    """ConfigMaps, Secrets, claims and accounts of pods."""
    known = {
        "ConfigMap": world.names("ConfigMap"),
        "Secret": world.names("Secret") | world.secrets,
        "PersistentVolumeClaim": world.names("PersistentVolumeClaim"),
        "ServiceAccount": world.names("ServiceAccount") | {"default"},
    }
    for pod in world.pods:
        for kind, name in dict.fromkeys(_referred(pod)):
            if name not in known[kind]:
                yield f"{pod.owner}: there is no {kind} {name}"


def _referred(pod: Pod) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", pod.spec.get("serviceAccountName", "default")
    for volume in pod.spec.get("volumes", []):
        yield from _named(volume, "configMap", "ConfigMap")
        yield from _named(volume, "persistentVolumeClaim", "PersistentVolumeClaim", "claimName")
        yield from _named(volume, "secret", "Secret", "secretName")
    for container in pod.containers:
        for source in container.get("envFrom", []):
            yield from _named(source, "configMapRef", "ConfigMap")
            yield from _named(source, "secretRef", "Secret")
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            yield from _named(source, "configMapKeyRef", "ConfigMap")
            yield from _named(source, "secretKeyRef", "Secret")


def _named(part: Document, key: str, kind: str, field: str = "name") -> Iterator[tuple[str, str]]:
    if key in part:
        yield kind, part[key][field]


def tokens_are_there(world: World) -> Iterator[str]:
    """Ray's own."""
    for ray in world.ray_objects:
        name = at(ray.cluster, "authOptions.secretName")
        if name and name not in world.secrets | world.names("Secret"):
            yield f"{ray.title}: there is no Secret {name}"


def claims_can_be_shared(world: World) -> Iterator[str]:
    """Groups are on many nodes; so is a group of many pods."""
    users: dict[str, set[str]] = defaultdict(set)
    for pod in world.pods:
        for volume in pod.spec.get("volumes", []):
            for _, name in _named(volume, "persistentVolumeClaim", "", "claimName"):
                users[name].add(pod.owner)
    for document in world.of_kind("PersistentVolumeClaim"):
        name, modes = document["metadata"]["name"], document["spec"].get("accessModes", [])
        if len(users[name]) > 1 and "ReadWriteMany" not in modes:
            yield f"{title(document)}: {len(users[name])} groups of pods mount it: ReadWriteMany"


def queues_lead_to_quota(world: World) -> Iterator[str]:
    """From the run's label over both queues to flavors."""
    for ray in world.ray_objects:
        for label, kind in ((QUEUE, "LocalQueue"), (PRIORITY, "WorkloadPriorityClass")):
            if label in ray.labels and ray.labels[label] not in world.names(kind):
                yield f"{ray.title}: there is no {kind} {ray.labels[label]}"
    for document in world.of_kind("LocalQueue"):
        name = document["spec"]["clusterQueue"]
        if name not in world.names("ClusterQueue"):
            yield f"{title(document)}: there is no ClusterQueue {name}"
    for document in world.of_kind("ClusterQueue"):
        for group in document["spec"].get("resourceGroups", []):
            for flavor in group["flavors"]:
                if flavor["name"] not in world.names("ResourceFlavor"):
                    yield f"{title(document)}: there is no ResourceFlavor {flavor['name']}"


def rights_are_given_to_somebody(world: World) -> Iterator[str]:
    """A binding names a role and accounts that are there."""
    for document in world.of_kind("RoleBinding"):
        role = document["roleRef"]["name"]
        if role not in world.names("Role"):
            yield f"{title(document)}: there is no Role {role}"
        for subject in document.get("subjects", []):
            if subject["name"] not in world.names("ServiceAccount"):
                yield f"{title(document)}: there is no ServiceAccount {subject['name']}"


def ports_have_their_names(world: World) -> Iterator[str]:
    """PodMonitors and Services find ports by the names that containers give them."""
    names = {
        port.get("name")
        for pod in world.pods
        for container in pod.containers
        for port in container.get("ports", [])
    }
    asked = [
        (title(document), one["port"])
        for document in world.of_kind("PodMonitor")
        for one in document["spec"]["podMetricsEndpoints"]
    ]
    asked += [
        (title(document), one["targetPort"])
        for document in world.of_kind("Service")
        for one in document["spec"]["ports"]
        if isinstance(one.get("targetPort"), str)
    ]
    for owner, name in asked:
        if name not in names:
            yield f"{owner}: no container has a port called {name}"


def selectors_find_pods(world: World) -> Iterator[str]:
    """Of Services and NetworkPolicies; the labels of Ray's pods are the operator's."""
    labels = [set(pod.metadata.get("labels", {}).items()) for pod in world.pods]
    for document in world.of_kind("Service", "NetworkPolicy"):
        spec = document["spec"]
        wanted = spec.get("selector") or at(spec, "podSelector.matchLabels", {})
        own = {one for one in wanted.items() if not one[0].startswith("ray.io/")}
        if not any(own <= one for one in labels):
            yield f"{title(document)}: it selects no pod"


RULES = (
    volumes_and_variables_are_there, tokens_are_there, claims_can_be_shared, queues_lead_to_quota,
    rights_are_given_to_somebody, ports_have_their_names, selectors_find_pods,
)  # fmt: skip
