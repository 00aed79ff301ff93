"""A run on somebody else's cluster: what may be asked of it, whoever holds it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class RemoteState(StrEnum):
    """How far a submitted run is."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


ENDED = {RemoteState.SUCCEEDED, RemoteState.FAILED, RemoteState.STOPPED}


@dataclass(frozen=True)
class RemoteStatus:
    """What the cluster says of a run now."""

    state: RemoteState
    message: str = ""
    """Why it waits, or what ended it."""
    exit_code: int | None = None
    """Of the command on the cluster, where it has ended and that is known."""

    @property
    def is_ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in ENDED


class ContactError(ConnectionError):
    """The cluster does not answer now; it may later."""


class RefusedError(ValueError):
    """The cluster answers, and will not do what it was asked; trying again will not help."""


class RemoteRun(Protocol):
    """One submitted run; every call raises `ContactError` and `RefusedError`, as they say."""

    @property
    def forgotten(self) -> RemoteStatus | None:
        """What it means that the cluster knew of the run and does not any more; None: nothing."""

    def status(self) -> RemoteStatus | None:
        """How far it is; None where the cluster knows of no such run."""

    def log(self) -> str:
        """What its driver has printed so far, from the beginning."""

    def stop(self) -> None:
        """End it as a scheduler would: its driver is told, and killed when that takes too long.

        Raises:
            RefusedError: there is no such run, too.
        """
