"""Ray's Jobs API: runs submitted to a cluster that is there, over HTTP.

Ray's own client waits without an end for a server that does not answer, and takes the address in
RAY_ADDRESS for the one it is given. The interface behind it is a handful of requests.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from requests.auth import AuthBase

from cluster.package import Package
from cluster.remote import ContactError, RefusedError, RemoteState, RemoteStatus
from cluster.tokens import Token

DASHBOARD_PORT = 8265
DRIVER_ON = "pretune_driver_on"
"""Metadata of a job: the resource that names its driver's node, of which Ray tells nobody."""

_SERVER_ERROR = 500
_NO_SUCH_COMMAND = 127
"""Exit code of a shell."""

_TIMEOUT_S = (5.0, 30.0)
"""To connect, and between two pieces of an answer."""
_UPLOAD_TIMEOUT_S = (5.0, 600.0)

_BYTES = {"memory", "object_store_memory"}

_STATES = {
    "PENDING": RemoteState.PENDING,
    "RUNNING": RemoteState.RUNNING,
    "SUCCEEDED": RemoteState.SUCCEEDED,
    "FAILED": RemoteState.FAILED,
    "STOPPED": RemoteState.STOPPED,
}


@dataclass(frozen=True)
class Job:
    """What is submitted."""

    submission_id: str
    entrypoint: str
    """A command, for a shell on the cluster."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the driver and all that it starts; the cluster shows them to who may ask it."""
    package: Package | None = None
    """The files that stand in the driver's folder; None where the cluster's images have them."""
    driver_resources: Mapping[str, float] = field(default_factory=dict)
    """What the driver's node must have; with none it runs on the head."""

    def as_request(self) -> dict[str, Any]:
        """The body of the request, as the Jobs API defines it."""
        runtime: dict[str, Any] = {"env_vars": dict(self.environment)} if self.environment else {}
        if self.package is not None:
            runtime["working_dir"] = self.package.uri
        request: dict[str, Any] = {
            "submission_id": self.submission_id,
            "entrypoint": self.entrypoint,
            "metadata": dict(self.metadata),
            "runtime_env": runtime,
        }
        if self.driver_resources:
            request["entrypoint_resources"] = dict(self.driver_resources)
        return request


class Jobs:
    """The jobs of one cluster.

    Every call raises `ContactError` where nothing answers in time, and `RefusedError` where what
    answers wants another token, or is no Ray.
    """

    def __init__(self, address: str, token: Token | None) -> None:
        """Talks to nobody yet.

        Raises:
            ValueError: the address is none of a Ray dashboard.
        """
        self.url = dashboard_url(address)
        self._session = requests.Session()
        if token is not None:
            self._session.auth = _Bearer(token)

    def ray_version(self) -> str:
        """Of the cluster."""
        answer = self._call("GET", "/api/version")
        if answer.status_code != requests.codes.ok:
            raise RefusedError(f"{self.url}: {_said(answer)}")
        return str(self._json(answer)["ray_version"])

    def submit(self, job: Job) -> bool:
        """Submit a job, unless there is one of its id; whether it was submitted.

        Raises:
            RefusedError: what has the id does something else.
        """
        if self._is_there(job):
            return False
        if job.package is not None:
            self._upload(job.package)
        answer = self._call("POST", "/api/jobs/", json=job.as_request())
        if answer.status_code == requests.codes.ok:
            return True
        if self._is_there(job):  # somebody else was faster, or an answer was lost
            return False
        kind = ContactError if answer.status_code >= _SERVER_ERROR else RefusedError
        raise kind(f"{self.url}: {_said(answer)}")

    def get(self, submission_id: str) -> Mapping[str, Any] | None:
        """What the cluster tells of a job; None where there is none."""
        answer = self._call("GET", f"/api/jobs/{quote(submission_id, safe='')}")
        if answer.status_code == requests.codes.not_found:
            return None
        return dict(self._json(answer))

    def all(self) -> list[Mapping[str, Any]]:
        """All jobs that were submitted to the cluster, as it tells of them."""
        answer = self._call("GET", "/api/jobs/")
        return [job for job in self._json(answer) if job.get("submission_id")]

    def run(self, submission_id: str) -> "JobRun":
        """One job, whether there is one or not."""
        return JobRun(self, submission_id)

    def log(self, submission_id: str) -> str:
        """What its driver has printed so far."""
        answer = self._call("GET", f"/api/jobs/{quote(submission_id, safe='')}/logs")
        if answer.status_code == requests.codes.not_found:
            return ""
        return str(self._json(answer)["logs"])

    def room(self) -> str:
        """What the nodes have, as the end of a sentence about who waits for it."""
        answer = self._call("GET", "/api/v0/nodes?detail=1")
        if answer.status_code != requests.codes.ok:
            return ""
        found = self._json(answer)["data"]["result"]["result"]
        alive = [node["resources_total"] for node in found if node["state"] == "ALIVE"]
        total: Counter[str] = Counter()
        for resources in alive:
            total.update({name: of for name, of in resources.items() if ":" not in name})
        has = ", ".join(f"{name} {total[name]:g}" for name in sorted(total) if name not in _BYTES)
        return f" Nodes: {len(alive)}, with {has or 'no CPU'}."

    def stop(self, submission_id: str) -> None:
        """SIGTERM to its driver; SIGKILL after the head's RAY_JOB_STOP_WAIT_TIME_S."""
        answer = self._call("POST", f"/api/jobs/{quote(submission_id, safe='')}/stop")
        if answer.status_code == requests.codes.not_found:
            raise RefusedError(f"{self.url} knows of no run {submission_id}")
        self._json(answer)

    def _is_there(self, job: Job) -> bool:
        found = self.get(job.submission_id)
        if found is None:
            return False
        for key, own in (("command", job.entrypoint), ("metadata", dict(job.metadata))):
            other = found["entrypoint"] if key == "command" else found.get("metadata") or {}
            if other != own:
                raise RefusedError(
                    f"{self.url}: there is a run {job.submission_id} with another {key}: {other}; "
                    "give another --run-id, or none"
                )
        return True

    def _upload(self, package: Package) -> None:
        place = f"/api/packages/gcs/{package.name}"
        if self._call("GET", place).status_code == requests.codes.ok:
            return
        content = Path(package.path).read_bytes()
        answer = self._call("PUT", place, data=content, timeout=_UPLOAD_TIMEOUT_S)
        if answer.status_code != requests.codes.ok:
            raise RefusedError(f"{self.url}: the upload failed: {_said(answer)}")

    def _call(
        self, method: str, path: str, *, timeout: tuple[float, float] | None = None, **more: Any
    ) -> requests.Response:
        try:
            answer = self._session.request(
                method, self.url + path, timeout=timeout or _TIMEOUT_S, **more
            )
        except requests.RequestException as error:
            raise ContactError(f"{self.url} does not answer: {_cause(error)}") from error
        match answer.status_code:
            case requests.codes.unauthorized:
                raise RefusedError(
                    f"{self.url} wants a token: give --token-file, or set RAY_AUTH_TOKEN or "
                    "RAY_AUTH_TOKEN_PATH"
                )
            case requests.codes.forbidden:
                raise RefusedError(
                    f"{self.url} refuses the token; take the one the cluster was started with"
                )
            case requests.codes.bad_gateway | requests.codes.unavailable | requests.codes.timeout:
                raise ContactError(f"{self.url}: {_said(answer)}")
        return answer

    def _json(self, answer: requests.Response) -> Any:
        try:
            content = answer.json()
        except requests.JSONDecodeError:
            content = None
        if answer.status_code != requests.codes.ok or content is None:
            # A head that is being restarted answers so, too.
            if answer.status_code >= _SERVER_ERROR:
                raise ContactError(f"{self.url}: {_said(answer)}")
            raise RefusedError(
                f"{self.url} is no Ray dashboard, whose port is {DASHBOARD_PORT} by default: "
                f"{_said(answer)}"
            )
        return content


@dataclass(frozen=True)
class JobRun:
    """Implements `cluster.remote.RemoteRun`."""

    jobs: Jobs
    submission_id: str
    forgotten: RemoteStatus | None = None
    """A head that was started anew knows no earlier job, whatever became of it."""

    def status(self) -> RemoteStatus | None:
        """As Ray tells it."""
        found = self.jobs.get(self.submission_id)
        if found is None:
            return None
        code = found.get("driver_exit_code")
        message = (found.get("message") or "").partition("\n")[0]
        if found["status"] == "PENDING":
            wanted = (found.get("metadata") or {}).get(DRIVER_ON)
            wants = f" Its driver wants a node with {wanted}." if wanted else ""
            message = f"{message.rstrip('.')}.{wants}{self.jobs.room()}"
        if code:  # Ray repeats the log, which stands beside
            message = f"its command ended with exit code {code}"
            if code == _NO_SUCH_COMMAND:
                message += ": pretune is not in the PATH of the driver's node"
        return RemoteStatus(_STATES[found["status"]], message, code)

    def log(self) -> str:
        """From the node of the driver."""
        return self.jobs.log(self.submission_id)

    def stop(self) -> None:
        """See `Jobs.stop`."""
        self.jobs.stop(self.submission_id)


def dashboard_url(address: str) -> str:
    """An address as the user gives it, as the URL of the cluster's dashboard.

    Raises:
        ValueError: it is the address of something else.
    """
    if address.startswith("ray://"):
        host = urlsplit(address).hostname or "HEAD"
        raise ValueError(
            f"{address}: a Ray Client address; Ray Train and Ray Tune do not run through it, and a "
            "laptop that sleeps would end the run. Submit to the dashboard instead: "
            f"--address http://{host}:{DASHBOARD_PORT}"
        )
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{address}: expected the URL of a Ray dashboard, such as http://head:{DASHBOARD_PORT}"
        )
    if parts.username or parts.password:
        raise ValueError("--address holds a name or password; give a token by --token-file instead")
    return url.rstrip("/")


class _Bearer(AuthBase):  # type: ignore[misc]
    """Given as `auth`, or a `.netrc` would take the header's place."""

    def __init__(self, token: Token) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token.value}"
        return request


def _cause(error: requests.RequestException) -> str:
    """The innermost reason; `requests` wraps it several times."""
    inner: BaseException = error
    while inner.__cause__ or inner.__context__:
        inner = inner.__cause__ or inner.__context__ or inner
    return f"{type(error).__name__}: {inner}"


def _said(answer: requests.Response) -> str:
    """Ray answers failures with a traceback, whose last line tells."""
    lines = answer.text.strip().splitlines() or [answer.reason or ""]
    return f"HTTP {answer.status_code}: {lines[-1][:500]}"
