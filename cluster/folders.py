"""Folders that every node sees, local or in an object store, for code that knows paths alone."""

import contextlib
import tempfile
from collections.abc import Callable
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
        for path in Path(here).rglob("*"):
            if path.is_file():
                files.put_file(str(path), f"{place}/{path.relative_to(here).as_posix()}")


def read(url: str, load: Callable[[Path], None]) -> None:
    """Have `load` read the files of a folder or URL."""
    files, place = fsspec.url_to_fs(url, use_listings_cache=False)
    if isinstance(files, LocalFileSystem):
        load(Path(place))
        return
    with tempfile.TemporaryDirectory() as here:
        files.get(f"{place}/", f"{here}/", recursive=True)
        load(Path(here))


def remove(url: str) -> None:
    """Remove a folder or URL with all in it, if it is there."""
    files, place = fsspec.url_to_fs(url, use_listings_cache=False)
    with contextlib.suppress(FileNotFoundError):
        files.rm(place, recursive=True)
