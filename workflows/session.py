"""A pipeline opened: its steps, its storage; planned, run, summed up. What the CLI calls."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import capacity
from trainers.config import TaskConfig
from workflows import outside, runner
from workflows.artifacts import Artifacts
from workflows.config import PipelineConfig, as_yaml
from workflows.execution import RunPaths
from workflows.journal import Journal, Tail, read
from workflows.models import ModelStore
from workflows.pipeline import build_steps
from workflows.progress import LiveView, RunView
from workflows.runner import RunResult, State
from workflows.steps import Step

_PLAN = "plan.json"


@dataclass(frozen=True)
class Session:
    """One pipeline file and its storage."""

    config: PipelineConfig
    base: Path
    """Folder of the pipeline file."""
    steps: list[Step]
    paths: RunPaths

    @classmethod
    def open(cls, config: PipelineConfig, base: Path) -> "Session":
        """Look at the data and build the steps; writes nothing.

        Raises:
            ConfigError: the data is not what the file says.
        """
        steps = build_steps(config, outside.inspect(config, base))
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        run_id = f"{config.name}-{stamp}-{uuid.uuid4().hex[:4]}"
        return cls(config, base, steps, RunPaths(Path(config.storage).resolve(), run_id))

    @property
    def artifacts(self) -> Artifacts:
        """Of the storage."""
        return Artifacts(self.paths.storage / "artifacts")

    def plan(self) -> dict[str, State]:
        """What a run would do."""
        return runner.plan(self.steps, self.artifacts)

    def run(self, console: Console) -> RunResult:
        """Run what is not done; starts or joins Ray only if there is something to run.

        Raises:
            CapacityError: the cluster can never hold the workers; nothing was written.
        """
        states = self.plan()
        if State.WAITING not in states.values():
            return RunResult(states)
        from cluster.ray_cluster import connect  # loads Ray

        console.print(f"run {self.paths.run_id}", highlight=False)
        with connect(self.config.cluster) as cluster:
            capacity.check(self.config.cluster, cluster.capacity())
            self._write_head(states)
            tail = Tail(self.paths.events)
            with LiveView(console, tail, [step.name for step in self.steps]) as live:
                return runner.run(
                    self.steps,
                    states,
                    cluster=cluster,
                    execution=self.config.cluster,
                    paths=self.paths,
                    base=self.base,
                    journal=self._journal,
                    tick=live.tick,
                )

    def summary(self, result: RunResult) -> dict[str, Any]:
        """What a person wants to know at the end."""
        promotions = {
            step.name: record.facts
            for step in self.steps
            if step.kind == "promote" and (record := self.artifacts.record(step))
        }
        store = ModelStore(self.paths.models)
        return {
            "states": {name: str(state) for name, state in result.states.items()},
            "promotions": promotions,
            "champions": {
                name: str(champion)
                for name in store.names()
                if (champion := store.champion(name)) is not None
            },
            "report": str(self._report() or ""),
            "models": str(self.paths.models),
            "mlflow": f"mlflow ui --backend-store-uri sqlite:///{self.paths.tracking}",
            "failures": [vars(failure) for failure in result.failures],
        }

    @property
    def _journal(self) -> Journal:
        return Journal(self.paths.events, "run")

    def _write_head(self, states: dict[str, State]) -> None:
        """What the run is about, before its first step."""
        self.paths.directory.mkdir(parents=True)
        (self.paths.directory / "pipeline.yaml").write_text(as_yaml(self.config), "utf-8")
        fingerprints = {step.name: step.fingerprint for step in self.steps}
        (self.paths.directory / _PLAN).write_text(json.dumps(fingerprints, indent=1), "utf-8")
        for name, state in states.items():
            self._journal.append("step", step=name, state=state)

    def _report(self) -> Path | None:
        """This run's report, or the one of the run that computed it."""
        if self.paths.report.is_file():
            return self.paths.report
        step = next(step for step in self.steps if step.kind == "report")
        if self.artifacts.record(step) is None:
            return None
        return self.artifacts.output(step) / self.paths.report.name


def run_ids(storage: Path) -> list[str]:
    """The runs of a storage folder, oldest first."""
    found = [path.parent for path in storage.glob(f"runs/*/{_PLAN}")]
    return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def view(paths: RunPaths) -> RunView:
    """How far a run is."""
    names = json.loads((paths.directory / _PLAN).read_text(encoding="utf-8"))
    found = RunView(names)
    for event in read(paths.events):
        found.take(event)
    return found


def predict(folder: Path, task: dict[str, Any], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Label texts; for token classification their words are what white space separates."""
    from trainers.predict import Predictor  # loads torch

    config = TaskConfig.model_validate(task)
    rows: list[Any] = list(texts)
    if config.type == "token_classification":
        rows = [text.split() for text in texts]
    predictions = Predictor(folder, config.type, config.max_length).predict(rows)
    return [
        {"text": row, "label": prediction.label, "score": prediction.score}
        for row, prediction in zip(rows, predictions, strict=True)
    ]


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """The last lines of a run."""
    states = list(summary["states"].values())
    reused, done = states.count("reused"), states.count("done")
    console.print(f"{done} steps done, {reused} reused")
    for facts in summary["promotions"].values():
        verdict = "promoted" if facts["promoted"] else "not promoted"
        line = f"{facts['model']} {verdict}: {facts['reason']}"
        console.print(line, highlight=False, soft_wrap=True)
    for name in ("report", "models", "mlflow"):
        if summary[name]:
            console.print(f"{name + ':':8} {summary[name]}", highlight=False, soft_wrap=True)
