"""KubeRay's RayJob: made of a template, and what its state and that of its pods mean. Pure."""

import copy
import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import yaml

from cluster.remote import RefusedError, RemoteState, RemoteStatus

GROUP, KIND, TEMPLATES = "ray.io/v1", "rayjobs", "raycronjobs"
RUN, TEMPLATE = "pretune.io/run", "pretune.io/template"
"""Labels: the run of a RayJob, and the template it was made of."""
DIGEST = "pretune.io/digest"
"""Annotation: of the document as it was submitted."""
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
SUBMITTER = "ray-job-submitter"
"""The container that prints what the driver prints, with KubeRay's SidecarMode."""

_LONGEST_NAME = 47
"""KubeRay appends to it what makes the names of its services."""
_COPIED = ("kueue.x-k8s.io/", "volcano.sh/", "yunikorn.apache.org/", "kai.scheduler/", "ray.io/")
_ALSO_COPIED = ("app.kubernetes.io/", "pretune.io/")
_EXPANDED = set("$`\\")
_PLAIN = re.compile(r"[A-Za-z0-9._=:/,@%+ -]*")
_COMMAND = "pretune run "
_EARLIEST = 25_000_000
"""Minutes; a number at the end of another name is smaller."""
_RUN_ID, _STORAGE = "PRETUNE_RUN_ID", "PRETUNE_STORAGE"

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Changes:
    """What a submission changes in a template."""

    run_id: str
    overrides: Sequence[str] = ()
    storage: str | None = None
    image: str | None = None
    queue: str | None = None
    priority: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def name_of(run_id: str) -> str:
    """A RayJob's name: letters, digits and dashes; where it had to be cut, with a digest."""
    name = re.sub(r"[^a-z0-9-]", "-", run_id)
    if not name[0].isalpha():
        name = f"r-{name}"
    if name == run_id and len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9].rstrip('-')}-{digest}"


def name_of_template(template: Document) -> str:
    """By which runs are told whose they are; of a document that asks for a name, its beginning."""
    metadata = template.get("metadata") or {}
    name = metadata.get("name") or str(metadata.get("generateName", "")).rstrip("-")
    if not name:
        raise RefusedError("the template has no metadata.name")
    return str(name)


def scheduled(template: str, job: str) -> str:
    """The run id of a CronJob's tick: Kubernetes names its jobs `<cronjob>-<minutes since 1970>`.

    A job that somebody made by hand of a CronJob gives the run its own name.
    """
    minutes = job.rpartition("-")[2]
    if not minutes.isdecimal() or int(minutes) < _EARLIEST:
        return job
    tick = datetime.fromtimestamp(60 * int(minutes), UTC)
    return f"{template}-{tick.strftime('%Y%m%d-%H%M%S')}-cron"


def rayjob(template: Document, changes: Changes) -> dict[str, Any]:
    """A RayJob of a suspended RayCronJob or of another RayJob.

    Labels and annotations of queues and schedulers are copied: KubeRay's own cron does not.

    Raises:
        RefusedError: it is neither, or what it says cannot be added to.
    """
    match template.get("kind"):
        case "RayCronJob":
            spec = copy.deepcopy(template["spec"]["jobTemplate"])
        case "RayJob":
            spec = copy.deepcopy(template["spec"])
        case kind:
            raise RefusedError(f"expected a RayCronJob or a RayJob as template (got {kind})")
    spec.pop("suspend", None)
    spec["entrypoint"] = _with_overrides(spec.get("entrypoint", ""), changes.overrides)
    _check_values(changes)
    own = {_RUN_ID: changes.run_id} | ({_STORAGE: changes.storage} if changes.storage else {})
    spec["runtimeEnvYAML"] = _with_variables(
        spec.get("runtimeEnvYAML") or "", {**changes.environment, **own}
    )
    spec["metadata"] = {**(spec.get("metadata") or {}), **changes.metadata}
    if changes.image:
        for container in _containers(spec):
            container["image"] = changes.image
    of_template = template["metadata"]
    source = name_of_template(template)
    labels = _copied(of_template.get("labels") or {})
    labels |= {TEMPLATE: source, RUN: name_of(changes.run_id)}
    labels |= {QUEUE: changes.queue} if changes.queue else {}
    labels |= {PRIORITY: changes.priority} if changes.priority else {}
    annotations = {**_copied(of_template.get("annotations") or {}), RUN: changes.run_id}
    told = json.dumps([labels, annotations, spec], sort_keys=True, default=str)
    annotations[DIGEST] = hashlib.sha256(told.encode()).hexdigest()[:16]
    return {
        "apiVersion": GROUP,
        "kind": "RayJob",
        "metadata": {
            "name": name_of(changes.run_id),
            "labels": labels,
            "annotations": annotations,
        },
        "spec": spec,
    }


def digest_of(document: Document) -> str:
    """Of what a RayJob was made of, however the API server has completed it since."""
    annotations = document["metadata"].get("annotations") or {}
    return str(annotations.get(DIGEST, ""))


def status_of(document: Document, reasons: Sequence[str] = ()) -> RemoteStatus:
    """What a RayJob's status means; `reasons` are why it does not run yet.

    `Complete` is also said of a job that was stopped, and `ValidationFailed` never ends by itself.
    """
    status = document.get("status") or {}
    deployment, job = status.get("jobDeploymentStatus") or "", status.get("jobStatus") or ""
    message = status.get("message") or status.get("reason") or ""
    match deployment:
        case "Complete" if job == "SUCCEEDED":
            return RemoteStatus(RemoteState.SUCCEEDED, message)
        case "Complete" if job == "STOPPED":
            return RemoteStatus(RemoteState.STOPPED, message)
        case "Complete" | "Failed" | "ValidationFailed":
            reason = status.get("reason") or deployment
            told = f"{reason}: {message}" if message and message != reason else reason
            return RemoteStatus(RemoteState.FAILED, told, _exit_code(message))
        case "Running":
            return RemoteStatus(RemoteState.RUNNING, message)
    why = [*([message] if message else []), *reasons]
    return RemoteStatus(RemoteState.PENDING, "; ".join(why) or deployment or "not seen by KubeRay")


def reasons(workloads: Sequence[Document], pods: Sequence[Document]) -> Iterator[str]:
    """Why a RayJob does not run yet: Kueue's words, and those of pods that wait."""
    for workload in workloads:
        for condition in (workload.get("status") or {}).get("conditions") or ():
            if condition["type"] in ("QuotaReserved", "Admitted") and condition["status"] != "True":
                yield f"Kueue: {condition['message']}"
                break
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status") or {}
        for condition in status.get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                yield f"pod {name}: {condition.get('message') or condition.get('reason')}"
        for container in status.get("containerStatuses") or ():
            waiting = (container.get("state") or {}).get("waiting")
            if waiting and waiting.get("reason") not in (None, "ContainerCreating"):
                told = waiting.get("message") or ""
                yield f"pod {name}: {waiting['reason']}{told and f': {told}'}"


def is_finished(document: Document) -> bool:
    """Whether a RayJob will not run any more."""
    return status_of(document).is_ended


def outdated(documents: Sequence[Document], keep: int) -> list[str]:
    """Names of finished RayJobs beyond the `keep` newest."""
    finished = sorted(
        (one for one in documents if is_finished(one)),
        key=lambda one: str(one["metadata"].get("creationTimestamp", "")),
    )
    return [str(one["metadata"]["name"]) for one in finished[: max(0, len(finished) - keep)]]


def _check_values(changes: Changes) -> None:
    """KubeRay's submitter hands them to a shell, and what that leaves to a second one."""
    quoted = {f"--env {name}": value for name, value in changes.environment.items()}
    quoted |= {f"--metadata {name}": value for name, value in changes.metadata.items()}
    for option, value in (quoted | {"--storage": changes.storage or ""}).items():
        if set(value) & _EXPANDED:
            raise RefusedError(
                f"{option}: a shell would expand a $, ` or \\ in the value; put it into the "
                "template, or into a Secret that it names"
            )
    for override in changes.overrides:
        if not _PLAIN.fullmatch(override):
            raise RefusedError(
                f"--set {override}: shells would change this value; put it into the pipeline file"
            )


def _with_overrides(entrypoint: str, overrides: Sequence[str]) -> str:
    """A command with more options; behind one of a shell they would have no effect."""
    if overrides and not entrypoint.startswith(_COMMAND):
        raise RefusedError(
            f"--set needs a template whose entrypoint begins with {_COMMAND!r} (got {entrypoint!r})"
        )
    return " ".join([entrypoint, *(shlex.quote(f"--set={one}") for one in overrides)])


def _with_variables(text: str, variables: Mapping[str, str]) -> str:
    """A runtime environment with more variables."""
    runtime = yaml.safe_load(text) or {}
    if not isinstance(runtime, dict):
        raise RefusedError("the template's runtimeEnvYAML is no mapping")
    merged = {**runtime, "env_vars": {**(runtime.get("env_vars") or {}), **variables}}
    return yaml.safe_dump(merged, sort_keys=False)


def _containers(spec: Document) -> Iterator[dict[str, Any]]:
    """Those that run Ray, the first of each pod."""
    cluster = spec["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *(cluster.get("workerGroupSpecs") or ())):
        yield group["template"]["spec"]["containers"][0]


def _copied(labels: Mapping[str, str]) -> dict[str, str]:
    kept = (*_COPIED, *_ALSO_COPIED)
    return {key: value for key, value in labels.items() if key.startswith(kept)}


def _exit_code(message: str) -> int | None:
    """Ray tells it in words."""
    found = re.search(r"failed with exit code (\d+)", message)
    return int(found[1]) if found else None
