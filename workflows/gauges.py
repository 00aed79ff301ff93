"""A run in its cluster's metrics: how its steps stand, its searches, what it promoted."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.interface import Cluster
from workflows.planning import State
from workflows.progress import RunView

_Labels = tuple[tuple[str, str], ...]


@dataclass
class Gauges:
    """Shows what has changed; a number that stays is shown once."""

    cluster: Cluster
    pipeline: str
    _shown: dict[tuple[str, _Labels], float] = field(default_factory=dict)

    def look(self, view: RunView) -> None:
        """Take over how far a run is."""
        for name, value, labels in _numbers(view):
            key = name, labels
            if self._shown.get(key) != value:
                self._shown[key] = value
                self.cluster.show(name, value, {"pipeline": self.pipeline, **dict(labels)})


def _numbers(view: RunView) -> Iterator[tuple[str, float, _Labels]]:
    """Names, values and labels of what there is to show. Pure."""
    states = Counter(step.state for step in view.steps.values())
    for state in State:
        yield "steps", states[state], (("state", state.value),)
    yield "promoted", sum(bool(step.facts.get("promoted")) for step in view.steps.values()), ()
    for name, step in view.steps.items():
        if step.trials:
            yield "trials", len(step.trials), (("step", name),)
        if step.best is not None:
            yield "best_score", step.best, (("step", name),)
