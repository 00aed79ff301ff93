"""The objects of an API server in memory: created, changed and deleted as the real one does it."""

import copy
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jsonpatch
from api_objects import RefusedError, Resource, has_fields, merged, resource_of, selects
from schemas import Document, Kind

_GENERATED = 5


class Key(NamedTuple):
    """Where an object is."""

    resource: Resource
    namespace: str | None
    name: str


class Change(NamedTuple):
    """What a watch tells."""

    number: int
    type: str
    """ADDED, MODIFIED or DELETED."""
    resource: Resource
    object: Document


class Wanted(NamedTuple):
    """What a list or a watch asks for."""

    resource: Resource
    namespace: str | None = None
    labels: str = ""
    fields: str = ""

    def fits(self, resource: Resource, document: Document) -> bool:
        """Whether an object is meant."""
        metadata = document["metadata"]
        return (
            resource == self.resource
            and self.namespace in {None, metadata.get("namespace")}
            and selects(self.labels, metadata.get("labels", {}))
            and has_fields(self.fields, document)
        )


@dataclass
class PodLog:
    """What a container has printed; it may go on."""

    text: str = ""
    is_closed: bool = False


@dataclass
class Store:
    """All objects, and what became of them. For many threads."""

    kinds: Mapping[tuple[str, str], Kind]
    """Custom resources that are validated and completed."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    logs: dict[tuple[str, str], PodLog] = field(default_factory=dict)
    """By namespace and pod."""
    _objects: dict[Key, Document] = field(default_factory=dict)
    _history: list[Change] = field(default_factory=list)
    _forgotten: int = 0
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def get(self, key: Key) -> Document:
        """A copy of an object."""
        with self.changed:
            if key not in self._objects:
                raise _not_found(key)
            return copy.deepcopy(self._objects[key])

    def list(self, wanted: Wanted) -> tuple[int, list[Document]]:
        """The number of the last change, and copies of what is wanted."""
        with self.changed:
            found = [one for key, one in self._objects.items() if wanted.fits(key.resource, one)]
            return self.last, copy.deepcopy(found)

    def create(self, document: Document, namespace: str | None, *, dry: bool = False) -> Document:
        """Add an object; its name may be left to the server."""
        resource, new = resource_of(document), copy.deepcopy(document)
        metadata = new.setdefault("metadata", {})
        if not metadata.get("name"):
            if not metadata.get("generateName"):
                raise RefusedError(422, "Invalid", "name or generateName is required")
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:_GENERATED]
        if namespace and metadata.setdefault("namespace", namespace) != namespace:
            raise RefusedError(400, "BadRequest", "the namespace of the object is another")
        key = Key(resource, namespace, metadata["name"])
        if resource.has_status:
            new.pop("status", None)
        new = self._accepted(key, new)
        new["metadata"] |= {
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with self.changed:
            if key in self._objects:
                message = f'{resource.full_name} "{key.name}" already exists'
                raise RefusedError(409, "AlreadyExists", message)
            return new if dry else self._keep(key, "ADDED", new)

    def change(
        self, key: Key, make: Callable[[Document], Document], *, status: bool, dry: bool = False
    ) -> Document:
        """Put what `make` makes of an object in its place; `status` alone, or all but it."""
        with self.changed:
            old = self.get(key)
            new = make(copy.deepcopy(old))
            said = new["metadata"].get("resourceVersion")
            if said not in {None, "", old["metadata"]["resourceVersion"]}:
                message = f'{key.resource.full_name} "{key.name}": the object has been modified'
                raise RefusedError(409, "Conflict", message)
            if status:
                new = {**old, "status": new.get("status", {})}
            elif key.resource.has_status:
                new.pop("status", None)
                new |= {"status": old["status"]} if "status" in old else {}
            for name in ("uid", "creationTimestamp", "generation"):
                new["metadata"][name] = old["metadata"][name]
            new = self._accepted(key, new)
            new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
            if new == old or dry:
                return new
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] += 1
            return self._keep(key, "MODIFIED", new)

    def delete(self, key: Key, *, dry: bool = False) -> Document:
        """Take an object away, and what it owns."""
        with self.changed:
            document = self.get(key)
            if not dry:
                del self._objects[key]
                self._tell("DELETED", key, document)
                for other in [k for k, one in self._objects.items() if _is_owned(one, document)]:
                    if other in self._objects:
                        self.delete(other)
            return document

    def set_status(self, key: Key, status: Document) -> None:
        """What an operator does: fields are added to the status."""
        self.change(key, lambda old: merged(old, {"status": status}), status=True)

    def watch(self, wanted: Wanted, after: int | None, until: float) -> Iterator[Change]:
        """Changes as they come; without `after` first all that is there.

        Raises:
            RefusedError: what came after `after` is no longer known.
        """
        with self.changed:
            if after is None:
                after, there = self.last, self.list(wanted)[1]
            else:
                there = []
        for document in there:
            yield Change(after, "ADDED", wanted.resource, document)
        while time.monotonic() < until:
            with self.changed:
                if after < self._forgotten:
                    raise RefusedError(410, "Expired", f"too old resource version: {after}")
                news = [one for one in self._history if one.number > after]
                if not news:
                    self.changed.wait(min(0.2, max(0.0, until - time.monotonic())))
                    continue
                after = news[-1].number
            yield from (one for one in news if wanted.fits(one.resource, one.object))

    def forget(self) -> None:
        """Lose the history, as a server does after a while: watches must list anew."""
        with self.changed:
            self._forgotten = next(self._numbers)
            self._history.clear()
            self.changed.notify_all()

    def print(self, namespace: str, pod: str, text: str, *, is_last: bool = False) -> None:
        """Add to a pod's log."""
        with self.changed:
            log = self.logs.setdefault((namespace, pod), PodLog())
            log.text += text
            log.is_closed = is_last
            self.changed.notify_all()

    @property
    def last(self) -> int:
        """The number of the last change."""
        return max(self._forgotten, self._history[-1].number if self._history else 0)

    def _accepted(self, key: Key, document: Document) -> Document:
        kind = self.kinds.get((key.resource.api_version, key.resource.kind))
        if kind is None:
            return document
        if faults := kind.faults(document):
            told = "; ".join(map(str, faults))
            message = f'{key.resource.kind}.{key.resource.group} "{key.name}" is invalid: {told}'
            raise RefusedError(422, "Invalid", message, tuple(faults))
        return kind.complete(document)

    def _keep(self, key: Key, type_: str, document: Document) -> Document:
        self._objects[key] = document
        self._tell(type_, key, document)
        return copy.deepcopy(document)

    def _tell(self, type_: str, key: Key, document: Document) -> None:
        number = next(self._numbers)
        document["metadata"]["resourceVersion"] = str(number)
        self._history.append(Change(number, type_, key.resource, copy.deepcopy(document)))
        self.changed.notify_all()


def patched(old: Document, patch: Any, content_type: str) -> Document:
    """An object after a patch of one of the types that are served."""
    if content_type == "application/json-patch+json":
        result: Document = jsonpatch.apply_patch(old, patch)
        return result
    # Lists of built-in kinds would be merged by their keys; here they are replaced.
    if content_type in {
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    }:
        changed: Document = merged(old, patch)
        return changed
    raise RefusedError(
        415, "UnsupportedMediaType", f"patches of type {content_type} are not served"
    )


def _is_owned(document: Document, owner: Document) -> bool:
    owners = document["metadata"].get("ownerReferences", [])
    return any(one.get("uid") == owner["metadata"]["uid"] for one in owners)


def _not_found(key: Key) -> RefusedError:
    return RefusedError(404, "NotFound", f'{key.resource.full_name} "{key.name}" not found')
