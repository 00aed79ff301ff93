"""Tiny models with random weights in a version's form, and processes that ask them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_base
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from trainers.predict import Predictor
from trainers.task_config import TaskConfig
from workflows.ledger import Record

ROOT = Path(__file__).parents[2]
LABELS = {0: "bad", 1: "good"}
TEXTS = ["a wonderful day", "a terrible day in the rain", "functions and classes"]


def task_of(kind: str, metric: str, **data: Any) -> TaskConfig:
    split = {"test": 0.2, "validation": 0.2}
    given = {"path": "rows.jsonl", "split": split, **data}
    return TaskConfig.model_validate(
        {"type": kind, "metric": metric, "data": given, "max_length": 64}
    )


TASK = task_of("classification", "accuracy")


def save_model(folder: Path, task: TaskConfig = TASK) -> Path:
    """A model whose weights are so large that its answers differ."""
    folder.mkdir()
    save_base(folder)
    labels = {0: "LABEL_0"} if task.type == "regression" else LABELS
    config = AutoConfig.from_pretrained(folder, initializer_range=0.5)
    config.id2label, config.label2id = labels, {name: number for number, name in labels.items()}
    heads = {"token_classification": AutoModelForTokenClassification}
    torch.manual_seed(0)
    model = heads.get(task.type, AutoModelForSequenceClassification).from_config(config)
    model.save_pretrained(folder)
    return folder


def final() -> Record:
    """Of the training that made such a model."""
    return Record(
        name="tone.final",
        kind="final",
        version=1,
        fingerprint="f" * 64,
        spec={},
        inputs={},
        outside={},
        attempt="a",
        facts={},
        files={},
        run="tiny-20261126-120000-aaaa",
        finished_at="2026-11-26T12:00:00+00:00",
        elapsed_s=1.0,
        versions={"pretune": "0.1.0", "torch": torch.__version__, "transformers": "5.23.0"},
    )


def in_another_process(*arguments: str, folder: Path, **settings: str) -> str:
    """What Python prints that knows nothing of this process but its environment."""
    answer = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | settings,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def require_answers_of(folder: Path, told: Sequence[dict[str, Any]]) -> None:
    """The same labels and scores as the model gives here, text by text."""
    found = Predictor(folder, TASK).predict(TEXTS)
    assert len({round(one.score, 3) for one in found}) == len(TEXTS)  # else any order would do
    assert [one.get("prediction", one.get("label")) for one in told] == [one.label for one in found]
    assert [one["score"] for one in told] == pytest.approx([one.score for one in found], abs=1e-5)
