"""One step, from a claim and verified inputs to a committed record. Runs in a cluster process."""

import _thread
import contextlib
import errno
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from cluster.cache import cache_folder
from cluster.config import ClusterConfig
from cluster.interface import Cluster, Metrics
from trainers.config import Schema
from workflows import failpoints, kept_logs, sources, storage
from workflows.artifacts import Artifacts, Attempt, output_name
from workflows.exchange import Exchange
from workflows.family import Family
from workflows.journal import DRIVER, Journal, Tail
from workflows.leases import Heartbeat
from workflows.ledger import Position, Record, stem_of
from workflows.shares import Search, Share
from workflows.steps import CUSTOM, FOLLOWING, SUMMARIES, Identified, Step, StepRef
from workflows.storage import Storage, StorageError
from workflows.streams import Stream

logger = logging.getLogger(__name__)

Spec = TypeVar("Spec", bound=Schema)

_STOP_CHECK_EVERY_S = 1.0
_ASKED = b"asked"

# Inputs of which a step's workers open the files they need when they need them.
_STREAMED = {"pretrain": {"tokens"}, "tune": {"features"}}

_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class RunPaths:
    """Names of a run's files in the storage."""

    storage: Storage
    run_id: str

    @property
    def directory(self) -> str:
        """Of this run."""
        return f"runs/{self.run_id}"

    @property
    def events(self) -> str:
        """The journal's folder."""
        return f"{self.directory}/events"

    @property
    def report(self) -> str:
        """The HTML report."""
        return f"{self.directory}/report.html"

    @property
    def stop(self) -> str:
        """Its existence asks the run to end."""
        return f"{self.directory}/stop"

    def ask_to_stop(self) -> None:
        """Ask the run to end; under its name it does not go on by itself any more."""
        self.storage.write(self.stop, _ASKED)

    @property
    def was_asked_to_stop(self) -> bool:
        """Whether somebody asked; a run that is ended by a signal leaves an empty file."""
        try:
            return self.storage.read(self.stop) == _ASKED
        except FileNotFoundError:
            return False

    def family(self, steps: tuple[StepRef, ...]) -> Family:
        """The models that steps judge."""
        return Family(self.storage, f"{self.directory}/family", steps)

    def log(self, step: str) -> Path:
        """What a step prints and logs; for an object store in the cache of its node, then kept."""
        if self.storage.is_local:
            return self.storage.path(f"{self.logs}/{step}.log")
        return Path(self.directory, step, f"{step}.log")

    @property
    def logs(self) -> str:
        """The folder of the steps' logs."""
        return f"{self.directory}/logs"

    def shown_log(self, step: str) -> str:
        """Where a person finds what a step printed."""
        return self.storage.url(f"{self.logs}/{step}.log")

    def keep_logs(self, step: str, cluster: Cluster) -> None:
        """Copy what a step's processes have logged to an object store."""
        if not self.storage.is_local:
            kept_logs.keep(self.storage, f"{self.directory}/{step}", self.logs, cluster)


def tracking_uri(where: Storage) -> str:
    """What `MLFLOW_TRACKING_URI` names; else a database beside a local storage, or in the cache."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    if where.is_local:
        return f"sqlite:///{where.path('mlflow.db')}"
    return f"sqlite:///{cache_folder() / 'mlflow' / storage.key_of(where.root)}.db"


def without_secrets(text: str) -> str:
    """A text whose URIs have neither the user's name and password nor what follows `?`."""
    without_user = re.sub(r"://[^/@:\s]*(:[^@\s]*)?@", "://", text)
    return re.sub(r"(://[^\s?]*)\?\S*", r"\1", without_user)


@dataclass
class StopNotice:
    """Whether the run was asked to end. Picklable; looks at the storage once a second at most."""

    paths: RunPaths
    _looked_at: float = 0.0
    _is_given: bool = False

    def __call__(self) -> bool:
        """The answer."""
        now = time.time()
        if not self._is_given and now - self._looked_at > _STOP_CHECK_EVERY_S:
            self._looked_at = now
            self._is_given = self.paths.storage.exists(self.paths.stop)
        return self._is_given


@dataclass(frozen=True)
class RunContext:
    """What all steps of a run share."""

    cluster: Cluster
    execution: ClusterConfig
    paths: RunPaths
    base: Path
    """Folder of the pipeline file."""
    searches: Sequence[Search]
    """Of the pipeline, which share the cluster."""
    judging: tuple[StepRef, ...] = ()
    """Steps of the pipeline that judge a model each."""


@dataclass(frozen=True)
class StageContext:
    """All that a stage is given."""

    run: RunContext
    step: Step
    attempt: Attempt
    artifacts: Artifacts
    records: Mapping[str, Record]
    """Of those inputs that succeeded."""

    def spec(self, kind: type[Spec]) -> Spec:
        """The step's spec, as the type its stage works on."""
        assert isinstance(self.step.spec, kind)
        return self.step.spec

    def input(self, name: str) -> Path:
        """The output folder of an input."""
        return self.artifacts.output(self.records[name])

    def stream(self, name: str, *, keep: int) -> Stream:
        """Opens the files of an input on any node, which keeps so many of an object store's."""
        record = self.records[name]
        is_unverified = name in _read_in_part(self.step)
        return Stream(self.attempt.storage, output_name(record), record.files, keep, is_unverified)

    def exchange(self, earlier: Mapping[Path, str] | None = None) -> Exchange:
        """Makes functions run on other nodes; `earlier` work is read there beside the inputs."""
        attempt = self.attempt
        names = [output_name(record) for record in self.records.values()]
        inputs = {attempt.storage.place(name): name for name in names}
        return Exchange(
            attempt.storage, attempt.name, attempt.directory, inputs | dict(earlier or {})
        )

    @property
    def output(self) -> Path:
        """Where the stage writes what is kept."""
        return self.attempt.output

    @property
    def log(self) -> Path:
        """Where the step's processes log."""
        return self.run.paths.log(self.step.name)

    @property
    def progress(self) -> "Progress":
        """Tells the journal how far the step is."""
        paths = self.run.paths
        journal = Journal(paths.storage, paths.events, self.step.name)
        return Progress(journal, self.step.name)

    @property
    def share(self) -> Share:
        """How many trials' workers the step may have at work."""
        run = self.run
        tail = Tail(run.paths.storage, run.paths.events, writer=DRIVER)
        return Share(run.cluster, run.execution.trials, run.searches, self.step.name, tail)

    @property
    def family(self) -> Family:
        """The models that the pipeline judges, the step's among them."""
        return self.run.paths.family(self.run.judging or (self.step.ref,))

    @property
    def should_stop(self) -> StopNotice:
        """Whether the run was asked to end; what heeds it saves its state and raises."""
        return StopNotice(self.run.paths)


@dataclass(frozen=True)
class Progress:
    """A picklable callback that writes progress to the journal."""

    journal: Journal
    step: str

    def __call__(self, metrics: Metrics) -> None:
        """Of a whole step."""
        self.journal.append("progress", step=self.step, **metrics)

    def note(self, text: str) -> None:
        """Something that a person should know of the step."""
        self.journal.append("note", step=self.step, text=text)
        self.journal.flush()

    def of_search(self, metric: str, *, lower_is_better: bool, trials: int | None) -> None:
        """What a search ranks its trials by, and how many there will be, where that is known."""
        self.journal.append(
            "search", step=self.step, metric=metric, lower_is_better=lower_is_better, trials=trials
        )

    def of_trial(self, trial: str, metrics: Metrics) -> None:
        """Of one trial of a search."""
        self.journal.append("trial", step=self.step, trial=trial, **metrics)


@dataclass(frozen=True)
class Assignment:
    """A step to compute, and what the driver knows of it and its inputs."""

    step: Step
    after: Position
    """The entry of the step's log that the claim is to follow."""
    commits: Mapping[str, int]
    """Number of the commit of each input that succeeded, by the name the stage knows it by."""


@dataclass(frozen=True)
class Computed:
    """The step is done."""

    commit: int
    """Number of its commit; 0 where it was not kept."""
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Busy:
    """Somebody else holds the step, or held it and is done."""

    position: Position


def run_step(assignment: Assignment, run: RunContext) -> Computed | Busy:
    """Compute a step and commit it, unless somebody else has claimed it.

    A step that runs on failure is committed only when all its inputs were there.
    """
    step, artifacts, lease_s = assignment.step, Artifacts(run.paths.storage), run.execution.lease_s
    ledger = artifacts.ledger
    attempt = artifacts.begin(step, assignment.after, run.paths.run_id, lease_s)
    if attempt is None:
        return Busy(ledger.position(step, assignment.after))
    lost = threading.Event()

    def interrupt() -> None:
        lost.set()
        _thread.interrupt_main()

    heartbeat = Heartbeat(
        run.paths.storage,
        lease_name(step),
        attempt.claimed.number,
        lease_s,
        is_taken=lambda: ledger.is_lost(step, attempt.claimed, attempt.id),
        on_lost=interrupt,
    )
    try:
        with _interruptible(), heartbeat:
            return _computed(assignment, attempt, artifacts, run)
    except BaseException as error:
        if lost.is_set() and isinstance(error, KeyboardInterrupt):
            logger.warning("the lease of %s was taken over; this attempt ends", step.name)
            artifacts.discard(attempt)
            return Busy(ledger.position(step, attempt.claimed))
        artifacts.release(step, attempt)
        if isinstance(error, OSError) and error.errno in _STORAGE_ERRORS:
            place = error.filename or attempt.directory
            raise StorageError(storage.explain(error, str(place))) from error
        raise
    finally:
        run.paths.keep_logs(step.name, run.cluster)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let `interrupt_main` work: processes begun in a shell's background ignore interrupts."""
    before = signal.getsignal(signal.SIGINT)
    is_ignored = before is signal.SIG_IGN and threading.current_thread() is threading.main_thread()
    if is_ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if is_ignored:
            signal.signal(signal.SIGINT, before)


def lease_name(step: Identified) -> str:
    """Where a step's signs of life are."""
    return f"leases/{step.kind}/{stem_of(step.fingerprint)}"


def _computed(
    assignment: Assignment, attempt: Attempt, artifacts: Artifacts, run: RunContext
) -> Computed | Busy:
    step, records = assignment.step, {}
    for name, number in assignment.commits.items():
        record = artifacts.ledger.record(step.inputs[name], number)
        if record is None:
            raise FileNotFoundError(
                f"the record of {step.inputs[name].name} was removed while this run went on; "
                "run the same command again"
            )
        opened_later = _read_in_part(step)
        if not run.paths.storage.is_local:
            opened_later |= _STREAMED.get(step.kind, set())
        if name not in opened_later:
            artifacts.verified(record)
        records[name] = record
    started = time.monotonic()
    facts = _stage(step.kind)(StageContext(run, step, attempt, artifacts, records))
    failpoints.reach("execution.computed")
    if step.runs_on_failure and len(records) < len(step.inputs):
        artifacts.release(step, attempt)
        artifacts.discard(attempt)
        return Computed(0, facts)
    position = artifacts.commit(
        step,
        attempt,
        facts,
        run=run.paths.run_id,
        elapsed_s=time.monotonic() - started,
        source=sources.of_step(step.kind, step.uses, run.base),
    )
    if position is None:
        return Busy(artifacts.ledger.position(step, attempt.claimed))
    return Computed(position.committed, facts)


def _read_in_part(step: Step) -> set[str]:
    """Inputs of which a step opens few files, and compares those alone with the record."""
    if step.kind in SUMMARIES or step.kind in FOLLOWING:
        return set(step.inputs)
    return {"corpus"} if step.kind == "losses" else set()


def _stage(kind: str) -> Callable[[StageContext], Mapping[str, Any]]:
    """Loads what this kind needs and no more: some of them load for ten seconds."""
    if kind == CUSTOM:
        from workflows import custom

        return custom.run
    module, _, function = sources.STAGE_SOURCES[kind][0].partition(":")
    stage: Callable[[StageContext], Mapping[str, Any]] = getattr(import_module(module), function)
    return stage
