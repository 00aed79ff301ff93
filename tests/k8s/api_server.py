"""A Kubernetes API server in memory, for kubectl and other clients: no cluster, loopback only.

Discovery, objects, patches, watches, pod logs; custom resources are completed and strictly checked.
It has no OpenAPI and no server-side apply: kubectl needs `--validate=false`.
"""

import json
import ssl
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import yaml
from api_objects import RESOURCES, RefusedError, Resource
from api_store import Key, Store, Wanted, patched
from certificates import write_certificate
from schemas import Document, Kind

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_WATCH_S = 30.0


class Access(NamedTuple):
    """What a request wants to do, as roles name it."""

    verb: str
    group: str
    resource: str
    """With its subresource, as `pods/log`."""
    name: str | None = None
    query: str = ""


def is_allowed(access: Access, rules: Sequence[Document]) -> bool:
    """Whether the rules of a Role let a request pass."""
    return any(
        access.verb in rule["verbs"]
        and access.group in rule["apiGroups"]
        and access.resource in rule["resources"]
        and (not rule.get("resourceNames") or access.name in rule["resourceNames"])
        for rule in rules
    )


@dataclass
class ApiServer:
    """What runs, and what tests ask it or make it do."""

    url: str
    authority: Path
    """File of the certificate that clients are to trust."""
    store: Store
    token: str
    """That requests must bear."""
    rules: Sequence[Document] | None = None
    """Of the Role that requests have; None allows everything."""
    log: list[Access] = field(default_factory=list)
    """All that was asked of objects."""
    failures: deque[int] = field(default_factory=deque)
    """Codes that the next requests are answered with, whatever they ask; 0 hangs up."""
    meanwhile: Callable[[], None] = lambda: None
    """Called before each answer: what an operator has done by then."""

    def kubeconfig(self, folder: Path) -> Path:
        """A file that leads clients here."""
        cluster = {"server": self.url, "certificate-authority": str(self.authority)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": self.token}}],
            "contexts": [
                {
                    "name": "test",
                    "context": {"cluster": "test", "user": "test", "namespace": "pretune"},
                },
            ],
        }
        path = folder / "kubeconfig.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    def service_account(self, folder: Path, namespace: str = "pretune") -> dict[str, str]:
        """Files as a pod has them mounted, and the variables that lead it here."""
        (folder / "token").write_text(self.token, encoding="utf-8")
        (folder / "namespace").write_text(namespace, encoding="utf-8")
        if self.authority.parent != folder:
            (folder / "ca.crt").write_bytes(self.authority.read_bytes())
        host, _, port = self.url.removeprefix("https://").partition(":")
        return {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}


class Place(NamedTuple):
    """What a path leads to."""

    resource: Resource
    namespace: str | None
    name: str | None
    subresource: str | None

    @property
    def key(self) -> Key:
        """Of the object."""
        assert self.name is not None
        return Key(self.resource, self.namespace, self.name)


def place_of(path: str) -> Place:
    """Where a path of an API leads.

    Raises:
        RefusedError: nowhere.
    """
    _, root, *rest = path.rstrip("/").split("/")
    group = rest.pop(0) if root == "apis" and rest else ""
    version = rest.pop(0) if rest else ""
    namespace = None
    if len(rest) > 2 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    for resource in RESOURCES:
        if rest and (resource.group, resource.version, resource.plural) == (
            group,
            version,
            rest[0],
        ):
            name, subresource = [*rest[1:], None, None][:2]
            return Place(resource, namespace, name, subresource)
    raise RefusedError(404, "NotFound", "the server could not find the requested resource")


def discovered(path: str) -> Document | None:
    """What is served, where a path asks for that."""
    if path == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = {one.group: one.api_version for one in RESOURCES if one.group}
        groups = [
            {"name": group, "versions": [named], "preferredVersion": named}
            for group, version in versions.items()
            for named in [{"groupVersion": version, "version": version.rpartition("/")[2]}]
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    served = [one for one in RESOURCES if one.api_version == version]
    if not served:
        return None
    resources = [
        {
            "name": one.plural,
            "singularName": one.kind.lower(),
            "namespaced": one.is_namespaced,
            "kind": one.kind,
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        }
        for one in served
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    api: ApiServer

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def _answer(self) -> None:
        # Read in any case: what is left of a body would be taken for the next request.
        body = b"".join(self._body())
        url = urlsplit(self.path)
        self._query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.api.meanwhile()
        if self.api.failures:
            code = self.api.failures.popleft()
            if not code:
                self.close_connection = True
                return
            self._send(code, RefusedError(code, "InternalError", "as the test wants it").status)
            return
        try:
            self._require_token()
            found = discovered(url.path.rstrip("/")) if self.command == "GET" else None
            if found is not None:
                self._send(200, found)
            else:
                self._serve(place_of(url.path), yaml.safe_load(body) if body else {})
        except RefusedError as error:
            self._send(error.code, error.status)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return
        # As `kubectl create --raw` sends it.
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _require_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.api.token}":
            raise RefusedError(401, "Unauthorized", "Unauthorized")

    def _require_right(self, place: Place) -> None:
        verb = _VERBS.get(self.command) or ("get" if place.name else "list")
        if "watch" in self._query:
            verb = "watch"
        parts = [part for part in (place.resource.plural, place.subresource) if part]
        query = urlsplit(self.path).query
        access = Access(verb, place.resource.group, "/".join(parts), place.name, query)
        self.api.log.append(access)
        if self.api.rules is not None and not is_allowed(access, self.api.rules):
            message = f"{place.resource.full_name} is forbidden: cannot {verb} {access.resource}"
            raise RefusedError(403, "Forbidden", message)

    def _serve(self, place: Place, body: Any) -> None:
        self._require_right(place)
        store, dry = self.api.store, "dryRun" in self._query
        is_status = place.subresource == "status"
        match self.command, place.name:
            case "GET", str() if place.subresource == "log":
                self._send_log(place)
            case "GET", str():
                self._send(200, store.get(place.key))
            case "GET", None if "watch" in self._query:
                self._send_changes(place)
            case "GET", None:
                self._send(200, self._listed(place))
            case "POST", None:
                document = {
                    "apiVersion": place.resource.api_version, "kind": place.resource.kind, **body
                }  # fmt: skip
                self._send(201, store.create(document, place.namespace, dry=dry))
            case "PUT", str():
                made = store.change(place.key, lambda _: body, status=is_status, dry=dry)
                self._send(200, made)
            case "PATCH", str():
                kind = self.headers.get("Content-Type", "").partition(";")[0]
                made = store.change(
                    place.key, lambda old: patched(old, body, kind), status=is_status, dry=dry
                )
                self._send(200, made)
            case "DELETE", str():
                self._send(200, store.delete(place.key, dry=dry))
            case _:
                raise RefusedError(405, "MethodNotAllowed", f"{self.command} is not served here")

    def _wanted(self, place: Place) -> Wanted:
        labels, fields = (self._query.get(f"{name}Selector", "") for name in ("label", "field"))
        return Wanted(place.resource, place.namespace, labels, fields)

    def _listed(self, place: Place) -> Document:
        number, items = self.api.store.list(self._wanted(place))
        return {
            "kind": f"{place.resource.kind}List",
            "apiVersion": place.resource.api_version,
            "metadata": {"resourceVersion": str(number)},
            "items": items,
        }

    def _send_changes(self, place: Place) -> None:
        if "sendInitialEvents" in self._query:
            # As servers without the gate WatchList say; clients then list and watch.
            raise RefusedError(422, "Invalid", "sendInitialEvents is forbidden for watch")
        after = self._query.get("resourceVersion")
        until = time.monotonic() + float(self._query.get("timeoutSeconds", _WATCH_S))
        changes = self.api.store.watch(
            self._wanted(place), int(after) if after not in {None, "", "0"} else None, until
        )
        with self._stream("application/json"):
            try:
                for change in changes:
                    self._chunk({"type": change.type, "object": change.object})
            except RefusedError as error:
                self._chunk({"type": "ERROR", "object": error.status})

    def _send_log(self, place: Place) -> None:
        store, sent = self.api.store, 0
        log = store.logs.get((place.namespace or "", place.name or ""))
        if log is None:
            raise RefusedError(404, "NotFound", f'pods "{place.name}" not found')
        is_followed = self._query.get("follow") == "true"
        with self._stream("text/plain"):
            while True:
                with store.changed:
                    news, is_closed = log.text[sent:], log.is_closed
                    if not news and is_followed and not is_closed:
                        store.changed.wait(0.2)
                        continue
                self._chunk(news)
                sent += len(news)
                if not is_followed or (is_closed and not news):
                    return

    def _send(self, code: int, body: Mapping[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    @contextmanager
    def _stream(self, content_type: str) -> Iterator[None]:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            yield
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client has heard enough
            self.close_connection = True

    def _chunk(self, content: str | Mapping[str, Any]) -> None:
        text = content if isinstance(content, str) else json.dumps(content) + "\n"
        if text:
            data = text.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()


@contextmanager
def serving(kinds: Mapping[tuple[str, str], Kind], folder: Path) -> Iterator[ApiServer]:
    """A server on a free port of this machine; its certificate is written to `folder`."""
    certificate, key = write_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        http.socket = context.wrap_socket(http.socket, server_side=True)
        url = f"https://127.0.0.1:{http.server_address[1]}"
        api = ApiServer(url, certificate, Store(kinds), token=uuid.uuid4().hex)
        handler.api = api  # type: ignore[attr-defined]
        thread = threading.Thread(target=http.serve_forever, args=[0.05], daemon=True)
        thread.start()
        try:
            yield api
        finally:
            http.shutdown()
            thread.join()
