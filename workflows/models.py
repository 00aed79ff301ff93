"""The model store: immutable versions, and a log of promotions that nobody rewrites."""

import getpass
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainers import manifest, seals
from workflows import failpoints, model_files, storage
from workflows.storage import Storage

MODELS = "models"
CHAMPION = "champion"
CANDIDATE = "candidate"
"""Alias of the newest version that the gate let through and that waits for a person."""

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
    Entries are sealed: one that is not what was written is an error.
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
        """What was written down when the version was made.

        Raises:
            ModelStoreError: it is not what was written.
        """
        place = _entry(version)
        facts = self._opened(place, self._storage.read(place))
        names = [facts["folder"], *facts["files"]]
        is_inside = facts["folder"].startswith(f"{MODELS}/{version.name}/files/")
        if not is_inside or any({"", ".."} & set(name.split("/")) for name in names):
            raise ModelStoreError(f"{version} names files outside of its folder")
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
            ModelStoreError: names the file that differs, or that nobody wrote there.
        """
        facts = self.facts(version)
        folder, damage = model_files.fetched(self._storage, facts["folder"], facts["files"])
        self._refuse(version, damage)
        return folder

    def read(self, version: Version, file: str) -> bytes:
        """One file of a version, compared with the manifest.

        Raises:
            ModelStoreError: it is missing or differs.
        """
        facts = self.facts(version)
        content, damage = model_files.read(self._storage, facts["folder"], facts["files"], file)
        self._refuse(version, damage)
        return content

    def damage(self, version: Version) -> str | None:
        """What is wrong with a version as it is in the storage; None if nothing is."""
        try:
            facts = self.facts(version)
        except ModelStoreError as error:
            return str(error)
        return model_files.damage(self._storage, facts["folder"], facts["files"])

    def champion(self, name: str) -> Version | None:
        """The version that the alias `champion` means now."""
        return _last(name, self.log(name), CHAMPION)

    def candidate(self, name: str) -> Version | None:
        """The version that waits for a person; none where a later one became champion."""
        entries = self.log(name)
        is_last = bool(entries) and entries[-1]["alias"] == CANDIDATE
        return Version(name, entries[-1]["version"]) if is_last else None

    def log(self, name: str) -> list[dict[str, Any]]:
        """All that happened to a model's aliases, oldest first.

        Raises:
            ModelStoreError: an entry is missing, or not what was written.
        """
        numbers = self._numbers(_log(name))
        if numbers != list(range(1, len(numbers) + 1)):
            raise ModelStoreError(f"{self._storage.url(_log(name))}: entries are missing")
        contents = self._storage.read_all(_log_entry(name, n) for n in numbers)
        return [self._opened(place, content) for place, content in contents.items()]

    def resolve(self, reference: str) -> Version:
        """The version that `name`, `name@champion`, `name@candidate` or `name@3` means.

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
        if which in (CHAMPION, CANDIDATE):
            found = self.champion(name) if which == CHAMPION else self.candidate(name)
            if found is None:
                raise ModelStoreError(f"{name} has no {which} now; its versions are {numbers}")
            return found
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
        more: Mapping[str, Any] | None = None,
        documents: Mapping[str, str] | None = None,
    ) -> Version:
        """Copy a model's folder in as the next version; the same training is added once.

        Args:
            name: `<pipeline>.<task>` or `<pipeline>.base`.
            source: a Hugging Face folder.
            fingerprint: of the step that made it.
            attempt: of that step; a step that was computed anew makes another version.
            task: its configuration.
            scores: on the test rows.
            more: what else is to be known of it.
            documents: further files, by name: what is written about the model.

        Raises:
            ModelStoreError: the name could leave the store, or a file could carry code.
        """
        if not _NAME.match(name):
            raise ModelStoreError(f"{name!r} is no model name; it is <pipeline>.<task>")
        found = self.added(name, attempt, (more or {}).get("promote"))
        if found is not None:
            return found
        folder = f"{MODELS}/{name}/files/{fingerprint[:12]}-{uuid.uuid4().hex[:8]}"
        try:
            files = model_files.store(self._storage, source, folder, documents or {})
        except model_files.UnsafeFileError as error:
            raise ModelStoreError(str(error)) from error
        failpoints.reach("models.add.stored")
        facts = {
            "schema_version": 3,
            "name": name,
            "folder": folder,
            "fingerprint": fingerprint,
            "attempt": attempt,
            "task": dict(task),
            "scores": dict(scores),
            "created_at": _now(),
            **(more or {}),
            "files": files,
        }
        return self._publish(name, facts)

    def added(self, name: str, attempt: str, rule: Mapping[str, Any] | None) -> Version | None:
        """The version that an attempt at a training became when it was judged by a rule."""
        for version in self.versions(name):
            facts = self.facts(version)
            if (facts["attempt"], facts.get("promote")) == (attempt, rule):
                return version
        return None

    def promote(
        self,
        version: Version,
        *,
        expected: Version | None,
        reason: str,
        run: str | None,
        how: str = "gate",
        alias: str = CHAMPION,
        judgement: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a version the champion, if the champion is still `expected`.

        Args:
            version: the new one.
            expected: the champion that it was compared with.
            reason: for people.
            run: of the pipeline; None where a person did it.
            how: `gate`, `override` or `rollback`.
            alias: `champion`, or `candidate` where a person is to say the last word.
            judgement: what it rests on.

        Raises:
            ChampionChangedError: it is another one.
        """
        entries = self.log(version.name)
        current = _last(version.name, entries, CHAMPION)
        if version in (current, _last(version.name, entries[-1:], alias)):
            return
        if current != expected:
            raise ChampionChangedError(f"{version.name}: champion is {current}, not {expected}")
        entry = {
            "schema_version": 2,
            "alias": alias,
            "version": version.number,
            "previous": expected.number if expected else None,
            "how": how,
            "reason": reason,
            "judgement": judgement,
            "run": run,
            "by": _who(),
            "promoted_at": _now(),
        }
        place = _log_entry(version.name, len(entries) + 1)
        failpoints.reach("models.promote.before")
        try:
            self._storage.create(place, seals.sealed(entry, place))
        except storage.AlreadyExistsError as error:
            raise ChampionChangedError(
                f"{version.name}: another promotion came first; see {self._storage.url(place)}"
            ) from error
        failpoints.reach("models.promote.after")

    def moved(self, version: Version) -> dict[str, Any] | None:
        """What happened last to an alias for this version's sake; None if nothing did."""
        entries = [one for one in self.log(version.name) if one["version"] == version.number]
        return entries[-1] if entries else None

    def before(self, name: str) -> Version:
        """The champion before the one that is it now, which a rollback goes back to.

        Raises:
            ModelStoreError: there was none.
        """
        champions = [one for one in self.log(name) if one["alias"] == CHAMPION]
        previous = champions[-1]["previous"] if champions else None
        if previous is None:
            raise ModelStoreError(f"{name} had no champion before; name a version with --to")
        return Version(name, previous)

    def damage_of_log(self, name: str) -> str | None:
        """What is wrong with what is written of a model's aliases; None if nothing is."""
        try:
            self.log(name)
        except ModelStoreError as error:
            return str(error)
        return None

    def pull(self, version: Version, target: Path) -> None:
        """Copy a version to a new folder, which then needs nothing of the store.

        Raises:
            ModelStoreError: the folder exists, or the version is damaged; nothing was written.
        """
        target = target.absolute()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ModelStoreError(f"{target} exists; give a new folder")
        source, files = self.verified(version), self.facts(version)["files"]
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            if manifest.copy(source, partial) != files:
                raise ModelStoreError(f"{version} changed while it was copied; pull it again")
            if target.exists():
                target.rmdir()
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def tags(self, version: Version) -> dict[str, str]:
        """What people noted about a version."""
        try:
            content = self._storage.read(_tags(version))
        except FileNotFoundError:
            return {}
        return dict(self._opened(_tags(version), content)["tags"])

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Note something about a version; an empty value takes a note back."""
        kept = {name: value for name, value in {**self.tags(version), **tags}.items() if value}
        place = _tags(version)
        self._storage.write(place, seals.sealed({"schema_version": 1, "tags": kept}, place))

    def _publish(self, name: str, facts: Mapping[str, Any]) -> Version:
        """Give what is stored the next free number."""
        while True:
            numbers = self._numbers(_versions(name))
            version = Version(name, numbers[-1] + 1 if numbers else 1)
            place = _entry(version)
            try:
                self._storage.create(place, seals.sealed(facts, place))
            except storage.AlreadyExistsError:
                continue
            failpoints.reach("models.add.published")
            return version

    def _refuse(self, version: Version, damage: str | None) -> None:
        if damage:
            raise ModelStoreError(f"{version} in {self.folder(version)} is damaged: {damage}")

    def _opened(self, place: str, content: bytes) -> dict[str, Any]:
        try:
            return seals.opened(content, place)
        except seals.BrokenSealError as error:
            raise ModelStoreError(f"{self._storage.url(place)} is damaged: {error}") from error

    def _numbers(self, folder: str) -> list[int]:
        """Numbers of the entries in a folder, ascending."""
        names = self._storage.names(folder)
        return sorted(int(n.removesuffix(".json")) for n in names if not storage.is_partial(n))


def _last(name: str, entries: list[dict[str, Any]], alias: str) -> Version | None:
    """The version that an alias means after these entries."""
    numbers = [entry["version"] for entry in entries if entry["alias"] == alias]
    return Version(name, numbers[-1]) if numbers else None


def _who() -> str:
    """Who acts, for people."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions(name: str) -> str:
    return f"{MODELS}/{name}/versions"


def _log(name: str) -> str:
    return f"{MODELS}/{name}/log"


def _entry(version: Version) -> str:
    return f"{_versions(version.name)}/{version.number:06d}.json"


def _log_entry(name: str, number: int) -> str:
    return f"{_log(name)}/{number:06d}.json"


def _tags(version: Version) -> str:
    return f"{MODELS}/{version.name}/tags/{version.number:06d}.json"
