"""What is mirrored in MLflow and when; what happens where MLflow is not there.

The storage is the truth, and MLflow is asked only what it has already. All is found again by tags
that begin with `pretune.`, so that writing it twice adds nothing.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mlflow import MlflowClient

from workflows import curves, history
from workflows.execution import without_secrets
from workflows.ledger import Ledger, Record
from workflows.mirrored_models import MirroredModels
from workflows.mirrored_runs import MirroredRuns
from workflows.models import ModelStore, ModelStoreError
from workflows.steps import PROMOTING
from workflows.storage import Storage, StorageError


class MirrorError(RuntimeError):
    """MLflow could not be written; what the storage holds is whole."""

    def __init__(self, uri: str, root: str, cause: str) -> None:
        super().__init__(uri, root, cause)
        self.uri, self.root, self.cause = uri, root, cause

    def __str__(self) -> str:
        return (
            f"MLflow at {self.uri} could not be written, the models are safe: {self.cause}; "
            f"write it later with: pretune models sync --storage {self.root}"
        )


@dataclass(frozen=True)
class Written:
    """What was new to MLflow."""

    uri: str
    runs: int
    """With those that are nested in others."""
    versions: int


def track(uri: str, where: Storage, run_id: str, records: Iterable[Record]) -> Written:
    """Mirror a run, the steps that it computed or reused, and the models that they judged.

    Args:
        uri: of MLflow.
        where: all is read there.
        run_id: of the run.
        records: of its finished steps.

    Raises:
        MirrorError: MLflow is not there, or refuses; what was written until then stays.
    """
    records = list(records)
    judged = {one.facts["model"].partition("@")[0] for one in records if one.kind in PROMOTING}
    with _mirror(uri, where) as (runs, models):
        runs.find_or_make(run_id)
        runs.take(records)
        for name in sorted(judged):
            models.take(name)
        return Written(without_secrets(uri), runs.written, models.written)


def sync(uri: str, where: Storage) -> Written:
    """Mirror all that a storage holds: runs, the steps whose artifacts are there, every model.

    Raises:
        MirrorError: as `track`.
    """
    ledger = Ledger(where)
    with _mirror(uri, where) as (runs, models):
        for run in history.runs(where):
            if run.started:  # else it was killed before it wrote what it is about
                runs.find_or_make(run.run_id)
        runs.take(record for kind in curves.TOLD for record in ledger.commits(kind))
        for name in ModelStore(where).names():
            models.take(name)
        return Written(without_secrets(uri), runs.written, models.written)


@contextlib.contextmanager
def _mirror(uri: str, where: Storage) -> Iterator[tuple[MirroredRuns, MirroredModels]]:
    """Both parts of the mirror, once MLflow has answered; one error for all that it may raise.

    MLflow's own patience with a server that is not there is minutes: here it is less than one.
    """
    try:
        with _unless_set(
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="2", MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true"
        ):
            with _unless_set(MLFLOW_HTTP_REQUEST_TIMEOUT="10"):
                client = MlflowClient(uri)
                client.search_experiments(max_results=1)
            # From here on an answer may take long: a server stores a whole file before it gives it.
            runs = MirroredRuns(client, uri, where)
            yield runs, MirroredModels(client, ModelStore(where), runs)
    except (StorageError, ModelStoreError):
        raise
    except Exception as error:  # servers, databases, object stores: each has errors of its own
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        told = without_secrets(cause.replace(uri, without_secrets(uri)))
        raise MirrorError(without_secrets(uri), where.root, told) from error


@contextlib.contextmanager
def _unless_set(**settings: str) -> Iterator[None]:
    """Environment variables for a while, where the user has set none."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
