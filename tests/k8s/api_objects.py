"""What an API server knows of kinds, selectors and refusals."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rendering import at
from schemas import Document, Fault


class RefusedError(Exception):
    """A request that is answered by a Status instead of an object."""

    def __init__(
        self, code: int, reason: str, message: str, causes: tuple[Fault, ...] = ()
    ) -> None:
        super().__init__(code, reason, message, causes)
        self.code, self.reason, self.message, self.causes = code, reason, message, causes

    @property
    def status(self) -> Document:
        """The body of the answer."""
        body: Document = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.causes:
            causes = [
                {"reason": "FieldValueInvalid", "message": one.message, "field": one.path}
                for one in self.causes
            ]
            body["details"] = {"causes": causes}
        return body


@dataclass(frozen=True)
class Resource:
    """One kind as the API serves it."""

    group: str
    version: str
    plural: str
    kind: str
    is_namespaced: bool = True
    has_status: bool = False
    """Whether `status` is written through a path of its own alone."""

    @property
    def api_version(self) -> str:
        """As objects have it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full_name(self) -> str:
        """As messages have it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


_KINDS = """
/v1 configmaps ConfigMap; /v1 secrets Secret; /v1 serviceaccounts ServiceAccount; /v1 pods Pod;
/v1 events Event; /v1 services Service; /v1 persistentvolumeclaims PersistentVolumeClaim;
/v1 namespaces Namespace cluster; apps/v1 deployments Deployment; apps/v1 statefulsets StatefulSet;
batch/v1 cronjobs CronJob; batch/v1 jobs Job; networking.k8s.io/v1 networkpolicies NetworkPolicy;
rbac.authorization.k8s.io/v1 roles Role; rbac.authorization.k8s.io/v1 rolebindings RoleBinding;
ray.io/v1 rayjobs RayJob status; ray.io/v1 rayclusters RayCluster status;
ray.io/v1 raycronjobs RayCronJob status; kueue.x-k8s.io/v1beta2 workloads Workload status;
kueue.x-k8s.io/v1beta2 localqueues LocalQueue status;
kueue.x-k8s.io/v1beta2 clusterqueues ClusterQueue cluster status;
kueue.x-k8s.io/v1beta2 resourceflavors ResourceFlavor cluster;
kueue.x-k8s.io/v1beta2 workloadpriorityclasses WorkloadPriorityClass cluster;
monitoring.coreos.com/v1 podmonitors PodMonitor;
monitoring.coreos.com/v1 prometheusrules PrometheusRule
"""


def _resource(line: str) -> Resource:
    api_version, plural, kind, *traits = line.split()
    group, _, version = api_version.rpartition("/")
    return Resource(
        group, version, plural, kind, "cluster" not in traits, has_status="status" in traits
    )


RESOURCES = tuple(_resource(line) for line in _KINDS.split(";"))


def resource_of(document: Mapping[str, Any]) -> Resource:
    """That of an object."""
    for one in RESOURCES:
        if (one.api_version, one.kind) == (document["apiVersion"], document["kind"]):
            return one
    raise RefusedError(404, "NotFound", f"there is no kind {document['kind']}")


_SET = re.compile(r"\s*([^\s,!=()]+)\s+(in|notin)\s+\(([^)]*)\)\s*")


def selects(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether labels fulfil a selector of any form that kubectl takes."""
    for term in re.split(r",(?![^(]*\))", selector):
        if not term.strip():
            continue
        if match := _SET.fullmatch(term):
            key, operator, listed = match.groups()
            values = {value.strip() for value in listed.split(",")}
            if (labels.get(key) in values) != (operator == "in"):
                return False
        elif "!=" in term:
            key, _, value = term.partition("!=")
            if labels.get(key.strip()) == value.strip():
                return False
        elif "=" in term:
            key, _, value = term.replace("==", "=").partition("=")
            if labels.get(key.strip()) != value.strip():
                return False
        elif term.strip().startswith("!") == (term.strip().lstrip("!") in labels):
            return False
    return True


def has_fields(selector: str, document: Document) -> bool:
    """Whether an object's fields have the values of a field selector."""
    terms = [term.partition("=") for term in selector.split(",") if term]
    return all(str(at(document, path, "")) == value.lstrip("=") for path, _, value in terms)


def merged(old: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396) applied; nothing is changed in place."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
