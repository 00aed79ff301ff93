"""Tasks without pretraining, through the command line: answers found and answers written."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, save_base, write_classification, write_pipeline
from processes import pretune

from workflows.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PLACES = ["Paris", "Rome", "Oslo"]


def write_rows(path: Path, number: int = 200) -> None:
    """Texts that name a place; asked for it, the answer is in the text, or to be written."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "question", "place"])
        for row in range(number):
            place = generator.choice(PLACES)
            words = " ".join(generator.choices(WORDS, k=2))
            writer.writerow([f"{words} in {place} {row}", "where", place])


def test_answers_are_found_and_written_from_a_folder(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    write_rows(tmp_path / "rows.csv")
    data = {"path": "rows.csv", "label": "place", "split": {"test": 0.25, "validation": 0.25}}
    common = {
        "max_length": 48,
        "answer_length": 8,
        "search": {"trials": 1, "space": {"learning_rate": 0.01, "epochs": 6, "dropout": 0.0}},
        "final": {"seeds": 1},
    }
    pipeline = write_pipeline(
        tmp_path,
        {
            "name": "given",
            "storage": str(tmp_path / "storage"),
            "base": {"from": "base"},
            "tasks": {
                "ask": {
                    "type": "question_answering",
                    "data": {**data, "text_pair": "question"},
                    "metric": "f1",
                    **common,
                },
                "write": {"type": "generation", "data": data, "metric": "loss", **common},
            },
        },
    )
    answer = pretune("run", pipeline, "--json", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    summary = json.loads(answer.stdout)
    assert summary["champions"] == {"given.ask": "given.ask@1", "given.write": "given.write@1"}
    for name in ("ask", "write"):
        assert "promoted" in str(summary["promotions"][f"{name}.promote"])
    report = (tmp_path / "storage" / "runs" / summary["run"] / "report.html").read_text("utf-8")
    assert "whole text" in report

    storage = ("--storage", tmp_path / "storage", "--json")
    question = ("--text", "we met in Rome 9", "--text", "where")
    asked = pretune("predict", "given.ask", *question, *storage, folder=tmp_path)
    (found,) = json.loads(asked.stdout)
    assert found["prediction"]
    assert found["prediction"] in "we met in Rome 9"
    asked = pretune("predict", "given.ask", *question, *storage[:2], folder=tmp_path)
    assert asked.stdout == f"{found['prediction']}  <- we met in Rome 9 | where\n"
    written = pretune("predict", "given.write", *question[:2], *storage, folder=tmp_path)
    assert set(json.loads(written.stdout)[0]) == {"text", "prediction", "score"}


@pytest.mark.soak
def test_what_a_population_found_is_trained_again(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    write_classification(tmp_path / "tone.csv")
    task = {
        "type": "classification",
        "data": {"path": "tone.csv", "split": {"test": 0.25, "validation": 0.25}},
        "metric": "accuracy",
        "max_length": 64,
        "search": {
            "trials": 4,
            "scheduler": "pbt",
            "space": {"learning_rate": {"loguniform": [1e-5, 3e-2]}, "epochs": 8, "dropout": 0.0},
        },
        "final": {"seeds": 2},
        "controls": {"scratch": True, "label_fractions": [0.5]},
    }
    pipeline = write_pipeline(
        tmp_path,
        {
            "name": "given",
            "storage": str(tmp_path / "storage"),
            "base": {"from": "base"},
            "tasks": {"tone": task},
        },
    )
    answer = pretune("run", pipeline, "--json", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    (file,) = (tmp_path / "storage").glob("artifacts/tune/*/*/output/trials.json")
    trials = json.loads(file.read_text(encoding="utf-8"))
    assert any(trial["changes"] for trial in trials)
    (file,) = (tmp_path / "storage").glob("artifacts/final/*/*/output/final.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    best = max(trials, key=lambda trial: trial["history"][-1]["accuracy"])
    assert result["hyperparameters"]["learning_rate"] == best["hyperparameters"]["learning_rate"]
    assert [epoch for epoch, _ in result["changes"]] == [epoch for epoch, _ in best["changes"]]
    assert result["test_openings"] == 1
    assert result["search"]["trials"] == 4

    looked = pretune("plan", pipeline, "--probe", "--json", folder=tmp_path)
    assert looked.returncode == 0, looked.stderr
    (row,) = json.loads(looked.stdout)
    assert (row["task"], row["metric"]) == ("tone", "accuracy")
    assert 0.0 <= row["head"] <= 1.0
    assert {"majority", "tf-idf"} <= set(row)
    assert "tone.final: reused" in looked.stderr  # nothing else is run


@pytest.mark.soak
def test_an_object_store_and_two_workers_a_trial_find_what_one_finds_in_a_folder(
    tmp_path: Path, s3: str
) -> None:
    save_base(tmp_path / "base")
    write_classification(tmp_path / "tone.csv")
    search = {
        "trials": 3,
        "searcher": "grid",
        "space": {
            "method": ["full", "lora", "head"],
            "learning_rate": 0.01,
            "epochs": 2,
            "batch_size": 15,
            "dropout": 0.0,
        },
    }
    data = {
        "name": "given",
        "base": {"from": "base"},
        "tasks": {
            "tone": {
                "type": "classification",
                "data": {"path": "tone.csv", "split": {"test": 0.25, "validation": 0.25}},
                "metric": "accuracy",
                "max_length": 64,
                "search": search,
                "final": {"seeds": 1},
            }
        },
    }
    alone, spread = str(tmp_path / "storage"), f"{s3}/spread"
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for storage, workers in ((alone, 1), (spread, 2)):
        pipeline = write_pipeline(
            tmp_path, {**data, "storage": storage, "cluster": {"trials": {"workers": workers}}}
        )
        answer = pretune("run", pipeline, "--json", folder=tmp_path)
        assert answer.returncode == 0, answer.stderr
        files = Storage.at(storage)
        # Of several workers none could hold the base, so that its features were not computed.
        features = json.loads(one_of(files, "artifacts/features", "output/features.json"))
        assert features["pooling"] == ("last" if workers == 1 else None)
        found[storage] = (
            json.loads(one_of(files, "artifacts/tune", "output/trials.json")),
            json.loads(one_of(files, "artifacts/final", "output/final.json")),
        )
    (trials, result), (trials_of_ranks, result_of_ranks) = found[alone], found[spread]
    losses = [[epoch["loss"] for epoch in trial["history"]] for trial in trials]
    assert [[epoch["loss"] for epoch in trial["history"]] for trial in trials_of_ranks] == [
        pytest.approx(history, abs=1e-4) for history in losses
    ]
    assert result_of_ranks["hyperparameters"] == result["hyperparameters"]
    assert result_of_ranks["test"] == pytest.approx(result["test"], abs=0.05)
    shown = pretune("models", "list", "--json", "--storage", spread, folder=tmp_path)
    assert [row["champion"] for row in json.loads(shown.stdout)] == [1]


def one_of(files: Storage, under: str, ends: str) -> bytes:
    """The only file with this end under a folder."""
    (name,) = [name for name in files.find(under) if name.endswith(ends)]
    return files.read(f"{under}/{name}")
