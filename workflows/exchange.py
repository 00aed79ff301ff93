"""Work on other nodes than its step's: what it reads is fetched there, what it writes comes back.

Only an object store needs this: in a folder that all nodes see, all read and write in place.
"""

import dataclasses
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster.cache import cache_folder
from trainers.checkpoint import Share
from trainers.reporting import Reporter
from workflows.artifacts import OUTPUT, WORK
from workflows.storage import Storage

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Exchange:
    """Makes a function of a dataclass with paths run on any node. Picklable.

    On the node where it runs, paths of inputs become paths of copies there, and paths in the
    attempt's folder become paths in a folder of that process' own, so that nobody ever sees a file
    half written. What is written there is uploaded when the function ends.
    """

    storage: Storage
    attempt: str
    """Name of the attempt's folder in the storage."""
    directory: Path
    """The same on the step's node."""
    inputs: Mapping[Path, str]
    """Names in the storage of the folders that are read, by their path on the step's node."""

    def mapped(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """The function for `Cluster.map` or `map_on_gangs`; its first argument is the item."""
        return function if self.storage.is_local else _Elsewhere(self, function)

    def rank(
        self, function: Callable[[Item, Share | None, Reporter], None], work: Item
    ) -> Callable[[Reporter], None]:
        """The function for `Cluster.run_gang`."""
        return _Rank(self, function, work)

    def collect(self, folder: Path) -> None:
        """Bring what was written elsewhere in a folder of the attempt to the step's node."""
        if not self.storage.is_local:
            self.storage.download(f"{self.attempt}/{folder.relative_to(self.directory)}", folder)

    @contextmanager
    def desk(self, item: Item) -> Iterator[tuple[Item, "_Desk"]]:
        """The item with this node's paths, for as long as it is worked on."""
        folder = cache_folder() / "desks" / uuid.uuid4().hex
        desk = _Desk(self, folder)
        for part in (OUTPUT, WORK):
            (folder / part).mkdir(parents=True)
        try:
            yield desk.relocated(item), desk
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Desk:
    """A folder of one process' own that stands for the attempt's; implements `Share`."""

    exchange: Exchange
    folder: Path

    def relocated(self, item: Item) -> Item:
        """The item with all its paths on this node, and what the storage has of them there."""
        assert dataclasses.is_dataclass(item)
        found: dict[str, Any] = {}
        for field in dataclasses.fields(item):
            value = getattr(item, field.name)
            if isinstance(value, Path):
                found[field.name] = self._here(value)
            elif isinstance(value, tuple) and all(isinstance(part, Path) for part in value):
                found[field.name] = tuple(self._here(part) for part in value)
        return dataclasses.replace(item, **found)  # type: ignore[type-var]

    def push(self, folder: Path) -> None:
        """Upload a folder's files."""
        self.exchange.storage.upload(folder, self._name(folder))

    def pull(self, folder: Path) -> None:
        """Fetch the files of a folder that others have uploaded."""
        self.exchange.storage.download(self._name(folder), folder)

    def remove(self, folder: Path) -> None:
        """Remove a folder that others may have uploaded."""
        self.exchange.storage.delete(self._name(folder))

    def push_all(self) -> None:
        """Upload all that was written here.

        Folder by folder: the whole attempt may have very many files, which would all be listed.
        """
        written = {path.parent for path in self.folder.rglob("*") if path.is_file()}
        for folder in written:
            if not written & set(folder.parents):
                self.push(folder)

    def _name(self, folder: Path) -> str:
        relative = folder.relative_to(self.folder).as_posix()
        return self.exchange.attempt if relative == "." else f"{self.exchange.attempt}/{relative}"

    def _here(self, path: Path) -> Path:
        for root, name in self.exchange.inputs.items():
            if path == root or root in path.parents:
                return self.exchange.storage.fetched(name) / path.relative_to(root)
        if self.exchange.directory in path.parents:
            here = self.folder / path.relative_to(self.exchange.directory)
            here.parent.mkdir(parents=True, exist_ok=True)
            if here.relative_to(self.folder).parts[0] == WORK:
                self.pull(here)  # what is in the output is written once and not read
            return here
        return path  # the user's own: all nodes must see it


@dataclass(frozen=True)
class _Elsewhere:
    """What `Cluster.map` or `map_on_gangs` calls on some node."""

    exchange: Exchange
    function: Callable[..., Any]

    def __call__(self, item: Any, *more: Any) -> Any:
        with self.exchange.desk(item) as (here, desk):
            result = self.function(here, *more)
            desk.push_all()
        return result


@dataclass(frozen=True)
class _Rank:
    """What `Cluster.run_gang` calls on each rank."""

    exchange: Exchange
    function: Callable[[Any, Share | None, Reporter], None]
    work: Any

    def __call__(self, reporter: Reporter) -> None:
        if self.exchange.storage.is_local:
            self.function(self.work, None, reporter)
            return
        with self.exchange.desk(self.work) as (here, desk):
            self.function(here, desk, reporter)
            desk.push_all()
