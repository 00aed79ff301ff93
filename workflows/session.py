"""A pipeline opened: its steps, its storage; planned, run, summed up. What the CLI calls."""

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster import capacity
from cluster.interface import Cluster
from workflows import family, outside, planning, probe, runner, shares
from workflows.artifacts import Artifacts
from workflows.config import PipelineConfig, as_yaml
from workflows.execution import RunContext, RunPaths, tracking_uri, without_secrets
from workflows.history import PIPELINE, PLAN, commit_of
from workflows.journal import DRIVER, Journal, Tail
from workflows.models import ModelStore
from workflows.pipeline import PromoteBaseSpec, PromoteSpec, build_steps
from workflows.planning import Plan, Selection
from workflows.progress import LiveView
from workflows.runner import RunResult
from workflows.steps import PROMOTING, Step, StepRef
from workflows.storage import Storage

_LISTING_EVERY_S = 2.0


@dataclass(frozen=True)
class Session:
    """One pipeline file and its storage."""

    config: PipelineConfig
    base: Path
    """Folder of the pipeline file."""
    steps: list[Step]
    paths: RunPaths

    @classmethod
    def open(cls, config: PipelineConfig, base: Path, *, probes: bool = False) -> "Session":
        """Look at the data and build the steps, with probes where asked for; writes nothing.

        Raises:
            ConfigError: the data is not what the file says.
            StorageError: the storage's client is not installed.
        """
        steps = build_steps(config, outside.inspect(config, base), probes=probes)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        run_id = f"{config.name}-{stamp}-{uuid.uuid4().hex[:4]}"
        return cls(config, base, steps, RunPaths(Storage.at(config.storage), run_id))

    @property
    def artifacts(self) -> Artifacts:
        """Of the storage."""
        return Artifacts(self.paths.storage)

    def plan(self, selection: Selection | None = None) -> Plan:
        """What a run would do.

        Raises:
            UnknownStepError: the selection names a step that is none.
        """
        return planning.plan(self.steps, self.artifacts.ledger, selection)

    def run(self, console: Console, plan: Plan, *, fail_fast: bool = False) -> RunResult:
        """Do what is planned; starts or joins Ray only if there is something to run.

        Raises:
            CapacityError: the cluster can never hold the workers; nothing was written.
            StorageError: a node cannot see the storage; nothing was computed.
        """
        if planning.State.WAITING not in plan.states.values():
            self.paths.family(self._judging).settle(run=None)  # a run may have been killed before
            return RunResult(plan.states)
        from cluster.ray_cluster import connect  # loads Ray

        console.print(f"run {self.paths.run_id}", highlight=False)
        with connect(self.config.cluster) as cluster:
            own = {name: step.resources for name, step in self.config.steps.items()}
            capacity.check(self.config.cluster, cluster.capacity(), own)
            probe.check(self.paths.storage, cluster)
            self.write_head(plan)
            where = self.paths.storage
            tail = Tail(where, self.paths.events)
            names = [step.name for step in self.steps]
            every_s = 0.0 if where.is_local else _LISTING_EVERY_S
            with LiveView(console, tail, names, every_s=every_s) as live:
                result = runner.run(
                    self.steps,
                    plan,
                    self.context(cluster),
                    self.journal,
                    fail_fast=fail_fast,
                    tick=live.tick,
                )
        # Of steps that another run did meanwhile, no step of this one knew.
        self.paths.family(self._judging).settle(run=self.paths.run_id)
        return result

    def context(self, cluster: Cluster) -> RunContext:
        """What the steps of this run share."""
        return RunContext(
            cluster=cluster,
            execution=self.config.cluster,
            paths=self.paths,
            base=self.base,
            searches=list(shares.searches(self.steps)),
            judging=self._judging,
        )

    @property
    def _judging(self) -> tuple[StepRef, ...]:
        """Steps whose models are judged together."""
        return tuple(step.ref for step in self.steps if step.kind == "promote")

    @property
    def journal(self) -> Journal:
        """Where the driver writes what happens."""
        return Journal(self.paths.storage, self.paths.events, DRIVER)

    def write_head(self, plan: Plan) -> None:
        """What the run is about, before its first step."""
        where, directory = self.paths.storage, self.paths.directory
        where.create(f"{directory}/{PIPELINE}", as_yaml(self.config).encode())
        steps = {step.name: [step.kind, step.fingerprint] for step in self.steps}
        head = {
            "schema_version": 2,
            "pipeline": self.config.name,
            "steps": steps,
            "folder": str(self.base),
            "commit": commit_of(self.base),
        }
        where.create(f"{directory}/{PLAN}", json.dumps(head).encode())
        journal = self.journal
        for name, state in plan.states.items():
            journal.append("step", step=name, state=state)
        journal.flush()

    def summary(self, result: RunResult) -> dict[str, Any]:
        """What a person wants to know at the end."""
        promoting = [step for step in self.steps if step.kind in PROMOTING]
        records = {step.name: self.artifacts.find(step) for step in promoting}
        store = ModelStore(self.paths.storage)
        return {
            "run": self.paths.run_id,
            "states": {name: str(state) for name, state in result.states.items()},
            "promotions": {
                name: family.as_it_came(store, record.facts)
                for name, record in records.items()
                if record
            },
            "champions": {
                step.spec.model: str(champion)
                for step in promoting
                if isinstance(step.spec, PromoteSpec | PromoteBaseSpec)
                and (champion := store.champion(step.spec.model)) is not None
            },
            "report": self._report() or "",
            "models": self.paths.storage.url("models"),
            "mlflow": self._mlflow(result),
            "failures": [vars(failure) for failure in result.failures],
        }

    def _mlflow(self, result: RunResult) -> str:
        """How to see the mirror in MLflow; or why this run could not write it."""
        step = next(step for step in self.steps if step.kind == "track")
        record = self.artifacts.find(step)
        facts = record.facts if record else {}
        if "error" in facts and result.states[step.name] is planning.State.DONE:
            return str(facts["error"])
        uri = str(facts.get("uri") or without_secrets(tracking_uri(self.paths.storage)))
        return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"

    def _report(self) -> str | None:
        """This run's report, or the one of the run that computed it."""
        if self.paths.storage.exists(self.paths.report):
            return self.paths.storage.url(self.paths.report)
        step = next(step for step in self.steps if step.kind == "report")
        record = self.artifacts.find(step)
        if record is None:
            return None
        return str(self.artifacts.output(record) / "report.html")


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """The last lines of a run."""
    states = list(summary["states"].values())
    reused, done = states.count("reused"), states.count("done")
    console.print(f"{done} steps done, {reused} reused")
    for facts in summary["promotions"].values():
        line = f"{facts['model']} {facts['outcome']}: {facts['reason']}"
        console.print(line, highlight=False, soft_wrap=True)
    for name in ("report", "models", "mlflow"):
        if summary[name]:
            console.print(f"{name + ':':8} {summary[name]}", highlight=False, soft_wrap=True)
