"""Where everything is kept: a folder or an object store. The one module that knows which."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fsspec

from cluster.cache import cache_folder
from trainers import manifest
from workflows import failpoints

PROTOCOLS = {"s3": "s3", "gs": "gcs", "abfs": "azure"}
"""Object stores by URL scheme, with the extra that installs their client."""

_SCHEME = re.compile(r"^(?P<scheme>[a-z0-9]+)://")
_PARTIAL = ".partial-"


class AlreadyExistsError(FileExistsError):
    """Somebody else created the file first."""


class StorageError(OSError):
    """The storage cannot be read or written; the message says where, why and what to do."""


def scheme_of(place: str) -> str | None:
    """The URL scheme of a place; None for a local path."""
    found = _SCHEME.match(place)
    return found["scheme"] if found else None


def key_of(url: str) -> str:
    """A file name for a URL."""
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def is_partial(name: str) -> bool:
    """Whether a file's name is that of a write that never ended."""
    return name.rpartition("/")[2].startswith(_PARTIAL)


@dataclass(frozen=True)
class Storage:
    """Named bytes below a root. Names are relative paths with `/`. Picklable.

    What `create` returned from survives a crash of the machine (local files and their folders are
    fsynced; object stores promise it).
    """

    root: str
    """Absolute folder, or URL."""

    @classmethod
    def at(cls, place: str | Path) -> "Storage":
        """The storage at a folder or URL.

        Raises:
            StorageError: its client is not installed.
        """
        text = str(place)
        scheme = scheme_of(text)
        if scheme is None:
            return cls(str(Path(text).absolute()))
        if scheme not in PROTOCOLS:
            raise StorageError(
                f"{text}: unknown kind of storage; give a folder or one of "
                + ", ".join(f"{known}://" for known in PROTOCOLS)
            )
        try:
            fsspec.get_filesystem_class(scheme)
        except ImportError as error:
            extra = PROTOCOLS[scheme]
            raise StorageError(
                f"{text}: {error}; install it with pip install 'pretune[{extra}]'"
            ) from error
        return cls(text.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether it is a folder that this machine's processes open as files."""
        return scheme_of(self.root) is None

    def url(self, name: str) -> str:
        """The absolute path or URL of a name, for libraries that take either."""
        return f"{self.root}/{name}"

    def path(self, name: str) -> Path:
        """The file of a name in a local storage."""
        assert self.is_local, f"{self.root} has no local files"
        return Path(self.root, name)

    def create(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Create a file with its whole content, unless it exists.

        The content is complete before the name appears: a crash leaves no file or the whole file.
        It must be the caller's own, with something in it that nobody else writes.

        Raises:
            AlreadyExistsError: there is such a file; it is unchanged.
        """
        with self._told(name, "written"):
            if self.is_local:
                _create_local(self.path(name), content, durable=durable)
                return
            try:
                self._files.pipe_file(self.url(name), content, mode="create")
            except FileExistsError as error:
                # A client repeats a call whose answer was lost: then the file is its own.
                if self._files.cat_file(self.url(name)) != content:
                    raise AlreadyExistsError(self.url(name)) from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file whether it exists or not; readers see the old content or the new."""
        with self._told(name, "written"):
            if not self.is_local:
                self._files.pipe_file(self.url(name), content)
                return
            path = self.path(name)
            with _partial(path) as partial:
                partial.write_bytes(content)
                partial.replace(path)

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._told(name, "read"):
            if self.is_local:
                return self.path(name).read_bytes()
            return bytes(self._files.cat_file(self.url(name)))

    def open(self, name: str) -> Any:
        """A file's bytes, to be read piece by piece."""
        is_local = self.is_local
        return self.path(name).open("rb") if is_local else self._files.open(self.url(name), "rb")

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """The contents of those files that exist, by name."""
        wanted, found = list(names), {}
        if self.is_local:
            for name in wanted:
                with contextlib.suppress(FileNotFoundError):
                    found[name] = self.read(name)
            return found
        urls = {self._files._strip_protocol(self.url(name)): name for name in wanted}  # noqa: SLF001
        with self._told(wanted[0] if wanted else "", "read"):
            contents = self._files.cat(list(urls), on_error="return") if urls else {}
            for content in contents.values():
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        found = {urls[url]: c for url, c in contents.items() if isinstance(c, bytes)}
        return {name: found[name] for name in wanted if name in found}

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        with self._told(name, "read"):
            return (
                self.path(name).is_file() if self.is_local else self._files.isfile(self.url(name))
            )

    def names(self, folder: str, begin: str = "") -> list[str]:
        """Names of the files and folders directly in a folder, sorted; none where it is missing.

        Args:
            folder: in the storage.
            begin: of the names; with it, of a folder that has no folders.
        """
        with self._told(folder, "read"):
            if self.is_local:
                try:
                    found = [entry.name for entry in os.scandir(self.path(folder))]
                    return sorted(name for name in found if name.startswith(begin))
                except FileNotFoundError:
                    return []
            try:
                # An object store can list by a name's beginning, and then lists nothing else.
                url = self.url(folder)
                found = self._files.find(url, prefix=begin) if begin else self._files.ls(url, False)
            except FileNotFoundError:
                return []
            return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def find(self, folder: str) -> dict[str, int]:
        """Sizes in bytes of all files below a folder, by name relative to it."""
        with self._told(folder, "read"):
            if self.is_local:
                root = self.path(folder)
                return {
                    path.relative_to(root).as_posix(): path.stat().st_size
                    for path in sorted(root.rglob("*"))
                    if path.is_file()
                }
            root_path = self._files._strip_protocol(self.url(folder))  # noqa: SLF001
            found: Mapping[str, Mapping[str, Any]] = self._files.find(root_path, detail=True)
            return {
                path.removeprefix(f"{root_path}/"): int(facts["size"])
                for path, facts in found.items()
                if ".." not in path.split("/")  # which leads out of whatever it is copied to
            }

    def size(self, name: str) -> int:
        """Bytes of a file, or of all files in a folder; 0 where there is none."""
        if self.is_local and self.path(name).is_file():
            return self.path(name).stat().st_size
        return sum(self.find(name).values())

    def upload(self, source: Path, folder: str) -> None:
        """Copy the files below a local folder into a folder of an object store.

        A file that is there with the same size is taken for the same.
        """
        known = self.find(folder)
        names = {path: path.relative_to(source).as_posix() for path in source.rglob("*")}
        files = {
            str(path): self.url(f"{folder}/{name}")
            for path, name in names.items()
            if path.is_file() and known.get(name) != path.stat().st_size
        }
        with self._told(folder, "written"):
            if files:
                self._files.put(list(files), list(files.values()))

    def download(self, folder: str, target: Path) -> None:
        """Copy the files below a folder of an object store into a local folder.

        A file that is there with the same size is taken for the same.
        """
        files = {
            self.url(f"{folder}/{name}"): target / name
            for name, size in self.find(folder).items()
            if not (target / name).is_file() or (target / name).stat().st_size != size
        }
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._told(folder, "read"):
            if files:
                self._files.get(list(files), [str(path) for path in files.values()])

    def place(self, folder: str) -> Path:
        """Where `fetched` puts a folder on this node."""
        if self.is_local:
            return self.path(folder)
        return cache_folder() / "fetched" / key_of(self.url(folder))

    def fetched(self, folder: str) -> Path:
        """A folder that never changes, on this node: itself, or a copy of an object store's."""
        copy = self.place(folder)
        if not self.is_local and not copy.is_dir():
            partial = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}")
            partial.mkdir(parents=True)
            self.download(folder, partial)
            try:
                partial.rename(copy)
            except OSError:  # another process of this node was faster
                shutil.rmtree(partial)
        return copy

    def damage(self, folder: str, files: Mapping[str, Mapping[str, Any]]) -> str | None:
        """What differs from a manifest first in a folder that never changes; None if nothing does.

        A copy on this node that is damaged is fetched again before the storage is blamed.
        """
        damaged = manifest.first_damage(self.fetched(folder), files)
        if damaged and not self.is_local:
            shutil.rmtree(self.place(folder))
            damaged = manifest.first_damage(self.fetched(folder), files)
        return damaged

    def copy(self, source: str, target: str) -> None:
        """Copy a whole folder inside the storage."""
        with self._told(target, "written"):
            if self.is_local:
                shutil.copytree(self.path(source), self.path(target))
                return
            for name in self.find(source):
                self._files.cp_file(
                    self.url(f"{source}/{name}"),
                    self.url(f"{target}/{name}"),
                )

    def delete(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing where there is none."""
        with self._told(name, "removed"), contextlib.suppress(FileNotFoundError):
            if not self.is_local:
                self._files.rm(self.url(name), recursive=True)
            elif self.path(name).is_dir():
                shutil.rmtree(self.path(name))
            else:
                self.path(name).unlink()

    @property
    def _files(self) -> Any:
        return _filesystem(scheme_of(self.root) or "file", os.getpid())

    @contextlib.contextmanager
    def _told(self, name: str, done: str) -> Iterator[None]:
        """Turn what the system or a client raises into one message to act on."""
        try:
            yield
        except (FileExistsError, StorageError):
            raise
        except OSError as error:
            if isinstance(error, FileNotFoundError) and done == "read":
                raise
            raise StorageError(explain(error, self.url(name), done)) from error
        except Exception as error:
            if self.is_local:
                raise
            # Clients of object stores raise types of their own for credentials and connections.
            raise StorageError(
                f"{self.url(name)} cannot be {done}: {type(error).__name__}: {error}"
            ) from error


def explain(error: OSError, place: str, done: str = "written") -> str:
    """One line: the place, the cause, the free space where that is the cause, the way out."""
    cause = error.strerror or str(error) or type(error).__name__
    text = f"{place} cannot be {done}: {cause}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text} ({_free(place)}); make room and run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{text}; let this user write there, or set storage to another place"
    return text


def sync_tree(folder: Path, up_to: Path) -> None:
    """Make all files below a folder durable, and the names of the folders up to `up_to`."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
    for parent in folder.parents:
        sync(parent)
        if parent == up_to:
            return


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@cache
def _filesystem(scheme: str, process: int) -> Any:  # noqa: ARG001 -- clients do not survive a fork
    # Other processes write too: a listing from memory would be wrong.
    return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)


def _create_local(path: Path, content: bytes, *, durable: bool) -> None:
    new_folders = [folder for folder in path.parents if not folder.exists()]
    with _partial(path) as partial:
        with partial.open("wb") as file:
            file.write(content)
            failpoints.reach("storage.create.written")
            if durable:
                file.flush()
                os.fsync(file.fileno())
        try:
            os.link(partial, path)
        except FileExistsError as error:
            # NFS clients repeat a call whose answer was lost: then the link is there all the same.
            if partial.stat().st_nlink == 1:
                raise AlreadyExistsError(str(path)) from error
        failpoints.reach("storage.create.linked")
    if durable:
        sync(path.parent)
        for folder in new_folders:
            sync(folder.parent)


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to first; gone at the end."""
    partial = path.parent / f"{_PARTIAL}{uuid.uuid4().hex}"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _free(place: str) -> str:
    folder = next(path for path in Path(place).parents if path.exists())
    return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB free"
