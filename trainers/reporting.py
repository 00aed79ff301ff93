"""How a training says how far it is; whoever runs it decides where that goes."""

from collections.abc import Mapping
from typing import Protocol


class StoppedError(RuntimeError):
    """The training was asked to end; what it had is saved."""


class LeavingError(RuntimeError):
    """A node is about to go; what the training had is saved, and it goes on elsewhere."""


class Reporter(Protocol):
    """Takes metrics while training runs."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Collective: every rank calls it the same number of times."""

    def is_leaving(self) -> bool:
        """Whether the node of any rank is about to go; then save, and raise `LeavingError`.

        Collective, and the same on all ranks: every rank calls it the same number of times.
        """
