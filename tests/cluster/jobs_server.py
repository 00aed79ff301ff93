"""Ray's Jobs API as far as `submit` uses it, with mishaps on demand."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JobsServer:
    """Jobs in memory."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.mishap: Callable[[str], int | None] = lambda request: None
        """By the request's method and path a status to answer before anything is done; 0 hangs
        up when it is done."""
        self.nodes: list[dict[str, Any]] = []
        self.url = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        parts = path.strip("/").split("/")
        match method, parts:
            case "GET", ["api", "version"]:
                return 200, {"ray_version": "2.60.0"}
            case _, ["api", "packages", "gcs", name]:
                if method == "PUT":
                    self.packages[name] = body
                return (200 if name in self.packages else 404), {}
            case "GET", ["api", "v0", "nodes"]:
                return 200, {"data": {"result": {"result": self.nodes}}}
            case "GET", ["api", "jobs"]:
                return 200, list(self.jobs.values())
            case "POST", ["api", "jobs"]:
                job = json.loads(body)
                if job["submission_id"] in self.jobs:
                    return 500, "Traceback\nValueError: already exists"
                self.jobs[job["submission_id"]] = job | {"status": "PENDING", "message": "not yet"}
                return 200, {"submission_id": job["submission_id"]}
            case _, ["api", "jobs", name, *rest]:
                if name not in self.jobs:
                    return 404, "no such job"
                if rest == ["logs"]:
                    return 200, {"logs": self.jobs[name].get("log", "")}
                if rest == ["stop"]:
                    self.jobs[name]["status"] = "STOPPED"
                return 200, self.jobs[name]
        return 404, "what?"


@contextmanager
def served(server: JobsServer) -> Iterator[JobsServer]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            server.requests.append(f"{self.command} {path}")
            header = self.headers.get("Authorization")
            mishap = server.mishap(f"{self.command} {path}")
            if mishap:
                status, content = mishap, "Traceback\nError: a mishap"
            elif server.token and not header:
                status, content = 401, "Unauthorized"
            elif server.token and header != f"Bearer {server.token}":
                status, content = 403, "Forbidden"
            else:
                status, content = server.answer(self.command, path, body)
            if mishap == 0:
                self.close_connection = True
                return
            text = content if isinstance(content, str) else json.dumps(content)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PUT = _answer  # noqa: N815 -- the names that are called

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_port}"
        yield server
        http.shutdown()
