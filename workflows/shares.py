"""How much of the cluster a search may use: what there is, divided by the searches under way."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster import capacity
from cluster.config import TrialConfig
from cluster.interface import Cluster
from workflows import planning
from workflows.execution import RunContext
from workflows.journal import DRIVER, Tail

_LOOK_EVERY_S = 5.0


@dataclass
class Share:
    """Trials at once of one of the run's searches.

    It grows when another search ends, and with the cluster; of a search that has not begun the
    share is kept for it.
    """

    cluster: Cluster
    trial: TrialConfig
    searches: Sequence[str]
    """The run's searches, by their steps' names."""
    tail: Tail
    """Of what the run's driver has to say."""
    _states: dict[str, str] = field(default_factory=dict)
    _trials: int = 0
    _looked_at: float | None = None

    @classmethod
    def of(cls, run: RunContext) -> "Share":
        """Of a search of this run."""
        tail = Tail(run.paths.storage, run.paths.events, writer=DRIVER)
        return cls(run.cluster, run.execution.trials, run.searches, tail)

    def __call__(self) -> int:
        """At least one; looked at anew every few seconds."""
        now = time.monotonic()
        if self._looked_at is None or now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            self._trials = capacity.trials_at_once(
                self.cluster.capacity(), self.trial, self._under_way()
            )
        return self._trials

    def _under_way(self) -> int:
        for event in self.tail.new():
            if event["event"] == "step":
                self._states[event["step"]] = event["state"]
        return sum(self._states.get(name) not in planning.ENDED for name in self.searches)
