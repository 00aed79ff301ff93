"""RayJobs of a Kubernetes namespace: created once, watched, pruned; KubeRay runs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from cluster import rayjobs
from cluster.kubectl import ExistsError, Kubectl, NotFoundError
from cluster.rayjobs import GROUP, KIND, RUN, SUBMITTER, TEMPLATE, TEMPLATES
from cluster.remote import ContactError, RefusedError, RemoteState, RemoteStatus

SCHEME = "kube"
_DELETED = RemoteStatus(RemoteState.STOPPED, "its RayJob was deleted")
_KUEUE = "kueue.x-k8s.io/v1beta2"


@dataclass(frozen=True)
class Kube:
    """One namespace; every call raises as those of `Kubectl`."""

    kubectl: Kubectl

    @classmethod
    def at(cls, address: str) -> "Kube":
        """Of `kube://NAMESPACE` or `kube://CONTEXT@NAMESPACE`."""
        context, _, namespace = address.removeprefix(f"{SCHEME}://").rpartition("@")
        return cls(Kubectl(context or None, namespace or None))

    @property
    def address(self) -> str:
        """By which it is found again, also when another context is the current one."""
        context = self.kubectl.current_context
        chosen = f"{context}@" if context else ""
        return f"{SCHEME}://{chosen}{self.kubectl.namespace}"

    def template(self, reference: str) -> Mapping[str, Any]:
        """A template of the namespace, named `raycronjob/NAME`.

        Raises:
            RefusedError: it is not there.
        """
        kind, _, name = reference.partition("/")
        if kind != "raycronjob" or not name:
            raise RefusedError(f"--from {reference}: expected raycronjob/NAME")
        try:
            found: Mapping[str, Any] = self.kubectl.get(self.kubectl.path(GROUP, TEMPLATES, name))
        except NotFoundError as error:
            raise RefusedError(f"--from {reference}: {error}") from None
        return {"kind": "RayCronJob", **found}

    def submit(self, document: Mapping[str, Any]) -> bool:
        """Create a RayJob, unless there is one of its name; whether it was created.

        Raises:
            RefusedError: what has the name is another run.
        """
        name = document["metadata"]["name"]
        try:
            self.kubectl.create(self.kubectl.path(GROUP, KIND), document)
        except NotFoundError as error:
            raise RefusedError(f"no RayJob can be created: {error}; is KubeRay there?") from None
        except ExistsError:
            found = self.get(name)
            if found is None:
                raise ContactError(f"RayJob {name} was there and is gone; try again") from None
            if found["metadata"].get("deletionTimestamp"):
                raise ContactError(f"RayJob {name} is being deleted; try again") from None
            if rayjobs.digest_of(found) != rayjobs.digest_of(document):
                raise RefusedError(
                    f"there is a RayJob {name} that was made of something else; give another "
                    "--run-id, or none"
                ) from None
            return False
        return True

    def made_of(self, template: str) -> list[Mapping[str, Any]]:
        """The RayJobs that were made of a template."""
        path = self.kubectl.path(GROUP, KIND)
        return list(self.kubectl.get(path, labelSelector=f"{TEMPLATE}={template}")["items"])

    def all(self) -> list[Mapping[str, Any]]:
        """The RayJobs that were submitted by us."""
        path = self.kubectl.path(GROUP, KIND)
        return list(self.kubectl.get(path, labelSelector=RUN)["items"])

    def delete(self, name: str) -> bool:
        """Delete a RayJob, with its Ray cluster; whether there was one."""
        try:
            self.kubectl.delete(self.kubectl.path(GROUP, KIND, name))
        except NotFoundError:
            return False
        return True

    def get(self, name: str) -> Mapping[str, Any] | None:
        """A RayJob; None where there is none of that name."""
        try:
            found: Mapping[str, Any] = self.kubectl.get(self.kubectl.path(GROUP, KIND, name))
        except NotFoundError:
            return None
        return found

    def run(self, run_id: str) -> "KubeRun":
        """One run, whether there is one or not."""
        return KubeRun(self, rayjobs.name_of(run_id))


@dataclass(frozen=True)
class KubeRun:
    """Implements `cluster.remote.RemoteRun`."""

    kube: Kube
    name: str
    """Of the RayJob."""
    forgotten: RemoteStatus | None = _DELETED

    def status(self) -> RemoteStatus | None:
        """As KubeRay tells it; of one that waits with the reasons that Kueue and pods give."""
        found = self.kube.get(self.name)
        if found is None:
            return None
        status = rayjobs.status_of(found)
        if status.state is not RemoteState.PENDING:
            return status
        return rayjobs.status_of(found, self._reasons(found))

    def log(self) -> str:
        """What the submitter's container printed, which is what the driver printed."""
        try:
            return self._log()
        except NotFoundError:  # the cluster is being taken away
            return ""

    def stop(self) -> None:
        """Delete it; its pods have their grace period."""
        if not self.kube.delete(self.name):
            raise RefusedError(f"there is no RayJob {self.name} in {self.kube.kubectl.namespace}")

    def _log(self) -> str:
        found = self.kube.get(self.name)
        if found is None:
            return ""
        kubectl = self.kube.kubectl
        cluster = (found.get("status") or {}).get("rayClusterName")
        # The submitter is in the head's pod, or, with KubeRay's K8sJobMode, in one of its own.
        for selector in (
            f"ray.io/cluster={cluster},ray.io/node-type=head",
            f"job-name={self.name}",
        ):
            for pod in self._pods(selector):
                names = [container["name"] for container in pod["spec"]["containers"]]
                if SUBMITTER in names:
                    path = kubectl.path("v1", "pods", f"{pod['metadata']['name']}/log")
                    return kubectl.text(path, container=SUBMITTER)
        return ""

    def _reasons(self, document: Mapping[str, Any]) -> list[str]:
        """Good to know; whoever may not ask for them, or has no Kueue, follows all the same."""
        try:
            return self._found_reasons(document)
        except (NotFoundError, ContactError, RefusedError):
            return []

    def _found_reasons(self, document: Mapping[str, Any]) -> list[str]:
        kubectl, metadata = self.kube.kubectl, document["metadata"]
        workloads = []
        if rayjobs.QUEUE in (metadata.get("labels") or {}):
            selector = f"kueue.x-k8s.io/job-uid={metadata['uid']}"
            path = kubectl.path(_KUEUE, "workloads")
            workloads = kubectl.get(path, labelSelector=selector)["items"]
        cluster = (document.get("status") or {}).get("rayClusterName")
        pods = self._pods(f"ray.io/cluster={cluster}") if cluster else []
        return list(rayjobs.reasons(workloads, pods))

    def _pods(self, selector: str) -> list[Mapping[str, Any]]:
        kubectl = self.kube.kubectl
        return list(kubectl.get(kubectl.path("v1", "pods"), labelSelector=selector)["items"])


def read(file: Path) -> Mapping[str, Any]:
    """The one RayJob or RayCronJob of a file.

    Raises:
        RefusedError: there is none, or more.
    """
    try:
        documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RefusedError(f"{file}: cannot be read: {error}") from error
    kinds = ("RayJob", "RayCronJob")
    found = [one for one in documents if isinstance(one, dict) and one.get("kind") in kinds]
    if len(found) != 1:
        raise RefusedError(f"{file}: expected one RayJob or RayCronJob (got {len(found)})")
    return dict(found[0])


def is_kube(address: str) -> bool:
    """Whether an address is one of Kubernetes."""
    return urlsplit(address).scheme == SCHEME
