"""A run on another cluster, followed to its end: its state is asked for, its log is beside."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console

from cluster.remote import ContactError, RefusedError, RemoteRun, RemoteState, RemoteStatus
from workflows import history, progress
from workflows.console import CONTACT_LOST, FAILED, NOT_ADMITTED, RESUME_ME, STOPPED, USAGE
from workflows.execution import RunPaths
from workflows.progress import LiveView, RunView
from workflows.session import live_view
from workflows.storage import StorageError

_POLL_S = 1.0
_LOG_EVERY_S = 5.0
_LOG_ATTEMPTS = 5
"""For the end of a log, which tells most; it is not asked for again."""
_LOST_AFTER_S = 300.0
"""A head that is started anew, or a network that is mended, has answered by then."""
_HEAD_WITHIN_S = 60.0
"""A driver that begins writes what its run is about; later, the storage seen here is another."""


def exit_code(status: RemoteStatus) -> int:
    """Of `submit`, for a run that has ended."""
    if status.state is RemoteState.SUCCEEDED:
        return 0
    if status.state is RemoteState.STOPPED or status.exit_code in (STOPPED, RESUME_ME):
        return STOPPED
    return USAGE if status.exit_code == USAGE else FAILED


OUTCOMES = {progress.SUCCEEDED: 0, progress.FAILED: FAILED, progress.STOPPED: STOPPED}


@dataclass
class Follower:
    """Shows a run until it has ended.

    Its state is what the cluster says, or the journal where the cluster says nothing any more. The
    view is drawn from the journal where its storage is seen from here; else the driver's log is
    shown. That neither can be read now and then is no end.
    """

    remote: RemoteRun
    paths: RunPaths | None
    """None where the storage is not seen from here."""
    console: Console
    pending_timeout_s: float = float("inf")
    is_quiet: bool = False
    """Shows how it ended, and the driver's log only of a run that failed."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _shown: str = ""
    """Of the log."""
    _log_at: float = float("-inf")
    _told: str = ""
    _live: LiveView | None = field(default=None)

    def follow(self) -> int:
        """The exit code."""
        try:
            return self._follow()
        finally:
            if self._live is not None:
                with contextlib.suppress(StorageError):
                    self._live.__exit__()

    def _follow(self) -> int:
        began = answered = self.clock()
        running: float | None = None
        is_known = False
        while True:
            now = self.clock()
            try:
                status = self.remote.status()
            except (ContactError, RefusedError) as error:
                # Who was let in once is not turned away for good: logins expire, servers restart.
                if isinstance(error, RefusedError) and not is_known:
                    raise
                if now - answered > _LOST_AFTER_S:
                    return self._without_cluster(str(error))
                self._tell(f"{error}; trying again")
                self.sleep(_POLL_S)
                continue
            answered = now
            if status is None:
                gone = self.remote.forgotten if is_known else None
                return self._without_cluster("the cluster knows of no such run", gone)
            is_known = True
            if status.is_ended:
                return self._end(status)
            if status.state is RemoteState.PENDING:
                self._tell(f"waiting: {status.message}")
                # One that had begun, and waits for another attempt or its quota, is left alone.
                is_late = running is None and now - began > self.pending_timeout_s
                if is_late and self._is_withdrawn(status):
                    return NOT_ADMITTED
            else:
                running = running or now
                self._try_to_show(now - running)
            self.sleep(_POLL_S)

    def _is_withdrawn(self, status: RemoteStatus) -> bool:
        """Whether the cluster was told; else it is tried again."""
        try:
            self.remote.stop()
        except ContactError as error:
            self._tell(f"{error}; trying again")
            return False
        # A driver that waits for its node hears of it when it gets there, and then ends.
        waited = f"{self.pending_timeout_s:g} s"
        self._print(f"not begun within {waited}, and withdrawn: {status.message}")
        return True

    def _try_to_show(self, running_s: float) -> None:
        """A storage that does not answer is looked at again later."""
        try:
            self._show(running_s)
        except StorageError as error:
            self._tell(f"{error}; looking again")

    def _show(self, running_s: float) -> None:
        if self._live is None and self.paths is not None and running_s <= _HEAD_WITHIN_S:
            found = history.head(self.paths.storage, self.paths.run_id)
            if found is None:
                return
            console = Console(quiet=True) if self.is_quiet else self.console
            self._live = live_view(console, self.paths, found.steps)
            self._live.__enter__()
        if self._live is not None:
            self._live.tick()
        elif not self.is_quiet and self.clock() - self._log_at > _LOG_EVERY_S:
            self._show_log()

    def _show_log(self) -> bool:
        """What came since the last time; whether the cluster could be asked."""
        self._log_at = self.clock()
        try:
            log = self.remote.log()
        except (ContactError, ValueError) as error:
            self._tell(f"the log cannot be read now: {error}")
            return False
        if self._shown.startswith(log):
            return True  # nothing new, or an answer that is behind
        # A driver that was started again has a log of its own.
        new = log.removeprefix(self._shown)
        self._shown = log
        self.console.print(new, end="", markup=False, highlight=False, soft_wrap=True)
        return True

    def _show_rest_of_log(self) -> None:
        for _ in range(_LOG_ATTEMPTS):
            if self._show_log():
                return
            self.sleep(_POLL_S)

    def _end(self, status: RemoteStatus) -> int:
        code = exit_code(status)
        if self._live is None:
            if code or not self.is_quiet:
                self._show_rest_of_log()
        else:
            with contextlib.suppress(StorageError):  # how it ended is known
                self._live.__exit__()
            said = self._live.view.said
            for line in said:
                self._print(line)
            self._live = None
            if code and not said:
                self._show_rest_of_log()
        if code:
            self._print(f"{status.state}: {status.message}")
        return code

    def _without_cluster(self, why: str, gone: RemoteStatus | None = None) -> int:
        """What the storage says of a run whose cluster says nothing, or what that itself means."""
        self._print(why)
        view = self._journal()
        if (view is None or view.outcome is None) and gone is not None:
            self._print(f"{gone.state}: {gone.message}")
            return exit_code(gone)
        if view is None or view.outcome is None:
            self._print("contact lost; how the run is is not known: look again with pretune status")
            return CONTACT_LOST
        for line in view.said:
            self._print(line)
        return OUTCOMES[view.outcome]

    def _journal(self) -> RunView | None:
        """What the driver wrote; None where it cannot be read."""
        try:
            return history.view(self.paths, of_driver=True) if self.paths else None
        except StorageError as error:
            self._print(str(error))
            return None

    def _tell(self, line: str) -> None:
        """Once, until there is something else to tell."""
        if line != self._told and not self.is_quiet:
            self._print(line)
        self._told = line

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
