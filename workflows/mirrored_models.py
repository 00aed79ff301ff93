"""Registered models in MLflow: versions, aliases and notes as the model store has them.

Tags that begin with `pretune.` and the two aliases are the store's: they are set, changed and
removed to say what it says. All else is left to who uses MLflow.
"""

import json
import logging
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from workflows.mirrored_runs import MirroredRuns
from workflows.model_card import LINEAGE
from workflows.models import CANDIDATE, CHAMPION, ModelStore, ModelStoreError, Version
from workflows.storage import scheme_of

logger = logging.getLogger(__name__)

_FOLDER = "pretune.folder"
"""What versions are found by: in MLflow, other storages may have the same numbers."""
_VERSION, _FINGERPRINT = "pretune.version", "pretune.fingerprint"
_SCORE, _STEP, _NOTE = "pretune.score.", "pretune.step.", "pretune.tag."


class MirroredModels:
    """A registered model for each model of the store."""

    def __init__(self, client: MlflowClient, store: ModelStore, runs: MirroredRuns) -> None:
        self._client, self._store, self._runs = client, store, runs
        self.written = 0
        """Versions that were new to MLflow."""

    def take(self, name: str) -> None:
        """Every version that MLflow lacks; of all, what can change: notes and aliases.

        A version that is damaged is told, and left out.
        """
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = {
            found.tags.get(_FOLDER): found
            for found in self._client.search_model_versions(f"name = '{name}'")
        }
        numbers: dict[Version | None, str] = {}
        for version in self._store.versions(name):
            try:
                found = known.get(self._store.folder(version))
                if found is None:
                    found = self._register(version)
                else:
                    self._note(version, found)
            except ModelStoreError as error:
                logger.warning("%s is not in MLflow: %s", version, error)
                continue
            numbers[version] = str(found.version)
        try:
            meanings = {
                CHAMPION: self._store.champion(name),
                CANDIDATE: self._store.candidate(name),
            }
        except ModelStoreError as error:  # other models have logs of their own
            logger.warning("aliases of %s are left as they are in MLflow: %s", name, error)
            return
        now = self._client.get_registered_model(name).aliases
        for alias, meant in meanings.items():
            wanted = numbers.get(meant)
            if wanted is None and alias in now:
                self._client.delete_registered_model_alias(name, alias)
            elif wanted is not None and wanted != str(now.get(alias)):
                self._client.set_registered_model_alias(name, alias, wanted)

    def _register(self, version: Version) -> ModelVersion:
        facts = self._store.facts(version)
        lineage = self._lineage(version, facts)
        run = self._run(version, facts, lineage)
        tags = {
            _FOLDER: self._store.folder(version),
            _VERSION: str(version.number),
            _FINGERPRINT: facts["fingerprint"],
            **{_SCORE + metric: str(score) for metric, score in facts["scores"].items()},
            **{_STEP + step["name"]: step["fingerprint"] for step in lineage.get("steps", ())},
            **self._notes(version),
        }
        made = self._client.create_model_version(
            version.name,
            self._source(version, run),
            run,
            tags,
            description=facts.get("judgement", {}).get("reason"),
        )
        self.written += 1
        return made

    def _lineage(self, version: Version, facts: Mapping[str, Any]) -> dict[str, Any]:
        """What led to a version; nothing where no step `promote` made it."""
        if LINEAGE not in facts["files"]:
            return {}
        return dict(json.loads(self._store.read(version, LINEAGE)))

    def _run(self, version: Version, facts: Mapping[str, Any], lineage: Mapping[str, Any]) -> str:
        """MLflow's id of the run that made a version; of one for it alone where that is unknown."""
        if "run" in lineage:
            return self._runs.find_or_make(lineage["run"])
        pipeline = version.name.partition(".")[0]
        made_at = datetime.fromisoformat(facts["created_at"])
        return self._runs.find_or_make_named(str(version), pipeline, made_at)

    def _source(self, version: Version, run: str) -> str:
        """Where MLflow loads a version from: of an object store, the store's own folder.

        From a disk it goes, once and compared with its manifest, to the artifacts of its run: a
        server refuses paths on its clients' disks, and into a folder that MLflow loads from a disk
        it writes a file of its own (`registered_model_meta`), which the store would call damage.
        """
        folder = self._store.folder(version)
        if scheme_of(folder):
            return folder
        place = f"models/{version.name}/{version.number}"
        self._client.log_artifacts(run, str(self._store.verified(version)), place)
        return f"{self._client.get_run(run).info.artifact_uri}/{place}"

    def _note(self, version: Version, known: ModelVersion) -> None:
        """Set what people noted about a version, and remove what they took back."""
        wanted = self._notes(version)
        for key, value in wanted.items():
            if known.tags.get(key) != value:
                self._client.set_model_version_tag(version.name, known.version, key, value)
        for key in known.tags.keys() - wanted.keys():
            if key.startswith(_NOTE):
                self._client.delete_model_version_tag(version.name, known.version, key)

    def _notes(self, version: Version) -> dict[str, str]:
        tags = self._store.tags(version)
        # MLflow's names have few signs.
        return {_NOTE + re.sub(r"[^\w.\- ]", "_", key): value for key, value in tags.items()}
