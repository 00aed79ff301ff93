"""Versions as others load them: with MLflow and with transformers, in processes of their own."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from conftest import save_base, write_classification, write_pipeline
from mlflow import MlflowClient
from mlflow.models import Model
from served_models import (
    TASK,
    TEXTS,
    final,
    in_another_process,
    require_answers_of,
    save_model,
    task_of,
)

from cluster.local import LocalCluster
from trainers import manifest
from trainers.predict import Predictor
from trainers.task_config import TaskConfig
from workflows import mlmodel, runner, tracking
from workflows.config import load_config
from workflows.execution import tracking_uri
from workflows.models import ModelStore
from workflows.planning import State
from workflows.session import Session
from workflows.storage import Storage

LOADED = """
import json, sys
from transformers import pipeline
print(json.dumps(pipeline("text-classification", model=sys.argv[1])(json.loads(sys.argv[2]))))
"""


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version as `pretune models pull` gives it."""
    folder = tmp_path_factory.mktemp("store")
    store = ModelStore(Storage.at(folder / "storage"))
    version = store.add(
        "tiny.tone",
        save_model(folder / "model"),
        fingerprint=final().fingerprint,
        attempt=final().attempt,
        task=TASK.model_dump(mode="json"),
        scores={"accuracy": 0.9},
        documents=mlmodel.documents(TASK, final()),
    )
    store.pull(version, folder / "pulled")
    return folder / "pulled"


def test_a_pulled_version_answers_through_mlflow(pulled: Path, tmp_path: Path) -> None:
    rows = {"dataframe_split": {"columns": ["text"], "data": [[text] for text in TEXTS]}}
    (tmp_path / "input.json").write_text(json.dumps(rows))
    command = ["-m", "mlflow", "models", "predict", "-m", str(pulled), "-t", "json"]
    command += ["-i", "input.json", "-o", "output.json", "--env-manager", "local"]
    in_another_process(*command, folder=tmp_path)
    told = json.loads((tmp_path / "output.json").read_text())["predictions"]
    require_answers_of(pulled, told)
    files = json.loads((pulled / "MANIFEST.json").read_text())["files"]
    assert manifest.describe(pulled).keys() == files.keys() | {"MANIFEST.json"}


def test_a_pulled_version_answers_through_transformers(pulled: Path, tmp_path: Path) -> None:
    told = in_another_process("-c", LOADED, str(pulled), json.dumps(TEXTS), folder=tmp_path)
    require_answers_of(pulled, json.loads(told.splitlines()[-1]))


PAIRS = {"text": ["a day", "rain"], "text_pair": ["a night", "rain"]}


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        (task_of("classification", "accuracy", text_pair="other"), PAIRS),
        (task_of("regression", "mse"), {"text": TEXTS}),
        (task_of("token_classification", "accuracy"), {"text": [["in", "Rome"], ["to"]]}),
    ],
    ids=["pairs", "numbers", "words"],
)
def test_each_form_of_task_takes_and_gives_tables(
    tmp_path: Path, task: TaskConfig, columns: dict[str, list[Any]]
) -> None:
    folder = save_model(tmp_path / "model", task)
    for name, text in mlmodel.documents(task, final()).items():
        (folder / name).write_text(text)
    told = mlflow.pyfunc.load_model(str(folder)).predict(pd.DataFrame(columns))
    expected = Predictor(folder, task).predict(columns["text"], columns.get("text_pair"))
    assert list(told["prediction"]) == [one.label for one in expected]
    assert list(told["score"]) == [one.score for one in expected]
    lacking = pd.DataFrame({"words": columns["text"]})
    with pytest.raises(mlflow.exceptions.MlflowException, match="missing"):
        mlflow.pyfunc.load_model(str(folder)).predict(lacking)


def test_the_same_training_gives_the_same_files(tmp_path: Path) -> None:
    one, other = (mlmodel.documents(TASK, final()) for _ in range(2))
    assert one == other
    assert one["requirements.txt"].splitlines() == [
        f"mlflow=={mlflow.__version__}",
        "pretune==0.1.0",
        f"torch=={torch.__version__.partition('+')[0]}",
        "transformers==5.23.0",
    ]
    (tmp_path / "MLmodel").write_text(one["MLmodel"])
    signature = Model.load(str(tmp_path)).signature
    assert signature.inputs.input_names() == ["text"]
    assert signature.outputs.input_names() == ["prediction", "score"]


def test_a_run_makes_its_champion_an_mlflow_model_and_mirrors_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of a pipeline on a given base, in this process."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    save_base(tmp_path / "base")
    write_classification(tmp_path / "tone.csv")
    data = {"path": "tone.csv", "split": {"test": 0.25, "validation": 0.25}}
    space = {"learning_rate": [0.01, 0.003], "epochs": 2}
    task = {
        "type": "classification",
        "data": data,
        "metric": "accuracy",
        "max_length": 64,
        "search": {"trials": 2, "searcher": "random", "space": space},
        "final": {"top": 1, "seeds": 1},
    }
    written = {
        "name": "tiny",
        "storage": str(tmp_path / "storage"),
        "base": {"from": "base"},
        "tasks": {"tone": task},
    }
    opened = Session.open(load_config(write_pipeline(tmp_path, written)), tmp_path)
    plan = opened.plan()
    opened.write_head(plan)
    result = runner.run(opened.steps, plan, opened.context(LocalCluster()), opened.journal)
    assert set(result.states.values()) == {State.DONE}, result.failures

    store, uri = ModelStore(opened.paths.storage), tracking_uri(opened.paths.storage)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loaded = mlflow.pyfunc.load_model("models:/tiny.tone@champion")
    told = loaded.predict(pd.DataFrame({"text": ["a wonderful day", "a terrible day"]}))
    assert list(told["prediction"]) == ["good", "bad"]
    version = store.resolve("tiny.tone@champion")
    assert loaded.metadata.model_uuid == store.facts(version)["fingerprint"][:32]
    assert store.damage(version) is None  # MLflow writes into folders that it loads from a disk

    client = MlflowClient(uri)
    champion = client.get_model_version_by_alias("tiny.tone", "champion")
    assert client.get_run(champion.run_id).info.run_name == opened.paths.run_id
    assert champion.description.startswith("the first model")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert len(runs) == 1 + 2  # the parent and two trials
    steps = {tag.removeprefix("pretune.step.") for tag in champion.tags if ".step." in tag}
    assert steps == {"base", "tone.data", "tone.tune", "tone.final"}
    written_again = tracking.sync(uri, opened.paths.storage)
    assert (written_again.runs, written_again.versions) == (0, 0)
