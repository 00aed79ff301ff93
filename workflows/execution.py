"""One step, from verified inputs to a committed record. Runs in a process of the cluster."""

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster.config import ClusterConfig
from cluster.interface import Cluster, Metrics
from trainers.config import Schema
from workflows.artifacts import Artifacts, Attempt, Record
from workflows.journal import Journal
from workflows.steps import Step

logger = logging.getLogger(__name__)

Spec = TypeVar("Spec", bound=Schema)


@dataclass(frozen=True)
class RunPaths:
    """A run's folder in the storage."""

    storage: Path
    run_id: str

    @property
    def directory(self) -> Path:
        """Of this run."""
        return self.storage / "runs" / self.run_id

    @property
    def events(self) -> Path:
        """The journal."""
        return self.directory / "events"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.directory / "report.html"

    @property
    def models(self) -> Path:
        """The model store."""
        return self.storage / "models"

    @property
    def tracking(self) -> Path:
        """MLflow's embedded database."""
        return self.storage / "mlflow.db"

    def log(self, step: str) -> Path:
        """What a step printed and logged."""
        return self.directory / "logs" / f"{step}.log"


@dataclass(frozen=True)
class StageContext:
    """All that a stage is given."""

    step: Step
    attempt: Attempt
    artifacts: Artifacts
    cluster: Cluster
    execution: ClusterConfig
    paths: RunPaths
    base: Path
    """Folder of the pipeline file."""
    searches: int
    """Searches of the pipeline, which share the cluster."""

    def spec(self, kind: type[Spec]) -> Spec:
        """The step's spec, as the type its stage works on."""
        assert isinstance(self.step.spec, kind)
        return self.step.spec

    def input(self, name: str) -> Path:
        """The output folder of an input."""
        return self.artifacts.output(self.step.inputs[name])

    def input_record(self, name: str) -> Record | None:
        """The record of an input; None where it failed."""
        return self.artifacts.record(self.step.inputs[name])

    @property
    def output(self) -> Path:
        """Where the stage writes what is kept."""
        return self.attempt.output

    @property
    def log(self) -> Path:
        """Where the step's processes log."""
        return self.paths.log(self.step.name)

    @property
    def progress(self) -> "Progress":
        """Tells the journal how far the step is."""
        return Progress(Journal(self.paths.events, self.step.name), self.step.name)


@dataclass(frozen=True)
class Progress:
    """A picklable callback that writes progress to the journal."""

    journal: Journal
    step: str

    def __call__(self, metrics: Metrics) -> None:
        """Of a whole step."""
        self.journal.append("progress", step=self.step, **metrics)

    def of_trial(self, trial: str, metrics: Metrics) -> None:
        """Of one trial of a search."""
        self.journal.append("trial", step=self.step, trial=trial, **metrics)


def run_step(
    step: Step,
    cluster: Cluster,
    execution: ClusterConfig,
    paths: RunPaths,
    base: Path,
    searches: int,
) -> dict[str, Any]:
    """Compute a step and commit it; the facts of its record.

    A step that runs on failure is committed only when all its inputs were there.
    """
    from workflows.stages import STAGES  # imports torch and transformers

    artifacts = Artifacts(paths.storage / "artifacts")
    for other in step.inputs.values():
        if artifacts.record(other) is not None:
            artifacts.verify(other)
    attempt = artifacts.begin(step)
    context = StageContext(step, attempt, artifacts, cluster, execution, paths, base, searches)
    started = time.monotonic()
    facts: Mapping[str, Any] = STAGES[step.kind](context)
    if any(artifacts.record(other) is None for other in step.inputs.values()):
        shutil.rmtree(attempt.directory)
        return dict(facts)
    return artifacts.commit(step, attempt, facts, time.monotonic() - started).facts
