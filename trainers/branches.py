"""Models that a training decays to on its way: see `schedules.legs`."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers import manifest
from trainers.checkpoint import Share
from trainers.schedules import Leg

PUBLISHED = "branch.json"
"""Beside a branch's model, written when that is whole: its facts and what its files are."""

_FOLDER = "branches"


class Branches:
    """Keeps them beside the checkpoints until the training ends, then in its output."""

    def __init__(self, root: Path, earlier: Sequence[Path], share: Share | None) -> None:
        """`earlier` are the checkpoints of attempts before this one."""
        self._root, self._roots, self._share = root, [root, *earlier], share
        self.facts: list[dict[str, Any]] = []
        """Of each that is done: steps, measures and folder in the output."""

    @property
    def done(self) -> set[int]:
        """Steps at which those that are done left the trunk."""
        return {int(branch["start_step"]) for branch in self.facts}

    def folder(self, start_step: int) -> Path:
        """An empty folder for the model of a branch."""
        folder = self._root / folder_of(start_step)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def add(self, leg: Leg, measures: Mapping[str, float], *, is_written: bool) -> None:
        """A branch is done; where this rank has written its model, others may see it."""
        name = folder_of(leg.start_step)
        steps = {"start_step": leg.start_step, "stop_step": leg.stop_step}
        facts = {**steps, "folder": name, **measures}
        if is_written:
            _publish(self._root / name, facts)
            if self._share:
                self._share.push(self._root / name)
        self.facts.append(facts)

    def restore(self, facts: Sequence[Mapping[str, Any]]) -> None:
        """Take over what a checkpoint says; what this training did since then stays done."""
        known = {int(branch["start_step"]) for branch in facts}
        since = [branch for branch in self.facts if branch["start_step"] not in known]
        self.facts = [*map(dict, facts), *since]

    def collect(self, output: Path) -> None:
        """Copy the models to a training's output."""
        for branch in self.facts:
            places = [root / branch["folder"] for root in self._roots]
            source = next(place for place in places if place.is_dir())
            shutil.copytree(source, output / branch["folder"])


def folder_of(start_step: int) -> str:
    """Of the branch that left the trunk after so many steps, below checkpoints and outputs."""
    return f"{_FOLDER}/step-{start_step:09d}"


def published(folder: Path) -> dict[str, Any] | None:
    """Facts of the branch whose model is in a folder; None while it is not whole."""
    try:
        told = json.loads((folder / PUBLISHED).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if manifest.first_damage(folder, told["files"]):
        return None
    facts: dict[str, Any] = told["facts"]
    return facts


def _publish(folder: Path, facts: Mapping[str, Any]) -> None:
    told = {"schema_version": 1, "facts": dict(facts), "files": manifest.describe(folder)}
    partial = folder / f".{PUBLISHED}"
    partial.write_text(json.dumps(told), encoding="utf-8")
    partial.rename(folder / PUBLISHED)
