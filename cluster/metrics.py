"""Numbers in Ray's metrics, which Prometheus reads."""

from collections.abc import Mapping
from functools import cache

from ray.util.metrics import Gauge


def show(name: str, value: float, labels: Mapping[str, str]) -> None:
    """Set the gauge `pretune_<name>`; the same names of labels each time."""
    _gauge(name, tuple(sorted(labels))).set(value, tags=dict(labels))


@cache
def _gauge(name: str, labels: tuple[str, ...]) -> Gauge:
    """One for each name and process: Ray refuses a second."""
    return Gauge(f"pretune_{name}", description=name.replace("_", " "), tag_keys=labels)
