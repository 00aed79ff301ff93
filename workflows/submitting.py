"""A pipeline sent to a cluster that is there, or to Kubernetes, which makes one for it."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from cluster import kube, rayjobs, tokens
from cluster.jobs import Job, Jobs, dashboard_url
from cluster.kube import Kube
from cluster.kubectl import Kubectl
from cluster.rayjobs import Changes
from cluster.remote import ContactError, RefusedError, RemoteRun
from workflows import known_clusters, submission
from workflows.history import new_run_id
from workflows.submission import Wanted, check_run_id

SCHEDULED_JOB = "PRETUNE_SCHEDULED_JOB"
"""Variable of a CronJob's pod: the name of its job, from which the run's name follows."""

_ATTEMPTS, _PAUSE_S = 5, 3.0


class Concurrency(StrEnum):
    """What becomes of a run while another one of its template goes on."""

    ALLOW = "allow"
    FORBID = "forbid"
    REPLACE = "replace"


@dataclass(frozen=True)
class Asked:
    """The options of `pretune submit`, as they were given."""

    pipeline: Path | None
    address: str | None
    overrides: Sequence[str] | None
    storage: str | None
    run_id: str | None
    working_dir: Path | None
    in_image: bool
    environment: Sequence[str] | None
    metadata: Sequence[str] | None
    driver_on: str | None
    token_file: Path | None
    kube: bool
    template: str | None
    file: Path | None
    namespace: str | None
    context: str | None
    image: str | None
    queue: str | None
    priority: str | None
    concurrency: Concurrency | None
    keep: int | None
    wait: bool
    pending_timeout: float
    dry_run: bool
    quiet: bool
    as_json: bool

    @property
    def variables(self) -> dict[str, str]:
        """`--env`, those without a value from here.

        Raises:
            RefusedError: there is none here.
        """
        found = {}
        for one in self.environment or ():
            name, separator, value = one.partition("=")
            if not separator and name not in os.environ:
                raise RefusedError(f"--env {name}: no such variable here; give {name}=VALUE")
            found[name] = value if separator else os.environ[name]
        return found

    @property
    def shown(self) -> dict[str, str]:
        """The same without values that were not written in the command: they may be secrets."""
        taken = {one for one in self.environment or () if "=" not in one}
        return self.variables | dict.fromkeys(taken, "<taken from here>")

    @property
    def pairs(self) -> dict[str, str]:
        """`--metadata`.

        Raises:
            RefusedError: one is no pair.
        """
        found = [one.partition("=") for one in self.metadata or ()]
        for name, separator, _ in found:
            if not separator or not name:
                raise RefusedError(f"--metadata {name}: expected KEY=VALUE")
        return {name: value for name, _, value in found}


@dataclass(frozen=True)
class Sent:
    """A run that was submitted, or attached to, or that only would be."""

    run_id: str
    pipeline: str
    address: str
    """By which its cluster is found again."""
    storage: str | None
    """None where it is not known here."""
    remote: RemoteRun | None = None
    is_new: bool = False
    plan: Mapping[str, Any] | None = None
    """What would be sent, where nothing was."""


class SkippedError(RuntimeError):
    """Another run of the template goes on, and this one is not to run beside it."""


def to_ray(asked: Asked, console: Console) -> Sent:
    """Submit a job to the cluster of `--address`.

    Raises:
        ConfigError, PackageError, RefusedError, TokenError: it cannot be; nothing was submitted.
        ContactError: the cluster does not answer; it may have been submitted.
    """
    _refuse("goes with --kube", asked, _OF_KUBE)
    if asked.pipeline is None or asked.address is None:
        raise RefusedError(
            "where to? Give PIPELINE.yaml and --address, the URL of a Ray dashboard; or --kube"
        )
    wanted = Wanted(
        asked.pipeline,
        overrides=asked.overrides or (),
        run_id=asked.run_id,
        working_dir=asked.working_dir,
        in_image=asked.in_image,
        environment=asked.variables,
        metadata=asked.pairs,
        # As little as can be asked for: the node is what is wanted.
        driver_resources={asked.driver_on: 0.001} if asked.driver_on else {},
        secrets=tokens.files(asked.token_file),
    )
    jobs = jobs_at(asked.address, asked.token_file)
    with TemporaryDirectory() as scratch:
        prepared = submission.prepare(wanted, asked.storage, Path(scratch))
        job = prepared.job
        if job.package is not None:
            files, size = len(job.package.files), job.package.size_bytes
            console.print(f"sending {files} files, {size:,} bytes", highlight=False)
        sent = Sent(job.submission_id, prepared.pipeline, jobs.url, prepared.storage)
        if asked.dry_run:
            return replace(sent, plan=replace(job, environment=asked.shown).as_request())
        there, here = jobs.ray_version(), version("ray")
        if there != here:
            console.print(f"the cluster runs Ray {there}; pretune is tested with {here}")
        is_new = _submitted(jobs, job)
    return replace(sent, remote=jobs.run(job.submission_id), is_new=is_new)


def to_kube(asked: Asked) -> Sent:
    """Create a RayJob.

    Raises:
        RefusedError: it cannot be; nothing was created.
        ContactError: the API server does not answer; it may have been created.
        SkippedError: another one goes on.
    """
    _refuse("does not go with --kube, whose template says it", asked, _OF_RAY)
    if (asked.template is None) == (asked.file is None):
        raise RefusedError("--kube: give --from raycronjob/NAME or --file FILE")
    source = kube.read(asked.file) if asked.file else None
    of_file = (source or {}).get("metadata", {}).get("namespace")
    there = Kube(Kubectl(asked.context, asked.namespace or of_file))
    source = source or there.template(str(asked.template))
    if asked.storage:
        submission.check_storage(asked.storage)
    name = rayjobs.name_of_template(source)
    run_id = asked.run_id or _run_id(name)
    check_run_id(run_id)
    changes = Changes(
        run_id,
        overrides=asked.overrides or (),
        storage=asked.storage,
        image=asked.image,
        queue=asked.queue,
        priority=asked.priority,
        environment=asked.variables,
        metadata=asked.pairs,
    )
    document = rayjobs.rayjob(source, changes)
    sent = Sent(run_id, name, there.address, asked.storage)
    if asked.dry_run:
        shown = replace(changes, environment=asked.shown)
        return replace(sent, plan=rayjobs.rayjob(source, shown))
    _make_room(there, name, document["metadata"]["name"], asked.concurrency)
    is_new = there.submit(document)
    if asked.keep is not None:
        own = document["metadata"]["name"]
        others = [one for one in there.made_of(name) if one["metadata"]["name"] != own]
        for old in rayjobs.outdated(others, asked.keep):
            there.delete(old)
    return replace(sent, remote=there.run(run_id), is_new=is_new)


def remote_at(address: str, run_id: str, token_file: Path | None) -> RemoteRun:
    """A submitted run, by the address it was submitted to.

    Raises:
        RefusedError: the address or the token cannot be used.
    """
    if kube.is_kube(address):
        return Kube.at(address).run(run_id)
    return jobs_at(address, token_file).run(run_id)


def states_at(address: str, token_file: Path | None) -> dict[str, str]:
    """The state of each run that a cluster knows of, by its name.

    Raises:
        RefusedError, ContactError: as `remote_at`, or nobody answers.
    """
    if kube.is_kube(address):
        return {
            one["metadata"]["annotations"][rayjobs.RUN]: str(rayjobs.status_of(one).state)
            for one in Kube.at(address).all()
        }
    return {
        job["submission_id"]: job["status"].lower() for job in jobs_at(address, token_file).all()
    }


def jobs_at(address: str, token_file: Path | None) -> Jobs:
    """The jobs of a Ray cluster, which from now on is a known one.

    Raises:
        RefusedError: the address or the token cannot be used.
    """
    try:
        url = dashboard_url(address)
        known_clusters.remember(url)
        return Jobs(url, tokens.find(token_file, urlsplit(url).hostname or ""))
    except ValueError as error:
        raise RefusedError(str(error)) from None


_OF_KUBE = {
    "--from": "template",
    "--file": "file",
    "--namespace": "namespace",
    "--context": "context",
    "--image": "image",
    "--queue": "queue",
    "--priority": "priority",
    "--concurrency": "concurrency",
    "--keep": "keep",
}
_OF_RAY = {
    "PIPELINE.yaml": "pipeline",
    "--address": "address",
    "--working-dir": "working_dir",
    "--in-image": "in_image",
    "--driver-on": "driver_on",
    "--token-file": "token_file",
}


def _refuse(why: str, asked: Asked, options: Mapping[str, str]) -> None:
    given = [
        option for option, name in options.items() if getattr(asked, name) not in (None, False)
    ]
    if given:
        raise RefusedError(f"{given[0]} {why}")


def _run_id(template: str) -> str:
    """Of a CronJob's tick the same at each attempt; else a new one."""
    job = os.environ.get(SCHEDULED_JOB)
    return rayjobs.scheduled(template, job) if job else new_run_id(template)


def _make_room(there: Kube, template: str, own: str, concurrency: Concurrency | None) -> None:
    if concurrency in (None, Concurrency.ALLOW):
        return
    others = [
        str(one["metadata"]["name"])
        for one in there.made_of(template)
        if not rayjobs.is_finished(one) and one["metadata"]["name"] != own
    ]
    if others and concurrency is Concurrency.FORBID:
        raise SkippedError(f"{others[0]} of {template} goes on; this run is skipped")
    for other in others:
        there.delete(other)


def _submitted(jobs: Jobs, job: Job) -> bool:
    """Submit; an answer that was lost is asked for again, which submits nothing twice."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return jobs.submit(job)
        except ContactError:
            time.sleep(_PAUSE_S)
    return jobs.submit(job)
