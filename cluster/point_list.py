"""The searcher of points that are known beforehand, for Ray Tune."""

import logging
import pickle
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from cluster import stages
from cluster.results import EPOCH, POINT
from cluster.space import Point
from cluster.stages import Course, Stages

logger = logging.getLogger(__name__)

kept: ContextVar[Stages] = ContextVar("kept")
"""What is kept of the trials of the search that runs. Not a field of the searcher: Tune keeps that
with a search's state, and one that goes on has its stages elsewhere."""


class PointList(Searcher):  # type: ignore[misc]
    """Gives out points in their order.

    One that has stages in common with a trial under way waits until they are trained; others take
    its turn. Where one goes on from where another ends, it goes first: then that other's metrics
    are known, and nobody needs a state. A state behind which points part goes with the last one.
    """

    def __init__(self, points: Sequence[Point], course: Course) -> None:
        super().__init__()
        self._points = list(points)
        self._keys = [stages.keys_of(course, point) for point in points]
        self._left = list(range(len(self._points)))
        self._live: dict[str, int] = {}
        """Number of the point, by trial."""
        self._epochs: dict[str, int] = {}
        """That live trials have trained."""

    def suggest(self, trial_id: str) -> Any:
        """The first point that need not wait; None where all must."""
        if not self._left:
            return Searcher.FINISHED
        first = next((number for number in self._left if not self._waits(number)), None)
        if first is None:
            return None
        free = self._longest_beyond(first)
        self._left.remove(free)
        self._live[trial_id] = free
        return {POINT: self._points[free]}

    def _longest_beyond(self, number: int) -> int:
        """Of those that go on from where this point ends and need not wait, and itself."""
        keys = self._keys[number]
        beyond = [n for n in self._left if self._keys[n][: len(keys)] == keys]
        return max((n for n in beyond if not self._waits(n)), key=lambda n: len(self._keys[n]))

    def _waits(self, number: int) -> bool:
        return any(
            stages.length_shared(self._keys[number], self._keys[other]) > self._epochs.get(trial, 0)
            for trial, other in self._live.items()
        )

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remember how far a trial is."""
        self._epochs[trial_id] = result[EPOCH]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Make room for another."""
        number = self._live.pop(trial_id, None)
        self._epochs.pop(trial_id, None)
        if number is not None:
            self._release(self._keys[number])

    def _release(self, keys: Sequence[str]) -> None:
        """Let go of the states that nobody goes on from any more."""
        needless = kept.get().forks.intersection(keys)
        if needless:
            for number in (*self._left, *self._live.values()):
                needless = needless.difference(self._keys[number])
        for key in needless:
            try:
                kept.get().release(key)
            except OSError:  # it takes room, and nothing else
                logger.warning("the state of a stage could not be removed", exc_info=True)

    def save(self, checkpoint_path: str) -> None:
        """Write what was given out."""
        state = (self._left, self._live, self._epochs)
        Path(checkpoint_path).write_bytes(pickle.dumps(state))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from what `save` wrote."""
        self._left, self._live, self._epochs = pickle.loads(Path(checkpoint_path).read_bytes())
