"""A Kubernetes API server in memory, as far as `submit` asks one; the client is real."""

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, Any]


class KubeServer:
    """Objects by path, and what was asked. kubectl sends no token over plain HTTP."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.requests: list[str] = []
        self.mishap: Answer | None = None
        self.operator: Callable[[KubeServer], None] = lambda server: None
        """Called before each answer, as an operator would have acted meanwhile."""
        self._created = 0

    def put(self, kind: str, document: dict[str, Any], group: str = "api/v1") -> dict[str, Any]:
        """Add an object to the namespace `team`."""
        document.setdefault("metadata", {})["uid"] = uuid.uuid4().hex
        self._created += 1
        document["metadata"].setdefault("creationTimestamp", f"2026-01-01T00:00:{self._created:02}")
        name = document["metadata"]["name"]
        self.objects[f"/{group}/namespaces/team/{kind}/{name}"] = document
        return document

    def rayjobs(self) -> list[dict[str, Any]]:
        return [one for path, one in self.objects.items() if "/rayjobs/" in path]

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        match method:
            case "POST":
                document = json.loads(body)
                if f"{path}/{document['metadata']['name']}" in self.objects:
                    return failure(409, "AlreadyExists", "it already exists")
                if "bogus" in document["spec"]:
                    return failure(400, "BadRequest", 'strict decoding: unknown field "spec.bogus"')
                group, _, kind = path.strip("/").replace("/namespaces/team/", " ").partition(" ")
                return 201, self.put(kind, document, group)
            case "DELETE" if path in self.objects:
                return 200, self.objects.pop(path)
            case "GET" if path.endswith("/log"):
                return 200, self.logs.get(path.removesuffix("/log").rpartition("/")[2], "")
            case "GET" if path in self.objects:
                return 200, self.objects[path]
            case "GET" if any(one.startswith(f"{path}/") for one in self.objects) or _is_list(path):
                return 200, {"items": self._selected(path, query.get("labelSelector", [""])[0])}
        return failure(404, "NotFound", f"{path} not found")

    def _selected(self, path: str, selector: str) -> list[dict[str, Any]]:
        wanted = [one.partition("=") for one in selector.split(",") if one]
        found = [one for name, one in self.objects.items() if name.startswith(f"{path}/")]
        return [
            one
            for one in found
            if all(
                key in (labels := one["metadata"].get("labels") or {})
                and (not equal or labels[key] == value)
                for key, equal, value in wanted
            )
        ]


def _is_list(path: str) -> bool:
    return path.rpartition("/")[2] in ("rayjobs", "pods", "workloads")


def failure(code: int, reason: str, message: str) -> Answer:
    """As an API server tells of it."""
    told = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    return code, told | {"reason": reason, "message": message}


@contextmanager
def served(server: KubeServer, kubeconfig: Path) -> Iterator[KubeServer]:
    """Serve, and write how kubectl finds the server."""

    class Handler(BaseHTTPRequestHandler):
        def _body(self) -> bytes:
            """Kubectl sends what it reads from standard input in pieces."""
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self) -> None:
            body = self._body()
            url = urlsplit(self.path)
            server.requests.append(f"{self.command} {self.path}")
            server.operator(server)
            status, content = server.mishap or server.answer(
                self.command, url.path, parse_qs(url.query), body
            )
            text = content if isinstance(content, str) else json.dumps(content)
            self.send_response(status)
            kind = "text/plain" if isinstance(content, str) else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 -- the names that are called

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        config = {
            "clusters": [
                {"name": "c", "cluster": {"server": f"http://127.0.0.1:{http.server_port}"}}
            ],
            "users": [{"name": "u", "user": {}}],
            "contexts": [
                {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team"}}
            ],
            "current-context": "here",
        }
        kubeconfig.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **config}))
        yield server
        http.shutdown()
