"""The model store: immutable versions in folders, and a log of promotions that nobody rewrites."""

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
from workflows import storage

CHAMPION = "champion"
MANIFEST = "MANIFEST.json"

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
    """`<name>/versions/<number>/` with a manifest written last, and `<name>/log/<entry>.json`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        """Every model that has a version."""
        return sorted(path.parent.name for path in self._root.glob("*/versions"))

    def versions(self, name: str) -> list[Version]:
        """All versions of a model, oldest first."""
        found = self._versions(name).glob(f"[0-9]*/{MANIFEST}")
        return sorted((Version(name, int(path.parent.name)) for path in found), key=_number)

    def facts(self, version: Version) -> dict[str, Any]:
        """What was written down when the version was made."""
        path = self.folder(version) / MANIFEST
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return facts

    def folder(self, version: Version) -> Path:
        """The version's Hugging Face folder."""
        return self._versions(version.name) / f"{version.number:06d}"

    def verified(self, version: Version) -> Path:
        """The folder, after every byte was compared with the manifest.

        Raises:
            ModelStoreError: names the file that differs.
        """
        damaged = manifest.first_damage(self.folder(version), self.facts(version)["files"])
        if damaged:
            raise ModelStoreError(f"{version} in {self.folder(version)} is damaged: {damaged}")
        return self.folder(version)

    def champion(self, name: str) -> Version | None:
        """The version that the alias `champion` means now."""
        log = self.log(name)
        return Version(name, log[-1]["version"]) if log else None

    def log(self, name: str) -> list[dict[str, Any]]:
        """All promotions of a model, oldest first."""
        entries = sorted(self._log(name).glob("[0-9]*.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in entries]

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
                f"no model {name or reference!r} in {self._root}; there is {known}"
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
        task: Mapping[str, Any],
        scores: Mapping[str, float],
    ) -> Version:
        """Copy a model's folder in as the next version; the same training is added once.

        Args:
            name: `<pipeline>.<task>`.
            source: a Hugging Face folder.
            fingerprint: of the step that made it.
            task: its configuration.
            scores: on the test rows.
        """
        if not _NAME.match(name):
            raise ModelStoreError(f"{name!r} is no model name; it is <pipeline>.<task>")
        for version in self.versions(name):
            if self.facts(version)["fingerprint"] == fingerprint:
                return version
        partial = self._versions(name) / f".partial-{uuid.uuid4().hex}"
        shutil.copytree(source, partial)
        facts = {
            "schema_version": 1,
            "name": name,
            "fingerprint": fingerprint,
            "task": dict(task),
            "scores": dict(scores),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": manifest.describe(partial),
        }
        for path in partial.rglob("*"):
            storage.sync(path)
        storage.create(partial / MANIFEST, json.dumps(facts, indent=1).encode())
        return self._publish(name, partial)

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
        path = self._log(version.name) / f"{len(entries) + 1:06d}.json"
        try:
            storage.create(path, json.dumps(entry, indent=1).encode())
        except storage.AlreadyExistsError as error:
            raise ChampionChangedError(
                f"{version.name}: another promotion came first; see {path}"
            ) from error

    def _publish(self, name: str, partial: Path) -> Version:
        """Give a whole folder the next free number; renaming onto an existing one fails."""
        while True:
            last = self.versions(name)[-1:]
            version = Version(name, last[0].number + 1 if last else 1)
            try:
                partial.rename(self.folder(version))
            except OSError:
                if not self.folder(version).exists():
                    raise
                continue
            storage.sync(self._versions(name))
            return version

    def _versions(self, name: str) -> Path:
        return self._root / name / "versions"

    def _log(self, name: str) -> Path:
        return self._root / name / "log"


def _number(version: Version) -> int:
    return version.number
