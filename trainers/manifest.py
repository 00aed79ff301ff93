"""What a folder's files were when they were written, and whether they still are."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 18
"""Copied at once. Of a megabyte the copy took three times as long on ext4; of 64 to 512 kB, what
copying in the kernel and hashing the copy takes."""


def describe(directory: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of every file below a folder, by relative path."""
    return {
        path.relative_to(directory).as_posix(): {
            "size": path.stat().st_size,
            "sha256": digest_of(path),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def copy(source: Path, target: Path) -> dict[str, dict[str, Any]]:
    """Copy every file below a folder into a new one; what `describe` says of it, read once."""
    target.mkdir(parents=True)
    return {
        path.relative_to(source).as_posix(): _copied(path, target / path.relative_to(source))
        for path in sorted(source.rglob("*"))
        if path.is_file()
    }


def _copied(source: Path, target: Path) -> dict[str, Any]:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            digest.update(buffer[:count])
            written = 0
            while written < count:
                written += writer.write(buffer[written:count])
            size += count
    return {"size": size, "sha256": digest.hexdigest()}


def first_damage(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What differs from a description first: missing, of another size, of other bytes; or None."""
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if digest_of(path) != expected["sha256"]:
            return f"{name} has other bytes than were written"
    return None


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
