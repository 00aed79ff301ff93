"""Ends a rank that makes no step any more: its peers would wait for it without end."""

import contextlib
import faulthandler
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

HUNG = 86
"""Exit code of a rank that ended itself."""

_STARTUP_S = 1800.0
_FACTOR = 10.0
_RECENT = 64
_TICK_S = 1.0
_STDERR = 2


class Deadline:
    """Ends this process when no step was made for too long.

    Too long is ten times the slowest of the recent steps, but never less than `least_s`; before the
    first step it is half an hour. A dead rank is what whoever runs the gang notices within seconds.

    Time is counted by the watching thread, a tick at a time, and a tick counts for at most two:
    where this thread gets no turn, because the process is stopped or the machine is busy, training
    gets none either, and nothing is held against it. A rank that never lets Python's lock go is
    not seen by its own thread, but by those of its peers, which wait for it.
    """

    def __init__(self, least_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Watch from the start of the `with` block.

        Args:
            least_s: no pause shorter than this counts as a hang.
            clock: seconds that only grow.
        """
        self._least_s, self._clock = least_s, clock
        self._lock = threading.Lock()
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._waited_s, self._looked_at = 0.0, clock()
        self._beats, self._pauses = 0, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="deadline", daemon=True)

    def __enter__(self) -> Self:
        self._looked_at = self._clock()
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

    @property
    def limit_s(self) -> float:
        """Seconds without a step that are too many now."""
        if not self._beats:
            return max(_STARTUP_S, self._least_s)
        return max(self._least_s, _FACTOR * max(self._recent, default=0.0))

    def beat(self) -> None:
        """A step, or a batch of an evaluation, is done."""
        with self._lock:
            self._count()
            if self._beats:  # before the first, code is compiled and files are opened
                self._recent.append(self._waited_s)
            self._beats += 1
            self._waited_s = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time without bound, as storage may take; it counts neither as a step nor as a hang."""
        with self._lock:
            self._count()
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._looked_at = self._clock()
                self._pauses -= 1

    def is_over(self) -> bool:
        """Whether it has passed. Asked every second by the watching thread."""
        with self._lock:
            self._count()
            return self._waited_s > self.limit_s

    def _count(self) -> None:
        """Add what has passed since the last look."""
        now = self._clock()
        if not self._pauses:
            self._waited_s += min(now - self._looked_at, 2 * _TICK_S)
        self._looked_at = now

    def _watch(self) -> None:
        while not self._ended.wait(_TICK_S):
            if self.is_over():
                self._end()

    def _end(self) -> None:
        slowest = f"{max(self._recent):.1f} s" if self._recent else "unknown"
        logger.error(
            "no step for %.0f s (at most %.0f s; the slowest of the last %d steps took %s, "
            "%d steps were made): this rank ends itself, for it or a peer hangs; all stacks follow",
            *(self._waited_s, self.limit_s, len(self._recent), slowest, self._beats),
        )
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        os._exit(HUNG)
