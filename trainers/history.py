"""What a pretraining has told so far: a point every few steps, each the mean of its steps."""

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from trainers.engine import StepResult


@dataclass
class History:
    """The points of a training, and what is gathered for the next one."""

    points: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last point that were taken."""
    norms: list[float] = field(default_factory=list)
    """Their gradient norms."""

    @property
    def has_news(self) -> bool:
        """Whether a point has a loss to tell."""
        return bool(self.losses or self.points)

    def take(self, result: StepResult) -> None:
        """Add a step; one that was not taken counts nowhere."""
        if result.is_applied:
            self.losses.append(float(result.loss))
            self.norms.append(result.gradient_norm or 0.0)

    def close(self, facts: Mapping[str, float]) -> dict[str, float]:
        """Make a point of the gathered steps and of what else is to be told of them."""
        point = dict(facts)
        if self.losses:
            point["loss"] = sum(self.losses) / len(self.losses)
            point["gradient_norm"] = sum(self.norms) / len(self.norms)
        elif self.points:  # every step was skipped
            point["loss"] = self.points[-1]["loss"]
        self.losses, self.norms = [], []
        self.points.append(point)
        return point

    def state(self) -> dict[str, Any]:
        """As plain values, which the constructor takes."""
        return {name: list(getattr(self, name)) for name in ("points", "losses", "norms")}


@dataclass
class Stopwatch:
    """Where the seconds of a training went, in parts that others measure."""

    before: dict[str, float] = field(default_factory=dict)
    """Of earlier processes of the same training."""
    started_at: float = field(default_factory=time.monotonic)
    _lap_at: float = field(default_factory=time.monotonic)
    _lap: dict[str, float] = field(default_factory=dict)

    def lap(self, parts: Mapping[str, float], steps: int) -> dict[str, float]:
        """Seconds of one step by part since the last lap, and of the whole step as `step_s`.

        Args:
            parts: seconds of each part in this process so far.
            steps: since the last lap.
        """
        now = time.monotonic()
        spent = {name: value - self._lap.get(name, 0.0) for name, value in parts.items()}
        spent["step_s"] = now - self._lap_at
        self._lap, self._lap_at = dict(parts), now
        return {name: value / max(1, steps) for name, value in spent.items()}

    def total(self, parts: Mapping[str, float]) -> dict[str, float]:
        """Seconds by part over all processes, `training_s` the whole."""
        found = {**parts, "training_s": time.monotonic() - self.started_at}
        return {name: value + self.before.get(name, 0.0) for name, value in found.items()}


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory of this rank so far: what torch held on a GPU, the process' resident on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
