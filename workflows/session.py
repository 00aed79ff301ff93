"""A pipeline opened: its steps, its storage; planned, run, summed up. What the CLI calls."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.interface import Cluster
from workflows import family, history, outside, planning, progress, runner, shares, visibility
from workflows.artifacts import Artifacts
from workflows.config import ConfigError, PipelineConfig, as_yaml
from workflows.demand import Demand
from workflows.execution import RunContext, RunPaths, tracking_uri, without_secrets
from workflows.gauges import Gauges
from workflows.history import PIPELINE, PLAN, STAMP, commit_of
from workflows.journal import DRIVER, Journal, Tail
from workflows.models import ModelStore
from workflows.pipeline import PromoteBaseSpec, PromoteSpec, build_steps
from workflows.planning import Plan, Selection
from workflows.progress import LiveView
from workflows.run_result import RunResult
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
    is_named: bool = False
    """Whether the run has a name that somebody chose."""

    @classmethod
    def open(
        cls,
        config: PipelineConfig,
        base: Path,
        *,
        probes: bool = False,
        run_id: str | None = None,
    ) -> "Session":
        """Look at the data and build the steps, with probes where asked for; writes nothing.

        A run that was there under this name is gone on with.

        Raises:
            ConfigError: the data is not what the file says, or the run was about other steps.
            StorageError: the storage's client is not installed.
        """
        steps = build_steps(config, outside.inspect(config, base), probes=probes)
        name = run_id or history.new_run_id(config.name)
        paths = RunPaths(Storage.at(config.storage), name)
        opened = cls(config, base, steps, paths, is_named=run_id is not None)
        if run_id is not None:
            opened.check_name()
        return opened

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
        from workflows import tracing  # loads OpenTelemetry

        with tracing.traced(self.journal, self.paths.run_id, self.config.name, self.steps):
            return self._run(console, plan, fail_fast=fail_fast)

    def _run(self, console: Console, plan: Plan, *, fail_fast: bool) -> RunResult:
        if planning.State.WAITING not in plan.states.values():
            self.paths.family(self._judging).settle(run=None)  # a run may have been killed before
            result = RunResult(plan.states)
            if self.is_named:  # somebody will look for it
                self.write_head(plan)
                self.write_end(progress.SUCCEEDED, summary_lines(self.summary(result)))
            return result
        from cluster.ray_cluster import connect  # loads Ray

        console.print(f"run {self.paths.run_id}", highlight=False)
        with connect(self.config.cluster) as cluster:
            own = {name: step.resources for name, step in self.config.steps.items()}
            demand = Demand(cluster, self.config.cluster, self.steps, own)
            try:
                demand.wait(lambda line: console.print(line, markup=False, soft_wrap=True))
                visibility.check(self.paths.storage, cluster)
                self.write_head(plan)
                result = self._run_steps(console, plan, cluster, demand, fail_fast=fail_fast)
            finally:
                demand.release()
        # Of steps that another run did meanwhile, no step of this one knew.
        self.paths.family(self._judging).settle(run=self.paths.run_id)
        outcome = progress.FAILED if result.failures else progress.SUCCEEDED
        ended = progress.STOPPED if result.is_stopped else outcome
        result.needs_new_name = self.is_named and self.paths.was_asked_to_stop
        self.write_end(ended, [*result.told(), *summary_lines(self.summary(result))])
        return result

    def _run_steps(
        self, console: Console, plan: Plan, cluster: Cluster, demand: Demand, *, fail_fast: bool
    ) -> RunResult:
        names, gauges = [step.name for step in self.steps], Gauges(cluster, self.config.name)
        with live_view(console, self.paths, names) as live:

            def tick() -> None:
                live.tick()
                demand.look({name: step.state for name, step in live.view.steps.items()})
                gauges.look(live.view)

            try:
                context = self.context(cluster)
                return runner.run(
                    self.steps, plan, context, self.journal, fail_fast=fail_fast, tick=tick
                )
            except KeyboardInterrupt:
                self.write_end(progress.STOPPED, [])
                raise

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

    @cached_property
    def journal(self) -> Journal:
        """Where the driver writes what happens."""
        return Journal(self.paths.storage, self.paths.events, DRIVER)

    def check_name(self) -> None:
        """Whether the run may have the name that was asked for.

        Raises:
            ConfigError: there is a run of this name, and it was about other steps.
        """
        found = history.head(self.paths.storage, self.paths.run_id)
        own = {step.name: (step.kind, step.fingerprint) for step in self.steps}
        if found is not None and found.steps != own:
            names = sorted(name for name in own if found.steps.get(name) != own[name])
            other = f"there {names[0]} was another" if names else "it had more steps"
            raise ConfigError(
                f"{self.paths.run_id}: there is a run of this name, and {other}; give another "
                "--run-id, or none"
            )

    def write_head(self, plan: Plan) -> None:
        """What the run is about, before its first step; of one that goes on, with a new start."""
        where, directory = self.paths.storage, self.paths.directory
        is_new = history.head(where, self.paths.run_id) is None
        keep = where.create if is_new else where.write
        steps = {step.name: [step.kind, step.fingerprint] for step in self.steps}
        head = {
            "schema_version": 3,
            "pipeline": self.config.name,
            "started": datetime.now(UTC).strftime(STAMP),
            "steps": steps,
            "folder": str(self.base),
            "commit": commit_of(self.base),
        }
        where.write(f"{directory}/{PIPELINE}", as_yaml(self.config).encode())
        keep(f"{directory}/{PLAN}", json.dumps(head).encode())
        where.delete(self.paths.stop)
        journal = self.journal
        journal.append("run", outcome=None, said=[])
        for name, state in plan.states.items():
            journal.append("step", step=name, state=state)
        journal.flush()

    def write_end(self, outcome: str, said: list[str]) -> None:
        """How the run ended, for those who look at the storage."""
        journal = self.journal
        journal.append("run", outcome=outcome, said=said)
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


def live_view(console: Console, paths: RunPaths, names: Iterable[str]) -> LiveView:
    """Shows how far a run is, from its journal; an object store is listed every now and then."""
    every_s = 0.0 if paths.storage.is_local else _LISTING_EVERY_S
    return LiveView(console, Tail(paths.storage, paths.events), names, every_s=every_s)


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """The last lines of a run."""
    states = list(summary["states"].values())
    promotions = summary["promotions"].values()
    return [
        f"{states.count('done')} steps done, {states.count('reused')} reused",
        *(f"{facts['model']} {facts['outcome']}: {facts['reason']}" for facts in promotions),
        *(
            f"{name + ':':8} {summary[name]}"
            for name in ("report", "models", "mlflow")
            if summary[name]
        ),
    ]
