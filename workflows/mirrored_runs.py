"""Runs in MLflow: one for each run of a pipeline, pretraining and trials nested in it."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run

from workflows import curves, history
from workflows.curves import Curves
from workflows.ledger import Record
from workflows.storage import Storage, scheme_of

_RUN, _ATTEMPT, _FINGERPRINT = "pretune.run", "pretune.attempt", "pretune.fingerprint"
_PARENT = "mlflow.parentRunId"
_ARTIFACTS = "mlflow-artifacts"
_LONGEST_PARAM = 500
_UNKNOWN = "removed runs"
"""The experiment of runs of which nothing is left but what they made."""
_MOST_RUNS = 50_000
"""That MLflow gives in one answer."""


class MirroredRuns:
    """An experiment for each pipeline, and the runs in it."""

    def __init__(self, client: MlflowClient, uri: str, where: Storage) -> None:
        self._client, self._where = client, where
        # A server knows where to keep artifacts; a database alone does not.
        place = where.url(_ARTIFACTS)
        beside = place if scheme_of(place) else Path(place).as_uri()
        self._artifacts = None if uri.startswith("http") else beside
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, str] = {}
        self.written = 0
        """Runs that were new to MLflow."""

    def find_or_make(self, run_id: str) -> str:
        """MLflow's id of a pipeline's run."""
        run = history.name_of(self._where, run_id)
        if not run.started:
            return self._find_or_make_removed(run_id)
        begun = datetime.strptime(run.started, history.STAMP).replace(tzinfo=UTC)
        return self.find_or_make_named(run_id, run.pipeline, begun)

    def _find_or_make_removed(self, run_id: str) -> str:
        """Of a run that is not in the storage any more, of which MLflow may know from before."""
        if run_id not in self._runs:
            everywhere = [one.experiment_id for one in self._client.search_experiments()]
            named = f"tags.`{_RUN}` = '{run_id}'"
            found = self._client.search_runs(everywhere, named, max_results=1)
            if found:
                self._runs[run_id] = found[0].info.run_id
        return self.find_or_make_named(run_id, _UNKNOWN, datetime.now(UTC))

    def find_or_make_named(self, name: str, pipeline: str, begun: datetime) -> str:
        """MLflow's id of a run that is in no other, found by its name in the tag `pretune.run`."""
        if name not in self._runs:
            experiment = self._experiment(pipeline)
            found = self._search(experiment, _RUN, name)
            if found:
                self._runs[name] = found[0].info.run_id
                if found[0].info.status == "RUNNING":  # who began it did not come to its end
                    self._client.set_terminated(self._runs[name])
            else:
                begin = int(1000 * begun.timestamp())
                self._runs[name] = self._begin(experiment, name, begin, {_RUN: name})
                self._client.set_terminated(self._runs[name], end_time=begin)
        return self._runs[name]

    def take(self, records: Iterable[Record]) -> None:
        """What steps tell, in the runs that computed them, whichever runs reused them.

        A step whose artifact is gone, or an adopted one that tells nothing, is left out.
        """
        for record in sorted(records, key=lambda one: one.finished_at):
            told = curves.told(self._where, record)
            if told is None:
                continue
            if record.kind == "final":
                self._scores(record, told["test"])
            else:
                self._nest(record, curves.of(record, told))

    def _nest(self, record: Record, told: Iterable[Curves]) -> None:
        """What is not there yet of a step, which is found by its attempt."""
        parent = self._client.get_run(self.find_or_make(record.run)).info
        known = set()
        for found in self._search(parent.experiment_id, _ATTEMPT, record.attempt):
            if found.info.status == "RUNNING":  # who wrote it did not come to its end
                self._client.delete_run(found.info.run_id)
            else:
                known.add(found.info.run_name)
        end = _milliseconds(record)
        begin = end - int(1000 * record.elapsed_s)
        tags = {
            _PARENT: parent.run_id,
            _ATTEMPT: record.attempt,
            _FINGERPRINT: record.fingerprint,
        }
        for one in told:
            if one.name not in known:
                run = self._begin(parent.experiment_id, one.name, begin, tags)
                self._log(run, one.params, one.points, end)
                status = "FAILED" if one.has_failed else "FINISHED"
                self._client.set_terminated(run, status, end)
        self._client.set_terminated(parent.run_id, end_time=max(end, parent.end_time or 0))

    def _scores(self, record: Record, test: Mapping[str, float]) -> None:
        """A task's test scores, of its run. MLflow drops points that it was told before."""
        task = record.name.removesuffix(".final")
        scores = {f"{task}.test.{metric}": value for metric, value in test.items()}
        self._log(self.find_or_make(record.run), {}, [(0, scores)], _milliseconds(record))

    def _experiment(self, pipeline: str) -> str:
        if pipeline not in self._experiments:
            found = self._client.get_experiment_by_name(pipeline)
            if found is None:
                made = self._client.create_experiment(pipeline, self._artifacts)
                self._experiments[pipeline] = made
            else:
                if found.lifecycle_stage == "deleted":
                    self._client.restore_experiment(found.experiment_id)
                self._experiments[pipeline] = found.experiment_id
        return self._experiments[pipeline]

    def _search(self, experiment: str, tag: str, value: str) -> list[Run]:
        wanted = f"tags.`{tag}` = '{value}'"
        return list(self._client.search_runs([experiment], wanted, max_results=_MOST_RUNS))

    def _begin(self, experiment: str, name: str, begin: int, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(experiment, begin, dict(tags), name)
        self.written += 1
        return str(run.info.run_id)

    def _log(
        self,
        run: str,
        params: Mapping[str, Any],
        points: Iterable[tuple[int, Mapping[str, float]]],
        at: int,
    ) -> None:
        metrics = [
            Metric(name, float(value), at, step)
            for step, values in points
            for name, value in values.items()
        ]
        shortened = [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in params.items()]
        self._client.log_batch(run, metrics, shortened)


def _milliseconds(record: Record) -> int:
    """When a step was done, as MLflow counts."""
    return int(1000 * datetime.fromisoformat(record.finished_at).timestamp())
