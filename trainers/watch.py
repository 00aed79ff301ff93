"""Which optimizer steps would do harm: what is no number, and what leaps. Pure."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainers.pretrain_config import WatchConfig


@dataclass
class Watch:
    """Judges steps by those before them.

    All ranks must tell it the same numbers, so that all come to the same judgement.
    """

    config: WatchConfig
    losses: deque[float] = field(default_factory=deque)
    """Of the recent steps that were taken, oldest first."""
    norms: deque[float] = field(default_factory=deque)
    """Their gradient norms."""
    skipped_in_a_row: int = 0
    skipped: int = 0
    """Steps of the whole training that were not taken."""
    cause: str = ""
    """Why the last one was not."""

    def accept(self, loss: float, gradient_norm: float) -> bool:
        """Whether a step may be taken; remembers it."""
        self.cause = self._objection("loss", loss, self.losses) or self._objection(
            "gradient norm", gradient_norm, self.norms
        )
        if self.cause:
            self.skipped_in_a_row += 1
            self.skipped += 1
            return False
        self.skipped_in_a_row = 0
        for recent, value in ((self.losses, loss), (self.norms, gradient_norm)):
            recent.append(value)
            if len(recent) > self.config.window:
                recent.popleft()
        return True

    @property
    def is_at_end_of_patience(self) -> bool:
        """Whether skipping has not helped."""
        return self.skipped_in_a_row >= self.config.patience

    def state(self) -> dict[str, Any]:
        """As plain values; `restored` takes them."""
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "skipped_in_a_row": self.skipped_in_a_row,
            "skipped": self.skipped,
        }

    @classmethod
    def restored(cls, config: WatchConfig, state: dict[str, Any]) -> "Watch":
        """The watch whose state it was."""
        lists = {name: deque(state[name]) for name in ("losses", "norms")}
        return cls(config, **{**state, **lists})

    def _objection(self, name: str, value: float, recent: deque[float]) -> str:
        if not math.isfinite(value):
            return f"the {name} is {value}"
        if self.config.sigma is None or len(recent) < self.config.window:
            return ""
        limit = float(np.mean(recent) + self.config.sigma * np.std(recent))
        if value <= limit:
            return ""
        return f"the {name} leapt to {value:.4g}, above {limit:.4g}"
