"""Folders and files that every node sees, local or in an object store.

Whatever a store's client raises comes as an `OSError`: its own types have no base in common.
"""

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem


def write(url: str, save: Callable[[Path], None]) -> None:
    """Have `save` write files into a folder or URL, beside those that others write there."""
    files, place = fsspec.url_to_fs(url)
    if isinstance(files, LocalFileSystem):
        Path(place).mkdir(parents=True, exist_ok=True)
        save(Path(place))
        return
    with tempfile.TemporaryDirectory() as here:
        save(Path(here))
        with _told():
            for path in Path(here).rglob("*"):
                if path.is_file():
                    files.put_file(str(path), f"{place}/{path.relative_to(here).as_posix()}")


def read(url: str, load: Callable[[Path], None]) -> None:
    """Have `load` read the files of a folder or URL.

    Raises:
        FileNotFoundError: there is none.
    """
    files, place = fsspec.url_to_fs(url, use_listings_cache=False)
    if isinstance(files, LocalFileSystem):
        load(Path(place))
        return
    with tempfile.TemporaryDirectory() as here:
        with _told():
            files.get(f"{place}/", f"{here}/", recursive=True)
        load(Path(here))


def exists(url: str) -> bool:
    """Whether there is such a folder."""
    files, place = fsspec.url_to_fs(url, use_listings_cache=False)
    with _told():
        return bool(files.exists(place))


def remove(url: str) -> None:
    """Remove a folder or URL with all in it, if it is there."""
    files, place = fsspec.url_to_fs(url, use_listings_cache=False)
    with contextlib.suppress(FileNotFoundError), _told():
        files.rm(place, recursive=True)


def write_file(url: str, content: bytes) -> None:
    """Write a file; readers see the old content or the new."""
    files, place = fsspec.url_to_fs(url)
    if not isinstance(files, LocalFileSystem):
        with _told():
            files.pipe_file(place, content)
        return
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{place}.{uuid.uuid4().hex}")
    partial.write_bytes(content)
    partial.replace(place)


def read_file(url: str) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: there is none.
    """
    files, place = fsspec.url_to_fs(url, use_listings_cache=False)
    with _told():
        return bytes(files.cat_file(place))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # a border: clients raise types of their own
        raise OSError(f"{type(error).__name__}: {error}") from error
