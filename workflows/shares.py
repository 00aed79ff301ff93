"""How much of the cluster a search may use: what there is, divided by the searches under way."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cluster import capacity
from cluster.config import TrialConfig
from cluster.interface import Cluster
from workflows import planning
from workflows.journal import Tail
from workflows.steps import Step
from workflows.storage import StorageError

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0


@dataclass(frozen=True)
class Search:
    """A task's search as others see it who share the cluster with it."""

    steps: tuple[str, ...]
    """That train on the workers of trials: the search, and the final trainings."""
    after: frozenset[str]
    """Searches that it waits for."""


def searches(steps: Sequence[Step]) -> Iterator[Search]:
    """Of a pipeline, whose steps come behind their inputs."""
    before: dict[str, frozenset[str]] = {}
    for step in steps:
        inputs = step.inputs.values()
        of_inputs = [before[ref.name] for ref in inputs]
        own = {ref.name for ref in inputs if ref.kind == "tune"}
        before[step.name] = frozenset[str]().union(own, *of_inputs)
    for step in steps:
        if step.kind == "tune":
            finals = [
                other.name
                for other in steps
                if other.kind == "final"
                and step.name in {ref.name for ref in other.inputs.values()}
            ]
            yield Search((step.name, *finals), before[step.name])


@dataclass
class Share:
    """Trials of a search that may run at once.

    It grows when another task's trainings have ended, and with the cluster. Of a search that has
    not begun the share is kept for it, unless it waits for this one.
    """

    cluster: Cluster
    trial: TrialConfig
    searches: Sequence[Search]
    """Of the run."""
    step: str
    """Whose share it is."""
    tail: Tail
    """Of what the run's driver has to say."""
    _states: dict[str, str] = field(default_factory=dict)
    _trials: int = 0
    _looked_at: float | None = None

    def __call__(self) -> int:
        """At least one; looked at anew every few seconds."""
        now = time.monotonic()
        if self._looked_at is None or now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            self._listen()
            under_way = sum(self._is_under_way(search) for search in self.searches)
            self._trials = capacity.trials_at_once(self.cluster.capacity(), self.trial, under_way)
        return self._trials

    def _listen(self) -> None:
        try:
            events = self.tail.new()
        except StorageError as error:  # the next look will tell
            logger.warning("the share of the cluster stays as it is: %s", error)
            return
        for event in events:
            if event["event"] == "step":
                self._states[event["step"]] = event["state"]

    def _is_under_way(self, search: Search) -> bool:
        states = [self._states.get(step) for step in search.steps]
        return self.step not in search.after and any(s not in planning.ENDED for s in states)
