"""Work on shards: each one cluster task, done once whatever dies around it."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from trainers import manifest
from workflows.artifacts import WORK
from workflows.execution import StageContext
from workflows.storage import Storage

logger = logging.getLogger(__name__)

_SHARDS = "shards"
_RECORD = ".json"

Result = TypeVar("Result")


class ShardItem(Protocol):
    """What a function of a shard needs: a dataclass with the folder that it writes to."""

    @property
    def directory(self) -> Path:
        """Its own, empty when the function is called."""


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A shard that is computed."""

    directory: Path
    """What the function wrote, to be read only."""
    result: Result


class Shards:
    """The shards of one step, in phases. What an earlier attempt has done is not done again."""

    def __init__(self, context: StageContext) -> None:
        self._context, self._attempt = context, context.attempt
        self._storage = context.attempt.storage
        self._earlier = context.attempt.earlier(_SHARDS)
        self._own = f"{context.attempt.name}/{WORK}/{_SHARDS}"
        self._exchange = context.exchange(self._earlier)

    def directory(self, phase: str, number: int) -> Path:
        """The folder of one shard in one phase, for the item that `compute` is given."""
        return self._attempt.work / _SHARDS / phase / f"{number:06d}"

    def share(self, name: str) -> Path:
        """A folder for what all shards read; written before `compute` is called."""
        return self._attempt.work / _SHARDS / name

    def compute(
        self,
        phase: str,
        function: Callable[[Any], Result],
        items: Sequence[ShardItem],
        kind: type[Result],
    ) -> list[Done[Result]]:
        """`function(item)` for each item that is not done yet, each in a cluster task.

        A function writes files to `item.directory` and returns a `kind`, a dataclass of plain
        values. Both count once its record is there, which is written last; a shard whose worker is
        lost is computed again alone.
        """
        if not self._storage.is_local:
            self._storage.upload(self._attempt.work, f"{self._attempt.name}/{WORK}")
        done = self._found(phase, kind)
        missing = [number for number in range(len(items)) if number not in done]
        run = self._context.run
        results = run.cluster.map(
            _Recorded(
                self._exchange.mapped(_Described(function)), self._storage, f"{self._own}/{phase}"
            ),
            [(number, items[number]) for number in missing],
            run.execution.shards,
            self._context.log.with_suffix(f".{phase}.log"),
        )
        done |= {
            number: Done(items[number].directory, result)
            for number, result in zip(missing, results, strict=True)
        }
        return [done[number] for number in range(len(items))]

    def place(self, done: Done[Any], file: str, name: str) -> None:
        """Make a file of a shard a file of the step's output; the shard stays as it is."""
        source, target = done.directory / file, self._context.output / name
        if not self._storage.is_local:  # it was written on another node
            folders = {self._attempt.work / _SHARDS: self._own, **self._earlier}
            (folder,) = [folder for folder in folders if folder in source.parents]
            stored = f"{folders[folder]}/{source.relative_to(folder).as_posix()}"
            target.write_bytes(self._storage.read(stored))
            return
        try:
            target.hardlink_to(source)
        except OSError:  # not every file system has links
            shutil.copyfile(source, target)

    def _found(self, phase: str, kind: type[Result]) -> dict[int, Done[Result]]:
        """The shards that earlier attempts have computed and whose files are whole."""
        found: dict[int, Done[Result]] = {}
        for folder, name in self._earlier.items():
            stored = f"{name}/{phase}"
            files = self._storage.find(stored)
            records = [n for n in files if n.endswith(_RECORD) and "/" not in n]
            read = self._storage.read_all(f"{stored}/{record}" for record in records)
            for path, content in read.items():
                shard = path.rpartition("/")[2].removesuffix(_RECORD)
                result = self._whole(folder / phase / shard, shard, content, files)
                if result is not None:
                    number = int(shard)
                    found.setdefault(number, Done(folder / phase / shard, kind(**result)))
        return found

    def _whole(
        self, directory: Path, shard: str, record: bytes, files: Mapping[str, int]
    ) -> dict[str, Any] | None:
        """What a shard's function returned, if its record and its files are as they were written.

        Of an object store sizes are compared: its files appear whole or not at all.
        """
        try:
            content = json.loads(record)
        except ValueError:
            return None
        for file, facts in content["files"].items():
            if files.get(f"{shard}/{file}") != facts["size"]:
                return None
        if self._storage.is_local and manifest.first_damage(directory, content["files"]):
            return None
        result: dict[str, Any] = content["result"]
        return result


@dataclass(frozen=True)
class _Described:
    """Also tells which files the function wrote."""

    function: Callable[[Any], Any]

    def __call__(self, item: Any) -> tuple[Any, dict[str, Any]]:
        shutil.rmtree(item.directory, ignore_errors=True)  # of a worker that was lost
        item.directory.mkdir(parents=True)
        return self.function(item), manifest.describe(item.directory)


@dataclass(frozen=True)
class _Recorded:
    """What the cluster calls: writes a shard's record once its files are in the storage."""

    function: Callable[[Any], tuple[Any, dict[str, Any]]]
    storage: Storage
    folder: str

    def __call__(self, job: tuple[int, Any]) -> Any:
        number, item = job
        logger.info("shard %d begins", number)
        result, files = self.function(item)
        record = {"result": dataclasses.asdict(result), "files": files}
        self.storage.write(f"{self.folder}/{number:06d}{_RECORD}", json.dumps(record).encode())
        logger.info("shard %d is done: %s", number, result)
        return result
