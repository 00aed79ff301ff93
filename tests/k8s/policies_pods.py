"""What every pod owes: a fixed image, honest resources, few rights, a closed network."""

from collections.abc import Iterator

from rendering import at, title
from schemas import Document
from world import Pod, World

_MAY_BE_ADDED = {"restricted": {"NET_BIND_SERVICE"}, "baseline": {"NET_BIND_SERVICE"}}
_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
_DNS = 53


def images_are_fixed(world: World) -> Iterator[str]:
    """The same name is the same image tomorrow."""
    for pod in world.pods:
        for container in pod.containers:
            name, _, digest = container["image"].partition("@")
            tag = name.rpartition("/")[2].partition(":")[2]
            if not digest and tag in {"", "latest"}:
                yield f"{pod.owner}: the image {name} has no fixed tag"


def memory_and_devices_are_promised(world: World) -> Iterator[str]:
    """A pod that may use more than was set aside is ended when others want theirs."""
    for pod in world.pods:
        for container in pod.containers:
            asked = at(container, "resources.requests", {})
            limits = at(container, "resources.limits", {})
            if "memory" not in limits:
                yield f"{pod.owner} {container['name']}: there is no memory limit"
            for name in sorted((set(asked) | set(limits)) - {"cpu", "ephemeral-storage"}):
                if asked.get(name) != limits.get(name):
                    yield f"{pod.owner} {container['name']}: requests and limits of {name} differ"


def pods_are_restricted(world: World) -> Iterator[str]:
    """Pod Security `restricted`, which ours meet even where less is enforced."""
    for pod in world.pods:
        yield from _of_pod(pod)
        for container in pod.containers:
            owner = f"{pod.owner} {container['name']}"
            yield from _of_container(owner, container.get("securityContext", {}), world.level)


def _of_pod(pod: Pod) -> Iterator[str]:
    context = pod.spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 1) == 0:
        yield f"{pod.owner}: runAsNonRoot must be true"
    if at(context, "seccompProfile.type") not in {"RuntimeDefault", "Localhost"}:
        yield f"{pod.owner}: seccompProfile must be RuntimeDefault"
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(name):
            yield f"{pod.owner}: {name} is not restricted"
    for volume in pod.spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= _VOLUMES:
            yield f"{pod.owner}: a volume of {', '.join(sorted(kinds))} is not restricted"


def _of_container(owner: str, context: Document, level: str) -> Iterator[str]:
    capabilities = context.get("capabilities", {})
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{owner}: allowPrivilegeEscalation must be false"
    if capabilities.get("drop") != ["ALL"]:
        yield f"{owner}: all capabilities must be dropped"
    if context.get("privileged"):
        yield f"{owner}: it is privileged"
    added = set(capabilities.get("add", []))
    if level in _MAY_BE_ADDED and not added <= _MAY_BE_ADDED[level]:
        yield f"{owner}: a namespace that enforces {level} refuses {', '.join(sorted(added))}"


def tokens_are_mounted_on_purpose(world: World) -> Iterator[str]:
    """Who does not ask the API server holds no key to it."""
    for pod in world.pods:
        account = pod.spec.get("serviceAccountName")
        if pod.spec.get("automountServiceAccountToken", True) and account in {None, "ray"}:
            yield f"{pod.owner}: automountServiceAccountToken must be false"


def names_can_be_looked_up(world: World) -> Iterator[str]:
    """A policy about what goes out closes DNS, too."""
    for document in world.of_kind("NetworkPolicy"):
        if "Egress" not in document["spec"].get("policyTypes", []):
            continue
        rules = document["spec"].get("egress", [])
        ports = {port.get("port") for rule in rules for port in rule.get("ports", [])}
        if _DNS not in ports:
            yield f"{title(document)}: no DNS query may go out"


RULES = (
    images_are_fixed, memory_and_devices_are_promised, pods_are_restricted,
    tokens_are_mounted_on_purpose, names_can_be_looked_up,
)  # fmt: skip
