"""Fine-tuned folders of every family, from random tiny bases: what they hold, what they say."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, write_classification, write_entities, write_pairs
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from trainers import bases, finetune, model, retraining, task_data, tokenizer
from trainers.config import ModelConfig, TokenizerConfig
from trainers.predict import Predictor
from trainers.retraining import Training
from trainers.task_config import Hyperparameters, SplitConfig, TaskConfig, TaskDataConfig
from trainers.task_inputs import TrialExecution
from trainers.task_types import class_of

ONE = TrialExecution(threads=1, use_gpu=False)

MAX_LENGTH = 96
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2},
    "bert": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}


def random_base(folder: Path, family: str) -> Path:
    config = TokenizerConfig(train="bpe", vocab_size=400)
    words = tokenizer.build(config, Path(), [" ".join(WORDS)], MAX_LENGTH)
    objective = "masked" if family == "bert" else "causal"
    built = model.for_pretraining(
        ModelConfig(objective=objective, architecture=family, config=FAMILIES[family]),  # type: ignore[arg-type]
        Path(),
        words,
        MAX_LENGTH,
        seed=0,
    )
    model.export(folder, built, dict(built.named_parameters()), words)
    return folder


def trained(folder: Path, family: str, kind: str, **point: Any) -> tuple[Training, dict[str, Any]]:
    """A finished training with its scores on the validation rows."""
    is_words = kind == "token_classification"
    path = folder / ("rows.txt" if is_words else "rows.csv")
    (write_entities if is_words else write_classification)(path)
    data = TaskDataConfig(
        path=path.name,
        format="conll" if is_words else "csv",
        split=SplitConfig(test=0.25, validation=0.25),
    )
    metric = "entity_f1" if is_words else "accuracy"
    task = TaskConfig(type=kind, data=data, metric=metric, max_length=MAX_LENGTH)  # type: ignore[arg-type]
    (folder / "data").mkdir()
    task_data.prepare(data, class_of(kind, multi_label=False), folder, folder / "data")
    settings = {"learning_rate": 0.01, "epochs": 3, "dropout": 0.0, **point}
    plan = Training(
        task=task,
        base=random_base(folder / "base", family),
        data=folder / "data",
        hyperparameters=Hyperparameters.model_validate(settings),
        from_scratch=False,
        output=folder / "model",
        execution=ONE,
    )
    return plan, retraining.train_and_export(plan)


@pytest.mark.parametrize(
    ("family", "learning_rate", "epochs"),
    [("llama", 0.01, 3), ("gpt2", 0.005, 5), ("bert", 0.005, 8)],
)
def test_text_classifier_is_whole_and_says_what_training_measured(
    tmp_path: Path, family: str, learning_rate: float, epochs: int
) -> None:
    plan, scores = trained(
        tmp_path, family, "classification", learning_rate=learning_rate, epochs=epochs
    )
    assert scores["accuracy"] > 0.9
    _, report = AutoModelForSequenceClassification.from_pretrained(
        plan.output, output_loading_info=True
    )
    assert not any(report.values()), report
    again, _ = retraining.evaluate(
        plan.output, plan.task, task_data.load(plan.data, task_data.VALIDATION)
    )
    assert again == scores
    texts = task_data.load(plan.data, task_data.TEST).texts
    found = Predictor(plan.output, plan.task).predict(texts)
    stock = pipeline("text-classification", model=str(plan.output))(texts)
    assert [one.label for one in found] == [other["label"] for other in stock]
    assert [one.score for one in found] == pytest.approx(
        [other["score"] for other in stock], abs=1e-5
    )


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_word_classifier_is_whole_and_says_what_training_measured(
    tmp_path: Path, family: str
) -> None:
    plan, scores = trained(tmp_path, family, "token_classification", epochs=6)
    assert scores["entity_f1"] > 0.9
    _, report = AutoModelForTokenClassification.from_pretrained(
        plan.output, output_loading_info=True
    )
    assert not any(report.values()), report
    again, _ = retraining.evaluate(
        plan.output, plan.task, task_data.load(plan.data, task_data.VALIDATION)
    )
    assert again == scores


def test_exported_tokenizer_cuts_where_training_did(tmp_path: Path) -> None:
    plan, _ = trained(tmp_path, "llama", "classification", epochs=1)
    loaded = AutoTokenizer.from_pretrained(plan.output)
    assert loaded.model_max_length == MAX_LENGTH


def test_predictions_do_not_depend_on_the_company_of_a_text(tmp_path: Path) -> None:
    plan, _ = trained(tmp_path, "gpt2", "classification", epochs=1)
    predictor = Predictor(plan.output, plan.task)
    texts = [" ".join(WORDS[start : start + 1 + start % 11]) for start in range(70)]
    together = predictor.predict(texts)
    alone = [predictor.predict([text])[0] for text in texts]
    assert [one.label for one in together] == [other.label for other in alone]
    assert [one.score for one in together] == pytest.approx([a.score for a in alone], abs=1e-5)


def test_predicting_uses_no_dropout(tmp_path: Path) -> None:
    plan, _ = trained(tmp_path, "bert", "classification", epochs=1, dropout=0.5)
    predictor = Predictor(plan.output, plan.task)
    torch.manual_seed(0)
    first = predictor.predict(["some text"])
    assert predictor.predict(["some text"]) == first


def finished(folder: Path, family: str, task: TaskConfig, **point: Any) -> tuple[Training, Any]:
    (folder / "data").mkdir()
    kind = class_of(task.type, multi_label=task.multi_label)
    task_data.prepare(task.data, kind, folder, folder / "data")
    plan = Training(
        task=task,
        base=random_base(folder / "base", family),
        data=folder / "data",
        hyperparameters=Hyperparameters.model_validate({"dropout": 0.0, **point}),
        from_scratch=False,
        output=folder / "model",
        execution=ONE,
    )
    return plan, retraining.train_and_export(plan)


def config_of(path: Path, **changes: Any) -> TaskDataConfig:
    settings: dict[str, Any] = {
        "path": path.name,
        "format": path.suffix[1:],
        "split": SplitConfig(test=0.25, validation=0.25),
    }
    return TaskDataConfig(**settings | changes)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_pairs_are_compared_and_stock_pipelines_compare_them_alike(
    tmp_path: Path, family: str
) -> None:
    write_pairs(tmp_path / "rows.csv")
    data = config_of(tmp_path / "rows.csv", text="first", text_pair="second")
    task = TaskConfig(type="classification", data=data, metric="auroc", max_length=MAX_LENGTH)
    plan, scores = finished(tmp_path, family, task, learning_rate=0.005, epochs=4)
    test = task_data.load(plan.data, task_data.TEST)
    again, _ = retraining.evaluate(
        plan.output, task, task_data.load(plan.data, task_data.VALIDATION)
    )
    assert again == pytest.approx(scores)
    assert test.pairs is not None
    found = Predictor(plan.output, task).predict(test.texts, test.pairs)
    rows = [
        {"text": one, "text_pair": two} for one, two in zip(test.texts, test.pairs, strict=True)
    ]
    stock = pipeline("text-classification", model=str(plan.output))(rows)
    assert [one.label for one in found] == [other["label"] for other in stock]
    assert [one.score for one in found] == pytest.approx([o["score"] for o in stock], abs=1e-5)
    turned = Predictor(plan.output, task).predict(test.pairs, test.texts)
    assert [one.probabilities for one in turned] != [one.probabilities for one in found]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_numbers_are_learnt_and_stock_pipelines_say_them_too(tmp_path: Path, family: str) -> None:
    write_classification(tmp_path / "words.csv")
    lines = (tmp_path / "words.csv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [f"{line.rsplit(',')[0]},{2.5 if line.endswith('good') else -1.0}" for line in lines]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    task = TaskConfig(
        type="regression",
        data=config_of(tmp_path / "rows.csv"),
        metric="mse",
        max_length=MAX_LENGTH,
    )
    plan, scores = finished(tmp_path, family, task, learning_rate=0.005, epochs=10)
    assert scores["mse"] < 1.0  # of a variance of 3
    assert scores["pearson"] > 0.8
    texts = task_data.load(plan.data, task_data.TEST).texts
    found = Predictor(plan.output, task).predict(texts)
    stock = pipeline("text-classification", model=str(plan.output))(texts)
    assert [one.label for one in found] == pytest.approx([o["score"] for o in stock], abs=1e-4)


@pytest.mark.parametrize(
    ("family", "point"),
    [
        ("llama", {"learning_rate": 0.005, "epochs": 10}),
        ("bert", {"learning_rate": 0.002, "epochs": 20, "batch_size": 8}),
    ],
)
def test_several_labels_are_learnt_and_stock_pipelines_say_them_too(
    tmp_path: Path, family: str, point: dict[str, Any]
) -> None:
    generator = random.Random(0)
    marks = {"good": "wonderful", "long": "endless"}
    rows = []
    for _ in range(320):
        labels = [label for label in marks if generator.random() < 0.5]
        words = [*generator.choices(WORDS, k=4), *(marks[label] for label in labels)]
        generator.shuffle(words)
        rows.append({"text": " ".join(words), "label": labels})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = TaskConfig(
        type="classification",
        multi_label=True,
        class_weights="balanced",
        data=config_of(path),
        metric="micro_f1",
        max_length=MAX_LENGTH,
    )
    plan, scores = finished(tmp_path, family, task, **point)
    assert scores["micro_f1"] > 0.9
    assert scores["auroc"] > 0.9
    texts = task_data.load(plan.data, task_data.TEST).texts
    found = Predictor(plan.output, task).predict(texts)
    assert {len(one.label) for one in found} == {0, 1, 2}
    stock = pipeline("text-classification", model=str(plan.output), top_k=None)(texts)
    for one, other in zip(found, stock, strict=True):
        assert set(one.label) == {entry["label"] for entry in other if entry["score"] >= 0.5}


def test_weights_of_classes_move_the_answers(tmp_path: Path) -> None:
    write_classification(tmp_path / "rows.csv")
    shares = []
    for name, weights in {"bad": {"bad": 50.0}, "good": {"good": 50.0}}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "rows.csv").write_bytes((tmp_path / "rows.csv").read_bytes())
        task = TaskConfig(
            type="classification",
            class_weights=weights,
            data=config_of(folder / "rows.csv"),
            metric="accuracy",
            max_length=MAX_LENGTH,
        )
        plan, _ = finished(folder, "llama", task, learning_rate=0.001, epochs=1)
        texts = task_data.load(plan.data, task_data.TEST).texts
        labels = [one.label for one in Predictor(plan.output, task).predict(texts)]
        shares.append(labels.count("bad") / len(labels))
    assert shares[0] > 0.8 > 0.2 > shares[1]


@pytest.mark.parametrize(
    ("family", "learning_rate", "epochs"),
    [("llama", 0.02, 6), ("gpt2", 0.02, 6), ("bert", 0.005, 12)],
)
def test_merged_model_is_whole_and_its_adapter_gives_the_same(
    tmp_path: Path, family: str, learning_rate: float, epochs: int
) -> None:
    point = {"method": "lora", "learning_rate": learning_rate, "epochs": epochs}
    plan, scores = trained(tmp_path, family, "classification", **point)
    assert scores["accuracy"] > 0.8
    whole, report = AutoModelForSequenceClassification.from_pretrained(
        plan.output, output_loading_info=True
    )
    assert not any(report.values()), report
    again, _ = retraining.evaluate(
        plan.output, plan.task, task_data.load(plan.data, task_data.VALIDATION)
    )
    assert again["accuracy"] == scores["accuracy"]
    adapter = plan.output / finetune.ADAPTER
    sizes = [
        sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for folder in (adapter, plan.output)
    ]
    assert 0 < sizes[0] < sizes[1]
    assert {file.name for file in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    # What is kept does not tell of the machine where it was made.
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in plan.output.rglob("*.*"))
    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained(
        plan.base, id2label=whole.config.id2label, pad_token_id=whole.config.pad_token_id
    )
    adapted = PeftModel.from_pretrained(base, adapter).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(
            adapted(input_ids=ids).logits, whole.eval()(input_ids=ids).logits, atol=1e-5, rtol=1e-4
        )


def test_method_of_an_encoder_trains_its_pooler_with_the_head(tmp_path: Path) -> None:
    plan, _ = trained(tmp_path, "bert", "classification", method="head", epochs=1)
    _, base = bases.weights_of(plan.base)
    _, tuned = bases.weights_of(plan.output)
    new = {n for n in tuned if n not in base or not np.array_equal(tuned[n], base[n])}
    assert new == {
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    }
