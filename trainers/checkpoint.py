"""Checkpoints to resume from, as folders: files, each rank's part, and the manifest, last.

A folder without a manifest is no checkpoint, and the manifest is sealed: one bit that differs is
damage. All that is needed to go on exactly is in it: weights and optimizer (and loss scale) in the
engine's files, the rest in the manifest's `state`. State of random generators is not: `loop.train`
seeds every step from (seed, step, rank).
"""

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainers import manifest, seals
from trainers.pretrain_config import CheckpointConfig

MANIFEST = "manifest.json"
PARTS = "parts"


class CheckpointError(RuntimeError):
    """There are checkpoints, and none can be used."""


class Share(Protocol):
    """Where ranks that see no common folder put a checkpoint's files together."""

    def push(self, folder: Path) -> None:
        """Give this rank's files of a folder to the others."""

    def pull(self, folder: Path) -> None:
        """Take what the others gave of a folder."""

    def remove(self, folder: Path) -> None:
        """Remove what was given of a folder."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint whose bytes were checked."""

    directory: Path
    step: int
    state: dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """What retention knows of a checkpoint."""

    step: int
    validation_loss: float | None


def directory_of(root: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps belongs."""
    return root / f"step-{step:09d}"


def write_part(directory: Path, rank: int, files: Mapping[str, Any]) -> None:
    """Say durably what files a rank has written."""
    (directory / PARTS).mkdir(exist_ok=True)
    _write_durably(_part(directory, rank), json.dumps(files, indent=1).encode())
    sync_folder(directory)


def parts(directory: Path, world_size: int) -> dict[str, Any] | None:
    """The files that all ranks have written; None while one of them has not."""
    paths = [_part(directory, rank) for rank in range(world_size)]
    if not all(path.is_file() for path in paths):
        return None
    files: dict[str, Any] = {}
    for path in paths:
        files |= json.loads(path.read_text(encoding="utf-8"))
    return files


def seal(directory: Path, *, step: int, state: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Make a written folder a checkpoint: called once, after all ranks have written."""
    told = manifest.describe(directory / PARTS)
    all_files = {**files, **{f"{PARTS}/{name}": facts for name, facts in told.items()}}
    content = {"schema_version": 2, "step": step, "state": state, "files": all_files}
    _write_durably(directory / MANIFEST, seals.sealed(content, directory.name))
    sync_folder(directory.parent)


def sealed(root: Path) -> list[Path]:
    """Folders under `root` that have a manifest, newest first."""
    return sorted((path.parent for path in root.glob(f"step-*/{MANIFEST}")), reverse=True)


def damage(directory: Path) -> str | None:
    """Why a sealed folder cannot be used; None where every byte is as it was written."""
    try:
        return manifest.first_damage(directory, _content(directory)["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest is damaged: {error}"


def read(directory: Path) -> Checkpoint:
    """A checkpoint that was found undamaged."""
    content = _content(directory)
    return Checkpoint(directory, content["step"], content["state"])


def retained(found: Sequence[Kept], config: CheckpointConfig) -> set[int]:
    """The steps whose checkpoints stay: the newest, the best and the permanent ones."""
    steps = sorted(kept.step for kept in found)
    stay = set(steps[-config.keep :])
    scored = [(k.validation_loss, k.step) for k in found if k.validation_loss is not None]
    if scored:
        stay.add(min(scored)[1])
    if config.permanent_every_steps:
        stay |= {step for step in steps if step % config.permanent_every_steps == 0}
    return stay


def prune(root: Path, config: CheckpointConfig, *, newest_step: int) -> list[Path]:
    """Remove what need not stay once `newest_step` is sealed; the folders that are gone.

    Those of later steps were left behind when training went back, those without a manifest when
    a writer was killed.
    """
    found = {path: _kept(path) for path in sealed(root)}
    known = [kept for kept in found.values() if kept and kept.step <= newest_step]
    stay = retained(known, config)
    gone = []
    for directory in root.glob("step-*"):
        kept = found.get(directory)
        if kept is None or kept.step not in stay:
            remove(directory)
            gone.append(directory)
    return gone


def remove(directory: Path) -> None:
    """Remove a folder; the manifest first, so that what is left is no checkpoint."""
    (directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def no_intact_one(directories: Collection[Path]) -> CheckpointError:
    """The error where there are checkpoints and all are damaged."""
    names = ", ".join(str(directory) for directory in directories)
    return CheckpointError(
        f"no checkpoint is intact, and training does not begin anew by itself: remove {names} "
        "to train from the start, or bring back their files"
    )


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kept(directory: Path) -> Kept | None:
    try:
        content = _content(directory)
        return Kept(content["step"], content["state"].get("validation_loss"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _content(directory: Path) -> dict[str, Any]:
    return seals.opened((directory / MANIFEST).read_bytes(), directory.name)


def _part(directory: Path, rank: int) -> Path:
    return directory / PARTS / f"rank-{rank:05d}.json"


def _write_durably(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    sync_folder(path.parent)
