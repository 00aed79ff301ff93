"""A run in its cluster's metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.local import LocalCluster
from workflows.gauges import Gauges
from workflows.progress import RunView


@dataclass
class Showing(LocalCluster):
    """Remembers what it was to show."""

    shown: dict[tuple[Any, ...], list[float]] = field(default_factory=dict)

    def show(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        self.shown.setdefault((name, *sorted(labels.items())), []).append(value)


TINY = ("pipeline", "tiny")


def test_steps_searches_and_promotions_are_shown_when_they_change() -> None:
    cluster, view = Showing(), RunView(["tone.tune", "tone.promote"])
    gauges = Gauges(cluster, "tiny")
    gauges.look(view)
    gauges.look(view)
    assert cluster.shown[("steps", TINY, ("state", "waiting"))] == [2]
    assert cluster.shown[("steps", TINY, ("state", "done"))] == [0]
    assert cluster.shown[("promoted", TINY)] == [0]
    assert not any(name in ("trials", "best_score") for name, *_ in cluster.shown)
    search = {"metric": "accuracy", "lower_is_better": False, "trials": 2}
    for event in (
        {"event": "step", "step": "tone.tune", "state": "running"},
        {"event": "search", "step": "tone.tune", **search},
        {"event": "trial", "step": "tone.tune", "trial": "a", "accuracy": 0.5, "epoch": 1},
        {"event": "trial", "step": "tone.tune", "trial": "b", "accuracy": 0.4, "epoch": 1},
        {"event": "step", "step": "tone.tune", "state": "done"},
        {"event": "step", "step": "tone.promote", "state": "done", "facts": {"promoted": True}},
    ):
        view.take({"time": 0.0, **event})
        gauges.look(view)
    assert cluster.shown[("steps", TINY, ("state", "waiting"))] == [2, 1, 0]
    assert cluster.shown[("steps", TINY, ("state", "running"))] == [0, 1, 0]
    assert cluster.shown[("steps", TINY, ("state", "done"))] == [0, 1, 2]
    assert cluster.shown[("promoted", TINY)] == [0, 1]
    assert cluster.shown[("trials", TINY, ("step", "tone.tune"))] == [1, 2]
    assert cluster.shown[("best_score", TINY, ("step", "tone.tune"))] == [0.5]
