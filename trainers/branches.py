"""Models that a training decays to on its way: see `schedules.legs`."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.checkpoint import Share
from trainers.schedules import Leg

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
        folder = self._root / _name(start_step)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def add(self, leg: Leg, measures: Mapping[str, float], *, is_written: bool) -> None:
        """A branch is done; where this rank has written its model, others may see it."""
        if is_written and self._share:
            self._share.push(self._root / _name(leg.start_step))
        self.facts.append(
            {
                "start_step": leg.start_step,
                "stop_step": leg.stop_step,
                "folder": _name(leg.start_step),
                **measures,
            }
        )

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


def _name(start_step: int) -> str:
    return f"{_FOLDER}/step-{start_step:09d}"
