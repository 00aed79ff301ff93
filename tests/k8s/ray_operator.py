"""What KubeRay's operator would do to RayJobs, as a script: for tests of who waits for them."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from api_objects import RESOURCES, RefusedError
from api_store import Change, Key, Store, Wanted
from schemas import Document

_BY_KIND = {one.kind: one for one in RESOURCES}
_PAUSE_S = 0.02


class Stage(NamedTuple):
    """A status, and what the head's pod prints when it is reached."""

    deployment: str
    """jobDeploymentStatus."""
    job: str = ""
    """jobStatus."""
    message: str = ""
    reason: str = ""
    prints: str = ""

    @property
    def status(self) -> Document:
        """Of the RayJob."""
        named = {
            "jobDeploymentStatus": self.deployment,
            "jobStatus": self.job,
            "message": self.message,
            "reason": self.reason,
        }
        return {name: value for name, value in named.items() if value}


_BEGINNING = (Stage("Initializing"), Stage("Running", "PENDING"))
_WORKING = (*_BEGINNING, Stage("Running", "RUNNING", prints="step 1\n"))
SUCCEEDS = (*_WORKING, Stage("Complete", "SUCCEEDED", prints="done\n"))
FAILS = (*_WORKING, Stage("Failed", "FAILED", "exit code 1", "AppFailed", prints="failed: x\n"))
IS_STOPPED = (*_WORKING, Stage("Complete", "STOPPED"))
IS_RETRIED = (*_WORKING, Stage("Retrying"), *SUCCEEDS)
IS_REFUSED = (Stage("ValidationFailed", reason="ValidationFailed", message="the spec is invalid"),)
IS_PENDING = (Stage("Suspended"),)
HANGS = _WORKING

Script = Callable[[Document], Sequence[Stage]]
"""From a RayJob to what becomes of it."""


@dataclass
class RayOperator:
    """Takes each new RayJob through its stages; use it as a context."""

    store: Store
    script: Script = lambda _: SUCCEEDS
    pause_s: float = _PAUSE_S
    """Between two stages."""
    _ended: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._start(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _start(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        after: int | None = None
        while not self._ended.is_set():
            wanted = Wanted(_BY_KIND["RayJob"])
            for change in self.store.watch(wanted, after, time.monotonic() + 0.2):
                after = max(after or 0, change.number)
                if change.type == "ADDED":
                    self._start(self._play, change)
            after = after or 0

    def _play(self, change: Change) -> None:
        metadata = change.object["metadata"]
        key = Key(_BY_KIND["RayJob"], metadata["namespace"], metadata["name"])
        try:
            for stage in self.script(change.object):
                if self._ended.wait(self.pause_s):
                    return
                if stage.deployment == "Initializing":
                    self._make_cluster(key)
                self.store.set_status(key, stage.status)
                if stage.prints:
                    is_last = stage.deployment in {"Complete", "Failed"}
                    head = f"{key.name}-head"
                    self.store.print(metadata["namespace"], head, stage.prints, is_last=is_last)
        except RefusedError as error:
            if error.code != 404:  # else it was deleted meanwhile
                raise

    def _make_cluster(self, key: Key) -> None:
        """The cluster's name, and the head's pod; those of an earlier attempt are taken away."""
        job = self.store.get(key)
        name, owner = f"{key.name}-head", {"uid": job["metadata"]["uid"], "kind": "RayJob"}
        pod = Key(_BY_KIND["Pod"], key.namespace, name)
        with contextlib.suppress(RefusedError):  # there is none before the first attempt
            self.store.delete(pod)
        labels = {"ray.io/cluster": key.name, "ray.io/node-type": "head"}
        document = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
            "spec": {
                "containers": [
                    {"name": name, "image": "none"} for name in ("ray-head", "ray-job-submitter")
                ]
            },
            "status": {"phase": "Running"},
        }
        self.store.create(document, key.namespace)
        self.store.logs.pop((key.namespace or "", name), None)
        self.store.print(key.namespace or "", name, "")
        self.store.set_status(key, {"rayClusterName": key.name, "jobId": f"{key.name}-1"})
