"""The files of a version: stored with their digests, and believed only as long as those hold."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers import manifest
from workflows.storage import Storage, sync_tree

MANIFEST = "MANIFEST.json"
"""Size and SHA-256 of every other file, for whoever has the folder alone."""

Files = Mapping[str, Mapping[str, Any]]
"""Size and SHA-256 by name."""

_PLAIN = {".jinja", ".json", ".md", ".model", ".parquet", ".safetensors", ".txt"}
"""Suffixes of what no reader executes: neither pickles nor archives nor code."""


class UnsafeFileError(ValueError):
    """A file could carry code, or lead out of its folder."""


def store(where: Storage, source: Path, folder: str, documents: Mapping[str, str]) -> Files:
    """Copy a folder in, with further texts by name; the manifest comes last.

    Raises:
        UnsafeFileError: names the file.
    """
    _require_plain(source)
    files: dict[str, Mapping[str, Any]] = {}
    if where.is_local:
        files |= manifest.copy(source, where.path(folder))
    else:
        files |= manifest.describe(source)
        where.upload(source, folder)
    for name, text in documents.items():
        files[name] = _written(where, f"{folder}/{name}", text)
    text = json.dumps({"schema_version": 1, "files": files}, indent=1)
    files[MANIFEST] = _written(where, f"{folder}/{MANIFEST}", text)
    if where.is_local:
        sync_tree(where.path(folder), up_to=Path(where.root))
    return files


def fetched(where: Storage, folder: str, files: Files) -> tuple[Path, str | None]:
    """The folder on this machine, and what is wrong with it; None if nothing is."""
    damage = where.damage(folder, files) or _stranger(where.fetched(folder), files)
    if damage and not where.is_local:  # of a copy that may be older than the storage
        shutil.rmtree(where.place(folder))
        damage = where.damage(folder, files) or _stranger(where.fetched(folder), files)
    return where.fetched(folder), damage


def read(where: Storage, folder: str, files: Files, name: str) -> tuple[bytes, str | None]:
    """One file's content, and what is wrong with it; None if nothing is."""
    if name not in files:
        return b"", f"it has no file {name}"
    with contextlib.suppress(FileNotFoundError):
        content = where.read(f"{folder}/{name}")
        is_whole = hashlib.sha256(content).hexdigest() == files[name]["sha256"]
        return content, None if is_whole else f"{name} has other bytes than were written"
    return b"", f"{name} is missing"


def damage(where: Storage, folder: str, files: Files) -> str | None:
    """What is wrong with the files in the storage itself; None if nothing is."""
    there = where.find(folder)
    for name, expected in files.items():
        if name not in there:
            return f"{name} is missing"
        with where.open(f"{folder}/{name}") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                return f"{name} has other bytes than were written"
    if where.is_local:
        return _stranger(where.path(folder), files)
    strangers = sorted(there.keys() - files.keys())
    return f"{strangers[0]} was not written there by pretune" if strangers else None


def is_plain(path: Path) -> bool:
    """Whether a file of this name may be part of a version."""
    return path.suffix in _PLAIN


def _require_plain(source: Path) -> None:
    for path in source.rglob("*"):
        if path.is_symlink():
            raise UnsafeFileError(f"{path} is a symbolic link; a version holds files of its own")
        if path.is_file() and not is_plain(path):
            raise UnsafeFileError(
                f"{path}: a version holds no such file, it could carry code; "
                f"it may have {', '.join(sorted(_PLAIN))}"
            )


def _stranger(folder: Path, files: Files) -> str | None:
    """What is in a version's folder and was not written there, or leads out of it."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            return f"{name} is a symbolic link"
        if path.is_file() and name not in files:
            return f"{name} was not written there by pretune"
    return None


def _written(where: Storage, name: str, text: str) -> dict[str, Any]:
    content = text.encode()
    where.write(name, content)
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
