"""Who works on a step now: signs of life, and when they have been missing for too long."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict

from workflows.storage import Storage

logger = logging.getLogger(__name__)

_BEATS_PER_LEASE = 6


class Owner(BaseModel):
    """A process, told apart from all others on all hosts."""

    model_config = ConfigDict(frozen=True)

    host: str
    """Name, for people."""
    machine: str
    """Which boot of which kernel, and whose process numbers: empty where it cannot be told."""
    pid: int
    started: int
    """When the process began, in the kernel's ticks since its boot: no clock can change it."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def current(cls) -> "Owner":
        """This process."""
        pid = os.getpid()
        return cls(
            host=os.uname().nodename, machine=_machine(), pid=pid, started=_started(pid) or 0
        )

    @property
    def is_known_dead(self) -> bool:
        """Whether it ran on this machine and runs no more; elsewhere nothing is known."""
        return self._is_local and not self._runs

    @property
    def is_known_alive(self) -> bool:
        """Whether it runs on this machine, perhaps stopped; elsewhere nothing is known."""
        return self._is_local and self._runs

    @property
    def _is_local(self) -> bool:
        return bool(self.machine) and self.machine == _machine()

    @property
    def _runs(self) -> bool:
        return _started(self.pid) == self.started


@dataclass(frozen=True)
class _Sighting:
    number: int
    beat: bytes
    since: float


class Watch:
    """Judges other processes' leases by this process' own monotonic clock.

    A lease has expired when its sign of life has not changed for its whole length while this watch
    looked on; no two hosts' clocks are ever compared.
    """

    def __init__(self, where: Storage, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage, self._clock = where, clock
        self._seen: dict[str, _Sighting] = {}

    def is_expired(self, lease: str, number: int, owner: Owner, lease_s: float) -> bool:
        """Whether the holder of a lease may be taken for dead.

        Args:
            lease: its name, the same for all holders.
            number: of the holder's claim.
            owner: the holder.
            lease_s: how long it may be silent.
        """
        if owner.is_known_dead:
            return True
        beat = self._storage.read_all([f"{lease}.{number}"]).get(f"{lease}.{number}", b"")
        last = self._seen.get(lease)
        if last is None or (last.number, last.beat) != (number, beat):
            self._seen[lease] = _Sighting(number, beat, self._clock())
            return False
        return self._clock() - last.since > lease_s


class Heartbeat:
    """Shows signs of life for a lease while its block runs, from a thread of its own.

    `on_lost` is called, once, when somebody else has taken the lease over.
    """

    def __init__(
        self,
        where: Storage,
        lease: str,
        number: int,
        lease_s: float,
        is_taken: Callable[[], bool],
        on_lost: Callable[[], None],
    ) -> None:
        self._storage, self._name = where, f"{lease}.{number}"
        self._interval_s = lease_s / _BEATS_PER_LEASE
        self._is_taken, self._on_lost = is_taken, on_lost
        self._beats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._beats:
            self._storage.delete(self._name)

    def _beat(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._beats += 1
            try:
                self._storage.write(self._name, str(self._beats).encode())
                is_taken = self._is_taken()
            except OSError as error:
                # Work goes on: whether the lease held is decided at the commit.
                logger.warning("no sign of life could be written: %s", error)
                continue
            if is_taken and not self._ended.is_set():
                self._on_lost()
                return


def _machine() -> str:
    """This boot of this kernel and this process' namespace of process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""  # not Linux: only signs of life count


def _started(pid: int) -> int | None:
    """When a process of this machine began; None where there is none, or only its remains."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The second field is the program's name in brackets, whatever it holds: proc(5).
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])
