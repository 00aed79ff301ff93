"""What a new model must keep to beside being better, and the figures for it. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import stdev
from typing import Any

from trainers import metrics
from trainers.task_types import TaskType
from trainers.task_types.base import Prediction
from workflows.promote_config import GuardsConfig

Measured = Mapping[str, Any]
"""By what is guarded; only of what was asked for. JSON-able."""

_LEAST_ROWS = 20
"""Of a slice: with fewer its score says little."""


def broken(guards: GuardsConfig, found: Measured, *, sign: float) -> str | None:
    """What a model does not keep to, first; None if it keeps to all.

    Args:
        guards: the user's.
        found: what was measured; what should have been and was not is broken, too.
        sign: -1 where less of the task's metric is better.
    """
    for name, told, limit in _limits(guards):
        value = found.get(name, math.nan)
        if not value <= limit:
            return f"{told} is {value:.4g}, above {limit:g}"
    if guards.worst_slice is not None:
        for name, score in found.get("slices", {}).items():
            if not sign * score >= sign * guards.worst_slice:
                wanted = f"{guards.worst_slice:g}"
                return f"of the rows of slice {name} it scores {score:.4f}, wanted is {wanted}"
    return None


def _limits(guards: GuardsConfig) -> Iterator[tuple[str, str, float]]:
    """Name, words and bound of each guard that is one number."""
    latency = guards.latency
    batch = f"latency of {latency.batch_size} rows in ms" if latency else ""
    for name, told, limit in (
        ("size_mb", "size in MB", guards.size_mb),
        ("latency_p50_ms", f"median {batch}", latency.p50_ms if latency else None),
        ("latency_p95_ms", f"95th percentile of the {batch}", latency.p95_ms if latency else None),
        ("calibration_error", "expected calibration error", guards.calibration_error),
        ("seed_spread", "standard deviation over seeds", guards.seed_spread),
    ):
        if limit is not None:
            yield name, told, limit


def measured(
    guards: GuardsConfig,
    kind: TaskType,
    truth: Sequence[Any],
    said: Sequence[Prediction],
    *,
    slices: Sequence[str],
    seeds: Sequence[float],
    size_bytes: int,
) -> dict[str, Any]:
    """All that needs no model: from what it said of test rows, and from its record.

    Args:
        guards: the user's; only what they ask for is measured.
        kind: of the task.
        truth: the true label of each test row.
        said: of each test row.
        slices: the slice of each test row; none where nobody asks for them.
        seeds: the metric on the test rows of the same training with each seed.
        size_bytes: of the model's files.
    """
    found: dict[str, Any] = {}
    if guards.size_mb is not None:
        found["size_mb"] = size_bytes / 1e6
    if guards.calibration_error is not None:
        numbers = [kind.labels.index(label) for label in truth]
        shares = [one.probabilities or [] for one in said]
        found["calibration_error"] = metrics.calibration_error(shares, numbers)
    if guards.seed_spread is not None:
        found["seed_spread"] = stdev(seeds)
    if guards.worst_slice is not None:
        found["slices"] = dict(_scores_of_slices(kind, truth, said, slices))
    return found


def _scores_of_slices(
    kind: TaskType, truth: Sequence[Any], said: Sequence[Prediction], slices: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """Of each slice with rows enough that they define the metric."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(slices):
        rows.setdefault(name, []).append(row)
    for name, chosen in sorted(rows.items()):
        if len(chosen) >= _LEAST_ROWS:
            scores = kind.score([truth[row] for row in chosen], [said[row] for row in chosen])
            if kind.task.metric in scores:
                yield name, scores[kind.task.metric]
