"""Runs, trials, versions and aliases in MLflow, written by one process; MLflow is asked nothing."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from workflows.artifacts import Finished
from workflows.models import CHAMPION, ModelStore, Version
from workflows.storage import scheme_of

_ARTIFACTS = "mlflow-artifacts"
_LONGEST_PARAM = 500


class Mirror:
    """Copies a pipeline's finished steps into one MLflow experiment."""

    def __init__(self, pipeline: str, database: Path) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}"
        database.parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        self.uri = uri
        self._client = MlflowClient(uri)
        self._pipeline = pipeline
        found = self._client.get_experiment_by_name(pipeline)
        # On a server artifacts live where the server says; beside an embedded database, here.
        place = (
            None
            if os.environ.get("MLFLOW_TRACKING_URI")
            else database.with_name(_ARTIFACTS).as_uri()
        )
        self._experiment: str = (
            found.experiment_id if found else self._client.create_experiment(pipeline, place)
        )

    def run(self, run_id: str, finished: Mapping[str, Finished], store: ModelStore) -> int:
        """One MLflow run with pretraining and trials nested below; the number of runs written."""
        parent = self._begin(run_id, {})
        written = 1
        if pretrain := finished.get("pretrain"):
            written += self._pretraining(pretrain, parent)
        for name, step in finished.items():
            if name.endswith(".tune"):
                written += self._trials(name, step, parent)
            if name.endswith(".final"):
                self._final(name, step, parent)
            if name.endswith(".promote"):
                self._model(step.record.facts["model"].partition("@")[0], store, parent)
        self._client.set_terminated(parent)
        return written

    def _pretraining(self, step: Finished, parent: str) -> int:
        if not (step.output / "pretraining.json").is_file():
            return 0  # an adopted checkpoint has no history
        run = self._begin("pretrain", {"mlflow.parentRunId": parent})
        facts = json.loads((step.output / "pretraining.json").read_text("utf-8"))
        told = [*facts["history"], *facts.get("speeds", ())]
        points = [(point["optimizer_step"], point) for point in told]
        self._log(run, step.record.spec["pretrain"], points)
        self._client.set_terminated(run)
        return 1

    def _trials(self, name: str, step: Finished, parent: str) -> int:
        trials = json.loads((step.output / "trials.json").read_text("utf-8"))
        for trial in trials:
            run = self._begin(f"{name}.{trial['trial_id']}", {"mlflow.parentRunId": parent})
            changes = {"changes": trial["changes"]} if trial.get("changes") else {}
            params = {**trial["hyperparameters"], **changes}
            self._log(run, params, enumerate(trial["history"], start=1))
            status = "FAILED" if trial["status"] == "failed" else "FINISHED"
            self._client.set_terminated(run, status)
        return len(trials)

    def _final(self, name: str, step: Finished, parent: str) -> None:
        task = name.removesuffix(".final")
        result = json.loads((step.output / "final.json").read_text("utf-8"))
        test = {f"{task}.test.{metric}": value for metric, value in result["test"].items()}
        self._log(parent, {}, [(0, test)])

    def _model(self, name: str, store: ModelStore, run: str) -> None:
        """Every version the registry lacks, then the alias."""
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = {
            version.tags.get("pretune.version"): version.version
            for version in self._client.search_model_versions(f"name = '{name}'")
        }
        for version in store.versions(name):
            if str(version.number) not in known:
                known[str(version.number)] = self._register(version, store, run)
        champion = store.champion(name)
        if champion is not None:
            self._client.set_registered_model_alias(name, CHAMPION, known[str(champion.number)])

    def _register(self, version: Version, store: ModelStore, run: str) -> str:
        tags = {
            "pretune.version": str(version.number),
            "pretune.fingerprint": store.facts(version)["fingerprint"],
        }
        made = self._client.create_model_version(
            version.name, source=_uri(store.folder(version)), run_id=run, tags=tags
        )
        return str(made.version)

    def _begin(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def _log(
        self,
        run: str,
        params: Mapping[str, Any],
        points: Iterable[tuple[int, Mapping[str, float]]],
    ) -> None:
        metrics = [
            Metric(name, float(value), 0, step)
            for step, values in points
            for name, value in values.items()
        ]
        shown = [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in params.items()]
        tags = [RunTag("pretune.pipeline", self._pipeline)]
        # MLflow takes at most 1,000 metrics in one call.
        for start in range(0, max(1, len(metrics)), 1000):
            chunk = metrics[start : start + 1000]
            self._client.log_batch(run, chunk, shown if start == 0 else (), tags)


def _uri(place: str) -> str:
    return place if scheme_of(place) else Path(place).as_uri()
