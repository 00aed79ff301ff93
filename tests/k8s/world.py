"""What a policy looks at: documents that are applied together, and the pods they lead to."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rendering import ROOT, at, title
from schemas import Document

OUR_SECRETS = frozenset({"pretune-storage", "ray-auth-token", "mlflow-db"})
"""Made by hand, as k8s/README.md says: no secret is in the repository."""


def locked(package: str) -> str:
    """The version of a package in requirements.lock."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = re.search(rf"^{package}==(\S+)$", text, re.M)
    assert found, package
    return found.group(1)


@dataclass(frozen=True)
class Pod:
    """A pod template, and who makes pods of it."""

    owner: str
    """Kind, name and group: what findings begin with."""
    metadata: Document
    spec: Document
    is_ray: bool = False
    """Whether Ray's version and ours must be that of the lock."""

    @property
    def containers(self) -> list[Document]:
        """All of them."""
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]


@dataclass(frozen=True)
class RayObject:
    """A RayCronJob, RayJob or RayCluster by its parts."""

    title: str
    document: Document
    job: Document = field(repr=False)
    """The RayJob's spec; empty for a RayCluster."""
    cluster: Document = field(repr=False)
    """The RayCluster's spec."""

    @property
    def groups(self) -> list[Document]:
        """Of workers."""
        return list(self.cluster.get("workerGroupSpecs", []))

    @property
    def is_autoscaled(self) -> bool:
        """Whether Ray asks for pods."""
        return bool(self.cluster.get("enableInTreeAutoscaling"))

    @property
    def labels(self) -> Document:
        """Its own."""
        return dict(at(self.document, "metadata.labels", {}))

    @property
    def pods(self) -> Iterator[Pod]:
        """Head, workers, and the submitter where it is described; none of another's cluster."""
        if not self.cluster:
            return
        templates = [("head", at(self.cluster, "headGroupSpec.template", {}))]
        templates += [(one.get("groupName", "?"), one["template"]) for one in self.groups]
        if "submitterPodTemplate" in self.job:
            templates.append(("submitter", self.job["submitterPodTemplate"]))
        for name, template in templates:
            yield _pod(f"{self.title} {name}", template, is_ray=True)


@dataclass(frozen=True)
class World:
    """Documents of one overlay, and what others have made before."""

    documents: tuple[Document, ...]
    elsewhere: tuple[Document, ...] = ()
    """Of the cluster's administrator."""
    secrets: frozenset[str] = OUR_SECRETS

    def of_kind(self, *kinds: str) -> Iterator[Document]:
        """Documents of some kinds."""
        return (document for document in self.documents if document["kind"] in kinds)

    def names(self, *kinds: str) -> set[str]:
        """Of the objects of some kinds, those from elsewhere, too."""
        everything = (*self.documents, *self.elsewhere)
        return {one["metadata"]["name"] for one in everything if one["kind"] in kinds}

    @property
    def ray_objects(self) -> Iterator[RayObject]:
        """All that become Ray clusters."""
        jobs = {"RayCronJob": "spec.jobTemplate", "RayJob": "spec"}
        for document in self.of_kind("RayCronJob", "RayJob", "RayCluster"):
            job = at(document, jobs.get(document["kind"], ""), {})
            cluster = job.get("rayClusterSpec", {}) if job else document["spec"]
            yield RayObject(title(document), document, job, cluster)

    @property
    def pods(self) -> Iterator[Pod]:
        """All pods that will be, one for each template."""
        for ray in self.ray_objects:
            yield from ray.pods
        for document in self.of_kind("Deployment", "StatefulSet", "Job"):
            yield _pod(title(document), document["spec"]["template"])
        for document in self.of_kind("CronJob"):
            yield _pod(title(document), document["spec"]["jobTemplate"]["spec"]["template"])

    @property
    def level(self) -> str:
        """Of Pod Security, which the namespace enforces."""
        key = "pod-security.kubernetes.io/enforce"
        for document in self.of_kind("Namespace"):
            return str(at(document, "metadata.labels", {}).get(key, "privileged"))
        return "privileged"


Rule = Callable[[World], Iterator[str]]
"""From documents to findings, each a sentence that begins with whom it is about."""


def _pod(owner: str, template: Document, *, is_ray: bool = False) -> Pod:
    return Pod(owner, template.get("metadata") or {}, template.get("spec") or {}, is_ray)


def environment(container: Document) -> dict[str, Any]:
    """Variables that are written out, by name."""
    return {one["name"]: one.get("value") for one in container.get("env", [])}
