"""Finished steps of a run that never was, with the files that the report reads."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from trainers import predictions, task_data
from trainers.task_types.base import Prediction
from workflows.artifacts import Finished
from workflows.ledger import Record

RUN = "tiny-20261127-040505-22cc"
BEGAN_AT = datetime(2026, 11, 27, 4, 5, 14, tzinfo=UTC)

LABELS = {
    "classification": ["bad", "good"],
    "multi_label": ["cheap", "fast", "good"],
    "token_classification": ["B-LOC", "O"],
}
ROWS: Mapping[str, Sequence[tuple[Any, Any, Prediction]]] = {
    "classification": [
        ("a wonderful day", "good", Prediction("good", 0.9, [0.1, 0.9])),
        ("a terrible day", "bad", Prediction("good", 0.8, [0.2, 0.8])),
        ("a day", "good", Prediction("bad", 0.6, [0.6, 0.4])),
        ("not my day", "bad", Prediction("bad", 0.7, [0.7, 0.3])),
    ],
    "multi_label": [
        ("quick and good", ["fast", "good"], Prediction(["fast"], [0.9], [0.1, 0.9, 0.2])),
        ("nothing", [], Prediction([], [], [0.1, 0.2, 0.3])),
        ("dear and slow", [], Prediction(["cheap"], [0.95], [0.95, 0.1, 0.1])),
    ],
    "regression": [
        ("four stars", 4.0, Prediction(3.5, None)),
        ("one star", 1.0, Prediction(4.25, None)),
    ],
    "token_classification": [
        (["in", "Rome"], ["O", "B-LOC"], Prediction(["O", "O"], [0.99, 0.75])),
        (["at", "home"], ["O", "O"], Prediction(["O", "O"], [0.9, 0.9])),
    ],
    "question_answering": [
        (
            "She was born in Rome in 1912.",
            {"answers": ["Rome"], "start": 16},
            Prediction("in 1912", None),
        ),
        ("He lives in Oslo.", {"answers": ["Oslo"], "start": 12}, Prediction("Oslo", None)),
    ],
    "generation": [
        ("two and two", "four", Prediction("five", None, loss=2.5)),
        ("one and one", "two", Prediction("two", None, loss=0.1)),
    ],
}
"""Texts, labels and what was said, by type of task."""
METRIC = {
    "classification": "accuracy",
    "multi_label": "micro_f1",
    "regression": "mse",
    "token_classification": "entity_f1",
    "question_answering": "f1",
    "generation": "rouge_l",
}


class Story:
    """A run, told step by step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[str] = []
        self.finished: dict[str, Finished] = {}
        self.promotions: dict[str, dict[str, Any]] = {}

    @property
    def told(self) -> tuple[str, list[str], dict[str, Finished], dict[str, dict[str, Any]]]:
        """What `render` takes."""
        return "tiny", self.steps, self.finished, self.promotions

    def step(self, name: str, kind: str, *inputs: str, **more: Any) -> Path:
        """A finished step; its output folder."""
        number = len(self.steps)
        output = self.folder / name
        output.mkdir(parents=True)
        told: dict[str, Any] = {
            "facts": {},
            "spec": {},
            "run": RUN,
            "outside": {},
            "files": {"output.bin": {"size": 1500, "sha256": "0" * 64}},
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "elapsed_s": 2.0,
        } | more
        told.setdefault("inputs", {n: self.finished[n].record.fingerprint for n in inputs})
        record = Record(
            name=name,
            kind=kind,
            version=1,
            fingerprint=f"{number:02d}" + "f" * 62,
            attempt=f"attempt-{number}",
            finished_at=(BEGAN_AT + timedelta(seconds=3 * number)).isoformat(),
            source=f"311-{number:016d}",
            **told,
        )
        self.steps.append(name)
        self.finished[name] = Finished(record, output)
        return output

    def pretrained(self) -> None:
        """Corpus, tokens and a pretraining that was in trouble once."""
        facts = {"train": 12345, "duplicates": 67, "malformed": 0}
        outside = {"s3://bucket/secret/corpus.txt?secret=1": "c0ffee" + "0" * 58}
        self.step("corpus", "corpus", facts=facts, outside=outside)
        self.step("tokens", "tokens", "corpus", facts={"tokens": 890123, "padding_share": 0.000806})
        output = self.step("pretrain", "pretrain", "tokens", facts=_PRETRAINED)
        told = {"history": _HISTORY, "speeds": _SPEEDS}
        (output / "pretraining.json").write_text(json.dumps(told))

    def looks(self, name: str, scores: Mapping[int, float]) -> None:
        """Looks at a task above branches of pretraining, by tokens."""
        for tokens, score in scores.items():
            branch, facts = f"pretrain.branch-{tokens}", {"tokens": tokens}
            self.step(branch, "branch", "pretrain", facts=facts)
            look = {"head": {METRIC["classification"]: score}, "rows": 100}
            inputs = {"base": self.finished[branch].record.fingerprint}
            spec = {"task": {"metric": METRIC["classification"]}}
            self.step(f"{name}.probe-{tokens}", "probe", facts=look, inputs=inputs, spec=spec)

    def task(self, name: str, kind: str, **more: Any) -> None:
        """Data, search, final training and verdict of a task."""
        rows = more.get("rows", ROWS[kind])
        labels = more.get("labels", LABELS.get(kind, []))
        spec = {
            "task": {
                "type": "classification" if kind == "multi_label" else kind,
                "multi_label": kind == "multi_label",
                "metric": METRIC[kind],
            }
        }
        data = self.step(f"{name}.data", "data")
        write_rows(data, labels, [(text, label) for text, label, _ in rows])
        tune = self.step(f"{name}.tune", "tune", f"{name}.data", spec=spec)
        trials = more.get("trials", search(METRIC[kind], 3))
        (tune / "trials.json").write_text(json.dumps(trials))
        inputs = (f"{name}.data", f"{name}.tune")
        final = self.step(f"{name}.final", "final", *inputs, spec=spec)
        (final / "final.json").write_text(json.dumps(result(METRIC[kind])))
        (final / "model").mkdir()
        path = final / "model" / "predictions.parquet"
        predictions.write(path, [label for _, label, _ in rows], [said for _, _, said in rows])
        self.step(f"{name}.promote", "promote", f"{name}.data", f"{name}.final")
        self.promotions[f"{name}.promote"] = verdict(f"tiny.{name}@1")


def write_rows(folder: Path, labels: Sequence[str], rows: Sequence[tuple[Any, Any]]) -> None:
    """The test rows of a task, as `trainers.task_data` writes them."""
    table = pa.Table.from_pylist([{"text": text, "label": label} for text, label in rows])
    pyarrow.parquet.write_table(table, folder / f"{task_data.TEST}.parquet")
    (folder / task_data.LABELS).write_text(json.dumps(labels))


def search(metric: str, trials: int) -> list[dict[str, Any]]:
    """Trials whose score depends on the learning rate, and of two methods."""
    return [
        {
            "trial_id": f"t{n:03d}",
            "hyperparameters": {
                "learning_rate": 10 ** (-4 + 2 * n / trials),
                "method": "lora" if n % 3 else "full",
                "epochs": 2,
                **({"lora_rank": 4 + n % 2} if n % 3 else {}),
            },
            "status": "finished",
            "history": [{metric: 0.4}, {metric: 0.5 + 0.4 * n / trials}],
            "error": None,
            "changes": [],
            "drawn": None,
        }
        for n in range(trials)
    ]


def result(metric: str) -> dict[str, Any]:
    """A `final.json`."""
    own = [{metric: value} for value in (0.80, 0.82, 0.84)]
    baselines = {"majority": {metric: 0.5}, "tf-idf": {metric: 0.83}}
    return {
        "metric": metric,
        "lower_is_better": metric == "mse",
        "test": {metric: 0.82},
        "test_rows": 4,
        "test_openings": 2,
        "validation": 0.9,
        "seeds": {"pretrained": own, "scratch": [{metric: 0.70}]},
        "baselines": baselines,
        "search": {"trials": 3, "best_validation": 0.9, "again_validation": [0.88, 0.86]},
        "label_fractions": [
            {"rows": 9, "baselines": baselines, "pretrained": own, "scratch": []},
            {"rows": 90, "baselines": baselines, "pretrained": own, "scratch": [{metric: 0.7}]},
        ],
    }


def verdict(model: str, reason: str = "the first model") -> dict[str, Any]:
    """What a step told that judged a model."""
    rival = {"score": 0.5, "value": 0.32, "low": 0.25, "high": 0.4, "p": 0.0001, "rows": 60}
    return {
        "model": model,
        "promoted": True,
        "outcome": "promoted",
        "reason": reason,
        "compared": {"constant": {"model": "always the same answer", **rival}},
        "guards": {"size_mb": 0.17, "worst_slice": {"short": 0.75}},
    }


_HISTORY = [
    {
        "optimizer_step": n,
        "tokens": 256 * n,
        "learning_rate": 0.003 / n,
        "loss": 6.0 / n,
        "gradient_norm": 1.0,
        **({"validation_loss": 6.1 / n} if n % 2 == 0 else {}),
    }
    for n in range(1, 7)
]
_SPEEDS = [
    {"optimizer_step": n, "tokens_per_s": 4000.0 + n, "memory_bytes": 6e8} for n in range(1, 7)
]
_PRETRAINED = {
    "parameters": 53408,
    "tokens": 1536,
    "world_size": 2,
    "precision": "fp32",
    "loss": 1.0,
    "validation_loss": 1.02,
    "training_s": 1800.0,
    "data_s": 1.0,
    "skipped_steps": 3,
    "samples": 80,
    "samples_digest": "ab" * 32,
    "memory_bytes_per_rank": [646467584, 642764800],
    "rollbacks": [
        {"after_step": 5, "to_step": 2, "samples": [8, 20], "cause": "the loss is <nan>"}
    ],
    "branches": [{"start_step": 3, "stop_step": 4, "folder": "b", "validation_loss": 2.2}],
}
