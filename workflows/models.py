"""The model store: immutable versions, and a log of promotions that nobody rewrites."""

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainers import manifest
from workflows import failpoints, storage
from workflows.storage import Storage, sync_tree

MODELS = "models"
CHAMPION = "champion"

_NAME = re.compile(r"^[a-z][a-z0-9_-]*\.[a-z][a-z0-9_-]*$")
_REFERENCE = re.compile(r"^(?P<name>[^@]+?)(@(?P<which>\w+))?$")


class ModelStoreError(ValueError):
    """There is no such model, or it cannot be used."""


class ChampionChangedError(RuntimeError):
    """Somebody else promoted a model in between; nothing was changed."""


@dataclass(frozen=True)
class Version:
    """An immutable version of a named model."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"


class ModelStore:
    """Versions and promotions below `models/` of a storage.

    `<name>/files/<id>/` holds a version's Hugging Face folder, `<name>/versions/<number>.json`,
    created exclusively and last, makes it a version; `<name>/log/<entry>.json` is a promotion.
    """

    def __init__(self, where: Storage) -> None:
        self._storage = where

    def names(self) -> list[str]:
        """Every model that has a version."""
        return [name for name in self._storage.names(MODELS) if self.versions(name)]

    def versions(self, name: str) -> list[Version]:
        """All versions of a model, oldest first."""
        return [Version(name, number) for number in self._numbers(_versions(name))]

    def facts(self, version: Version) -> dict[str, Any]:
        """What was written down when the version was made."""
        facts: dict[str, Any] = json.loads(self._storage.read(_entry(version)))
        return facts

    def files(self, version: Version) -> str:
        """The folder's name in the storage."""
        return str(self.facts(version)["folder"])

    def folder(self, version: Version) -> str:
        """Path or URL of the version's Hugging Face folder."""
        return self._storage.url(self.files(version))

    def verified(self, version: Version) -> Path:
        """The folder on this machine, after every byte was compared with the manifest.

        Raises:
            ModelStoreError: names the file that differs.
        """
        folder = self.files(version)
        damaged = self._storage.damage(folder, self.facts(version)["files"])
        if damaged:
            raise ModelStoreError(f"{version} in {self.folder(version)} is damaged: {damaged}")
        return self._storage.fetched(folder)

    def read(self, version: Version, file: str) -> bytes:
        """One file of a version, compared with the manifest.

        Raises:
            ModelStoreError: it is missing or differs.
        """
        expected = self.facts(version)["files"].get(file)
        if expected is None:
            raise ModelStoreError(f"{version} has no file {file}")
        try:
            content = self._storage.read(f"{self.files(version)}/{file}")
        except FileNotFoundError:
            content = None
        if content is None or hashlib.sha256(content).hexdigest() != expected["sha256"]:
            how = "is missing" if content is None else "has other bytes than were written"
            raise ModelStoreError(f"{version} in {self.folder(version)} is damaged: {file} {how}")
        return content

    def champion(self, name: str) -> Version | None:
        """The version that the alias `champion` means now."""
        log = self.log(name)
        return Version(name, log[-1]["version"]) if log else None

    def log(self, name: str) -> list[dict[str, Any]]:
        """All promotions of a model, oldest first."""
        contents = self._storage.read_all(_log_entry(name, n) for n in self._numbers(_log(name)))
        return [json.loads(content) for content in contents.values()]

    def resolve(self, reference: str) -> Version:
        """The version that `name`, `name@champion` or `name@3` means.

        Raises:
            ModelStoreError: says what there is.
        """
        parts = _REFERENCE.match(reference)
        name = parts["name"] if parts else ""
        which = (parts["which"] if parts else None) or CHAMPION
        if not _NAME.match(name) or name not in self.names():
            known = ", ".join(self.names()) or "none yet"
            raise ModelStoreError(
                f"no model {name or reference!r} in {self._storage.url(MODELS)}; there is {known}"
            )
        numbers = [version.number for version in self.versions(name)]
        if which == CHAMPION:
            champion = self.champion(name)
            if champion is None:
                raise ModelStoreError(f"{name} has no champion yet; its versions are {numbers}")
            return champion
        if not which.isdigit() or int(which) not in numbers:
            raise ModelStoreError(f"no version {which!r} of {name}; it has {numbers} and champion")
        return Version(name, int(which))

    def add(
        self,
        name: str,
        source: Path,
        *,
        fingerprint: str,
        attempt: str,
        task: Mapping[str, Any],
        scores: Mapping[str, float],
        test_split: str | None = None,
    ) -> Version:
        """Copy a model's folder in as the next version; the same training is added once.

        Args:
            name: `<pipeline>.<task>`.
            source: a Hugging Face folder.
            fingerprint: of the step that made it.
            attempt: of that step; a step that was computed anew makes another version.
            task: its configuration.
            scores: on the test rows.
            test_split: digest of those; None where nobody knows them.
        """
        if not _NAME.match(name):
            raise ModelStoreError(f"{name!r} is no model name; it is <pipeline>.<task>")
        for version in self.versions(name):
            if self.facts(version)["attempt"] == attempt:
                return version
        folder = f"{MODELS}/{name}/files/{fingerprint[:12]}-{uuid.uuid4().hex[:8]}"
        files = manifest.describe(source)
        if self._storage.is_local:
            target = self._storage.path(folder)
            shutil.copytree(source, target)
            sync_tree(target, up_to=Path(self._storage.root))
            files = manifest.describe(target)
        else:
            self._storage.upload(source, folder)
        failpoints.reach("models.add.stored")
        facts = {
            "schema_version": 3,
            "name": name,
            "folder": folder,
            "fingerprint": fingerprint,
            "attempt": attempt,
            "task": dict(task),
            "scores": dict(scores),
            "test_split": test_split,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": files,
        }
        return self._publish(name, json.dumps(facts, indent=1).encode())

    def promote(self, version: Version, *, expected: Version | None, reason: str, run: str) -> None:
        """Make a version the champion, if the champion is still `expected`.

        Raises:
            ChampionChangedError: it is another one.
        """
        entries = self.log(version.name)
        current = self.champion(version.name)
        if current == version:
            return
        if current != expected:
            raise ChampionChangedError(f"{version.name}: champion is {current}, not {expected}")
        entry = {
            "schema_version": 1,
            "alias": CHAMPION,
            "version": version.number,
            "previous": expected.number if expected else None,
            "reason": reason,
            "run": run,
            "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        place = _log_entry(version.name, len(entries) + 1)
        failpoints.reach("models.promote.before")
        try:
            self._storage.create(place, json.dumps(entry, indent=1).encode())
        except storage.AlreadyExistsError as error:
            raise ChampionChangedError(
                f"{version.name}: another promotion came first; see {self._storage.url(place)}"
            ) from error
        failpoints.reach("models.promote.after")

    def _publish(self, name: str, facts: bytes) -> Version:
        """Give what is stored the next free number."""
        while True:
            numbers = self._numbers(_versions(name))
            version = Version(name, numbers[-1] + 1 if numbers else 1)
            try:
                self._storage.create(_entry(version), facts)
            except storage.AlreadyExistsError:
                continue
            failpoints.reach("models.add.published")
            return version

    def _numbers(self, folder: str) -> list[int]:
        """Numbers of the entries in a folder, ascending."""
        names = self._storage.names(folder)
        return sorted(int(n.removesuffix(".json")) for n in names if not storage.is_partial(n))


def _versions(name: str) -> str:
    return f"{MODELS}/{name}/versions"


def _log(name: str) -> str:
    return f"{MODELS}/{name}/log"


def _entry(version: Version) -> str:
    return f"{_versions(version.name)}/{version.number:06d}.json"


def _log_entry(name: str, number: int) -> str:
    return f"{_log(name)}/{number:06d}.json"
