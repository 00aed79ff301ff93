"""Files that must appear whole, at most once, and stay: the one module that knows how."""

import os
import uuid
from pathlib import Path


class AlreadyExistsError(FileExistsError):
    """Somebody else created the file first."""


def create(path: Path, content: bytes) -> None:
    """Create a file with its whole content, durably, unless it exists.

    The content is complete before the name appears: a crash leaves no file or the whole file.

    Raises:
        AlreadyExistsError: there is such a file; it is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)
    except FileExistsError as error:
        raise AlreadyExistsError(str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
