"""Requests to a Kubernetes API server, through kubectl.

It knows the user's contexts, certificates and login programs, or the service account of the pod it
runs in; a path of the API is all that is asked of it, so that it looks up nothing else.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cluster.remote import ContactError, RefusedError

_IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TIMEOUT_S = 30
_LATE_S = 10.0
_REASON = re.compile(r"Error from server(?: \((?P<reason>\w+)\))?: (?P<message>.*)", re.DOTALL)
_NETWORK = (
    *("Unable to connect", "connection to the server", "connection lost", "connection reset"),
    *("timeout", "deadline exceeded", "EOF"),
)
_LATER = {"ServiceUnavailable", "TooManyRequests", "Timeout", "ServerTimeout", "InternalError"}


class NotFoundError(LookupError):
    """There is no such object."""


class ExistsError(FileExistsError):
    """There is an object of that name."""


@dataclass(frozen=True)
class Kubectl:
    """One namespace of a cluster.

    Every call raises `ContactError` where the server does not answer, and `RefusedError` where it
    will not do what it is asked.
    """

    context: str | None = None
    named: str | None = None
    """The namespace; that of the pod or the context where absent."""

    @property
    def namespace(self) -> str:
        """The namespace that is asked."""
        if self.named:
            return self.named
        if self._is_in_pod:
            return _IN_POD.read_text(encoding="utf-8").strip()
        view = ("config", "view", "--minify", "--output=jsonpath={..namespace}")
        return self._run(*view).strip() or "default"

    @property
    def current_context(self) -> str | None:
        """The context that is asked; None in a pod, where there is none."""
        if self.context or self._is_in_pod:
            return self.context
        return self._run("config", "current-context").strip()

    @property
    def _is_in_pod(self) -> bool:
        """As kubectl decides: a configuration comes before the service account."""
        has_config = os.environ.get("KUBECONFIG") or (Path.home() / ".kube" / "config").is_file()
        return self.context is None and not has_config and _IN_POD.is_file()

    def get(self, path: str, **query: str) -> Any:
        """An object, or a list of them; `path` as of `rayjobs`."""
        return json.loads(self.text(path, **query))

    def text(self, path: str, **query: str) -> str:
        """What the server answers, as it is."""
        return self._run("get", f"--raw={_url(path, query)}")

    def create(self, path: str, document: Mapping[str, Any]) -> Any:
        """Create an object; a field that the server does not know is refused.

        Raises:
            ExistsError: there is one of its name.
        """
        url = _url(path, {"fieldValidation": "Strict"})
        answer = self._run("create", f"--raw={url}", "--filename=-", stdin=json.dumps(document))
        return json.loads(answer)

    def delete(self, path: str) -> None:
        """Delete an object and what it owns.

        Raises:
            NotFoundError: there is none.
        """
        self._run("delete", f"--raw={path}")

    def path(self, group: str, kind: str, name: str = "") -> str:
        """Of a kind's objects, or of one, in the namespace; the group with its version."""
        root = f"/apis/{group}" if "/" in group else f"/api/{group}"
        return f"{root}/namespaces/{self.namespace}/{kind}{name and f'/{name}'}"

    def _run(self, *arguments: str, stdin: str | None = None) -> str:
        # Installed beside Python it is found in an environment that is not activated, too.
        places = [os.environ.get("PATH", ""), str(Path(sys.executable).parent)]
        program = shutil.which("kubectl", path=os.pathsep.join(places))
        if program is None:
            raise RefusedError("kubectl is not in PATH; install it, or pretune[kube]")
        chosen = [f"--context={self.context}"] if self.context else []
        command = [program, *chosen, f"--request-timeout={_TIMEOUT_S}s", *arguments]
        try:
            done = subprocess.run(
                command,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S + _LATE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ContactError("the Kubernetes API server does not answer in time") from error
        if done.returncode:
            raise _error(done.stderr.strip())
        return done.stdout


def _url(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _error(said: str) -> Exception:
    found = _REASON.search(said)
    if found is None:
        kind = ContactError if any(sign in said for sign in _NETWORK) else RefusedError
        return kind(f"kubectl: {said}")
    reason, message = found["reason"], found["message"].strip()
    match reason:
        case None:  # of its store: no leader, a request that timed out
            return ContactError(f"the Kubernetes API server: {message}")
        case "NotFound":
            return NotFoundError(message)
        case "AlreadyExists":
            return ExistsError(message)
        case _ if reason in _LATER:
            return ContactError(f"the Kubernetes API server: {message}")
    return RefusedError(f"the Kubernetes API server refuses: {message}")
