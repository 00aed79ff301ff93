"""How a training says how far it is; whoever runs it decides where that goes."""

from collections.abc import Mapping
from typing import Protocol


class StoppedError(RuntimeError):
    """The training was asked to end; what it had is saved."""


class Reporter(Protocol):
    """Takes metrics while training runs."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Collective: every rank calls it the same number of times."""
