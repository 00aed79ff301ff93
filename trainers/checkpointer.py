"""One rank's checkpoints: when which file is written, sealed, found and loaded, over all ranks."""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from trainers import checkpoint
from trainers.checkpoint import Checkpoint, Share
from trainers.engine import Engine, Ranks
from trainers.errors import DataError
from trainers.pretrain_config import CheckpointConfig
from trainers.snapshot import Facts, SnapshotError, Snapshots

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_CONVERTED = "universal"
_LOOK_EVERY_S = 0.05
_LOOK_ELSEWHERE_EVERY_S = 1.0


class Checkpointer:
    """One rank's checkpoints: written in the background, verified, kept or removed, found again.

    No background thread takes part in a collective: each rank says in a file what it has written,
    and rank 0 seals the checkpoint when all have.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        root: Path,
        earlier: Sequence[Path],
        ranks: Ranks,
        config: CheckpointConfig,
        share: Share | None,
    ) -> None:
        self._engine, self._ranks, self._config, self._share = engine, ranks, config, share
        self._root, self._roots = root, [root, *earlier]
        self._snapshots = Snapshots()
        self._saving_s = 0.0
        self._is_abandoned = False
        self.saved_step: int | None = None
        """Of the newest checkpoint that is whole and sealed, as rank 0 knows it."""
        engine.before_update = self._snapshots.wait_until_copied

    @property
    def stall_s(self) -> float:
        """Seconds that checkpoints have kept the training loop waiting so far."""
        return self._saving_s + self._snapshots.stall_s

    def newest(self, before_step: int | None = None) -> Checkpoint | None:
        """The checkpoint of most steps, below `before_step`, whose every byte is intact.

        None where there is no checkpoint. Collective: rank 0 chooses for all.

        Raises:
            checkpoint.CheckpointError: there are some and none is intact.
        """
        self.finish()
        found = self._from_first(self._candidates(before_step))
        for place, name in found:
            directory = self._roots[place] / name
            if self._share and place == 0:
                self._share.pull(directory)
            reasons = [reason for reason in self._from_all(self._damage(directory)) if reason]
            if not reasons:
                content = self._from_first(checkpoint.read(directory) if self._is_first else None)
                assert content is not None
                return Checkpoint(directory, content.step, content.state)
            if self._is_first:
                logger.warning("checkpoint %s is not used: %s", directory, reasons[0])
        if found:
            raise checkpoint.no_intact_one([self._roots[place] / name for place, name in found])
        return None

    def load(self, found: Checkpoint) -> None:
        """Go on from a checkpoint, by whatever number of ranks it was written. Collective.

        Raises:
            DataError: it was written with other settings than this engine's.
        """
        self.finish()
        state = found.state
        if state["engine"] != self._engine.layout:
            raise DataError(
                f"{found.directory} was written with {_told(state['engine'])}, and training now "
                f"has {_told(self._engine.layout)}; set that back, or remove the folder to train "
                "from the start"
            )
        if state["world_size"] == self._ranks.world_size:
            self._engine.load(found.directory)
            return
        converts = self._is_first or self._share is not None
        converted = self._root / _CONVERTED
        if converts:
            shutil.rmtree(converted, ignore_errors=True)
        self._engine.load_of_others(found.directory, converted, converts=converts)
        if converts:
            shutil.rmtree(converted, ignore_errors=True)
        if self._is_first:
            numbers = state["world_size"], self._ranks.world_size
            logger.info("a checkpoint of %d workers was loaded by %d", *numbers)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin a checkpoint; training may go on when this returns. Collective.

        `state` is what JSON can hold; a `validation_loss` in it makes the best one stay.
        """
        started = time.monotonic()
        directory = checkpoint.directory_of(self._root, step)
        self.finish()
        with self._agreed():
            if self._is_first or self._share:
                checkpoint.remove(directory)  # a killed or rolled back training's
                directory.mkdir(parents=True)
            if self._is_first and self._share:
                self._share.remove(directory)
        self._engine.save(directory, self._snapshots.add)
        world = {"world_size": self._ranks.world_size, "engine": dict(self._engine.layout)}
        frozen = json.loads(json.dumps({**world, **state}))  # lists in it may grow
        self._snapshots.begin(
            directory,
            partial(self._tell, directory),
            partial(self._seal, directory, step, frozen) if self._is_first else None,
        )
        self._saving_s += time.monotonic() - started

    def finish(self) -> None:
        """Wait until what was begun is durable and sealed, for all ranks. Collective.

        Raises:
            SnapshotError: a checkpoint could not be written on some rank.
        """
        try:
            with self._agreed():  # first each its part: rank 0 waits for those of all
                self._snapshots.wait_until_written()
        except Exception:
            self._is_abandoned = True
            raise
        with self._agreed():
            self._snapshots.finish()

    def close(self, timeout_s: float = 10.0) -> None:
        """Let what was begun become a checkpoint, if it soon does. For the end by an error."""
        self._snapshots.join(timeout_s)
        self._is_abandoned = True

    @property
    def _is_first(self) -> bool:
        return self._ranks.rank == 0

    def _candidates(self, before_step: int | None) -> list[tuple[int, str]]:
        """Place of the root and name of sealed folders, newest first."""
        limit = None if before_step is None else checkpoint.directory_of(self._root, before_step)
        found = [
            (place, directory.name)
            for place, root in enumerate(self._roots)
            for directory in checkpoint.sealed(root)
            if limit is None or directory.name < limit.name
        ]
        return sorted(found, key=lambda one: one[1], reverse=True)

    def _damage(self, directory: Path) -> str | None:
        return checkpoint.damage(directory) if self._is_first or self._share else None

    def _tell(self, directory: Path, files: Facts) -> None:
        """Say what this rank has written. In the background."""
        if self._share:
            self._share.push(directory)
        checkpoint.write_part(directory, self._ranks.rank, files)
        if self._share:
            self._share.push(directory / checkpoint.PARTS)
            if not self._is_first:  # or all would stay here: only rank 0 prunes
                checkpoint.remove(directory)

    def _seal(self, directory: Path, step: int, state: Mapping[str, Any]) -> None:
        """Make it a checkpoint when all have written. In the background of rank 0."""
        while (parts := checkpoint.parts(directory, self._ranks.world_size)) is None:
            if self._is_abandoned:
                return
            time.sleep(_LOOK_ELSEWHERE_EVERY_S if self._share else _LOOK_EVERY_S)
            if self._share:
                self._share.pull(directory / checkpoint.PARTS)
        checkpoint.seal(directory, step=step, state=state, files=parts)
        if self._share:
            self._share.push(directory)
        for old in checkpoint.prune(self._root, self._config, newest_step=step):
            if self._share:
                self._share.remove(old)
        self.saved_step = step
        logger.info("saved checkpoint %s", directory)

    @contextlib.contextmanager
    def _agreed(self) -> Iterator[None]:
        """Raise on all ranks what is raised on one, so that none waits for another in vain."""
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        told = self._from_all(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, text in enumerate(told):
            if text is not None:
                raise SnapshotError(f"rank {rank}: {text}")

    def _from_first(self, value: Value) -> Value:
        if not dist.is_initialized():
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _from_all(self, value: Value) -> list[Value]:
        if not dist.is_initialized():
            return [value]
        box: list[Any] = [None] * self._ranks.world_size
        dist.all_gather_object(box, value)
        return box


def _told(layout: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in layout.items())
