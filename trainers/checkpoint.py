"""Checkpoints to resume from: every file's digest in a manifest written last."""

import json
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainers import manifest

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


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


def directory_of(root: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps belongs."""
    return root / f"step-{step:09d}"


def seal(directory: Path, *, step: int, state: dict[str, Any]) -> None:
    """Make a written folder a checkpoint: called once, after all ranks have written."""
    files = manifest.describe(directory)
    content = {"schema_version": 1, "step": step, "state": state, "files": files}
    partial = directory / f".{MANIFEST}"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(directory / MANIFEST)


def newest(roots: Iterable[Path]) -> Checkpoint | None:
    """The checkpoint of most steps under `roots` whose every byte is as it was written."""
    found = {path.parent for root in roots for path in root.glob(f"step-*/{MANIFEST}")}
    for directory in sorted(found, key=lambda path: path.name, reverse=True):
        try:
            content = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
            damaged = manifest.first_damage(directory, content["files"])
        except (ValueError, KeyError, TypeError) as error:
            logger.warning(
                "checkpoint %s is not used: its manifest is damaged: %s", directory, error
            )
            continue
        if damaged is None:
            return Checkpoint(directory, content["step"], content["state"])
        logger.warning("checkpoint %s is not used: %s", directory, damaged)
    return None


def prune(root: Path, keep: int) -> list[Path]:
    """Remove all but the `keep` newest checkpoints; the folders that are gone."""
    complete = sorted(path.parent for path in root.glob(f"step-*/{MANIFEST}"))
    for directory in complete[:-keep]:
        shutil.rmtree(directory)
    return complete[:-keep]
