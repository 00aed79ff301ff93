"""What nothing needs any more: found by reachability, removed on demand."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from workflows import storage
from workflows.artifacts import ARTIFACTS, WORK, attempts_folder
from workflows.history import head, runs
from workflows.leases import Owner, Watch
from workflows.ledger import Claim, Ledger, Position, Record, stem_of
from workflows.models import MODELS, ModelStore
from workflows.steps import PROMOTING, StepRef
from workflows.storage import Storage

_LEASES = "leases"
_LEASE_S = 60.0
_POLL_S = 1.0


@dataclass(frozen=True)
class Garbage:
    """A file or folder that nothing needs."""

    name: str
    size_bytes: int
    why: str
    log: "_Log | None" = None
    """Of the step, where all that there is of it is garbage."""


@dataclass(frozen=True)
class _Log:
    """A step's log as it stands."""

    kind: str
    stem: str
    record: Record | None
    """The newest commit."""
    claim: Claim | None
    """A claim behind it."""
    number: int

    @property
    def lease(self) -> str:
        return f"{_LEASES}/{self.kind}/{self.stem}"


class Collector:
    """Finds what no kept run's plan and no promoted model reaches.

    Kept are the artifacts of the steps that kept runs planned, and of versions in the model store.
    Of a step that is not finished the newest attempt that saved anything stays: the next run goes
    on from it. What a live process holds is never touched; a process on another host is watched for
    the length of its lease before it is taken for dead.
    """

    def __init__(
        self,
        where: Storage,
        *,
        keep_runs: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._storage, self._keep_runs = where, keep_runs
        self._clock, self._sleep = clock, sleep
        self._ledger, self._store = Ledger(where), ModelStore(where)
        self._watch = Watch(where, clock)

    def find(self) -> list[Garbage]:
        """All garbage; changes nothing.

        Folders are looked at before logs, and logs before runs: who comes in between has written
        what protects it before it makes what could be taken for garbage.
        """
        attempts = {
            (kind, stem): self._storage.names(attempts_folder(kind, stem))
            for kind in self._storage.names(ARTIFACTS)
            for stem in self._storage.names(f"{ARTIFACTS}/{kind}")
        }
        model_files = self._model_files()
        logs = {(log.kind, log.stem): log for log in self._logs()}
        live = self._live([log for log in logs.values() if log.claim is not None])
        live_runs = {log.claim.run for log in live.values() if log.claim}
        kept, old = self._runs(live_runs)
        reached = self._reached(kept)
        found = [self._garbage(f"runs/{run}", "an old run") for run in old]
        for key in {**dict.fromkeys(attempts), **dict.fromkeys(logs)}:
            if key not in live:
                log = logs.get(key, _Log(*key, None, None, 0))
                found += self._of_step(log, attempts.get(key, []), is_reached=key in reached)
        if not any(kind in PROMOTING for kind, _ in live):
            found += self._of_models(model_files)
        found += self._of_processes({log.lease for log in live.values()})
        return found

    def remove(self, garbage: Sequence[Garbage]) -> list[Garbage]:
        """Remove it; what was removed. A step that somebody has claimed meanwhile stays."""
        removed = [one for one in garbage if one.log is None or self._forgotten(one.log)]
        for one in removed:
            self._storage.delete(one.name)
        return removed

    def _forgotten(self, log: _Log) -> bool:
        """Claim a step as a run would, then remove its log, so that nobody believes the rest."""
        step = StepRef("", log.kind, log.stem)
        claim = Claim(run="gc", attempt="", owner=Owner.current(), lease_s=_LEASE_S)
        position = Position(log.number)
        if log.number and self._ledger.append(step, position, claim) is None:
            return False
        self._ledger.forget(log.kind, log.stem)
        return True

    def _logs(self) -> Iterator[_Log]:
        for kind in self._ledger.kinds():
            for stem, numbers in self._ledger.logs(kind).items():
                step = StepRef("", kind, stem)
                position = self._ledger.position(step, Position(numbers[-1] - 1))
                claim = position.entry if isinstance(position.entry, Claim) else None
                # The newest commit, wherever it stands: nothing is taken from how entries follow.
                tried = (self._ledger.record(step, n) for n in range(position.number, 0, -1))
                record = next((found for found in tried if found is not None), None)
                yield _Log(kind, stem, record, claim, position.number)

    def _live(self, claimed: Sequence[_Log]) -> dict[tuple[str, str], _Log]:
        """Those whose process lives, as far as anybody can tell after watching for a lease."""
        live, undecided = {}, {(log.kind, log.stem): log for log in claimed}
        until = self._clock() + max((log.claim.lease_s for log in claimed if log.claim), default=0)
        while undecided:
            for key, log in list(undecided.items()):
                assert log.claim is not None
                owner = log.claim.owner
                if self._watch.is_expired(log.lease, log.number, owner, log.claim.lease_s):
                    del undecided[key]
                elif owner.is_known_alive or self._clock() > until + _POLL_S:
                    live[key] = undecided.pop(key)
            if undecided:
                self._sleep(_POLL_S)
        return live

    def _runs(self, live: set[str]) -> tuple[list[str], list[str]]:
        """Runs to keep and runs to remove."""
        by_pipeline: dict[str, list[str]] = {}
        for run in runs(self._storage):
            by_pipeline.setdefault(run.pipeline, []).append(run.run_id)
        kept, old = [], []
        for names in by_pipeline.values():
            newest = set(names[-self._keep_runs :]) | live
            kept += [run for run in names if run in newest]
            old += [run for run in names if run not in newest]
        return kept, old

    def _reached(self, kept: Sequence[str]) -> set[tuple[str, str]]:
        heads = [found for run in kept if (found := head(self._storage, run)) is not None]
        reached = {
            (kind, stem_of(fingerprint))
            for found in heads
            for kind, fingerprint in found.steps.values()
        }
        for name in self._store.names():
            for version in self._store.versions(name):
                facts = self._store.facts(version)
                if "objective" not in facts:
                    reached.add(("final", stem_of(facts["fingerprint"])))
                elif self._store.moved(version):  # a base is large
                    reached.add(("pretrain", stem_of(facts["fingerprint"])))
        return reached

    def _of_step(
        self, log: _Log, attempts: Sequence[str], *, is_reached: bool
    ) -> Iterator[Garbage]:
        folder = attempts_folder(log.kind, log.stem)
        if not is_reached:
            size = self._storage.size(folder)
            yield Garbage(folder, size, "no kept run planned this step", log)
            return
        if log.record is not None:
            keep = {log.record.attempt}
            if self._storage.names(f"{folder}/{log.record.attempt}/{WORK}"):
                yield self._garbage(f"{folder}/{log.record.attempt}/{WORK}", "work of a done step")
        else:
            with_work = (
                a for a in reversed(attempts) if self._storage.find(f"{folder}/{a}/{WORK}")
            )
            keep = set(itertools.islice(with_work, 1))
        for attempt in attempts:
            if attempt not in keep:
                yield self._garbage(f"{folder}/{attempt}", "an attempt that came to nothing")

    def _model_files(self) -> dict[str, list[str]]:
        """Folders of model files by the model's name."""
        return {
            name: self._storage.names(f"{MODELS}/{name}/files")
            for name in self._storage.names(MODELS)
        }

    def _of_models(self, files: Mapping[str, Sequence[str]]) -> Iterator[Garbage]:
        for name, folders in files.items():
            versions = self._store.versions(name)
            used = {str(self._store.facts(version)["folder"]) for version in versions}
            for folder in folders:
                if (place := f"{MODELS}/{name}/files/{folder}") not in used:
                    yield self._garbage(place, "no version has these files")

    def _of_processes(self, live_leases: set[str]) -> Iterator[Garbage]:
        """Signs of life and half-written files of processes that are gone."""
        for kind in self._storage.names(_LEASES):
            for beat in self._storage.names(f"{_LEASES}/{kind}"):
                if f"{_LEASES}/{kind}/{beat.partition('.')[0]}" not in live_leases:
                    yield self._garbage(f"{_LEASES}/{kind}/{beat}", "its process is gone")
        for probe in self._storage.names("probes"):
            yield self._garbage(f"probes/{probe}", "its process is gone")
        if live_leases:
            return  # a live process may be writing
        for folder in ("ledger", "done", "models", "runs"):
            for name in self._storage.find(folder):
                if storage.is_partial(name):
                    yield self._garbage(f"{folder}/{name}", "a write that never ended")

    def _garbage(self, name: str, why: str) -> Garbage:
        return Garbage(name, self._storage.size(name), why)
