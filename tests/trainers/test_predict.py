"""Fine-tuned folders of every family, from random tiny bases: what they hold, what they say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, write_classification, write_entities
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from trainers import finetune, model, tasks, tokenizer
from trainers.config import ModelConfig, TokenizerConfig
from trainers.finetune import Training
from trainers.predict import Predictor
from trainers.task_config import Hyperparameters, SplitConfig, TaskConfig, TaskDataConfig

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
    tasks.prepare(data, path, folder / "data")
    settings = {"learning_rate": 0.01, "epochs": 3, "dropout": 0.0, **point}
    plan = Training(
        task=task,
        base=random_base(folder / "base", family),
        data=folder / "data",
        hyperparameters=Hyperparameters.model_validate(settings),
        from_scratch=False,
        output=folder / "model",
        threads=1,
        use_gpu=False,
    )
    return plan, finetune.train_and_export(plan)


@pytest.mark.parametrize(
    ("family", "learning_rate", "epochs"),
    [("llama", 0.01, 3), ("gpt2", 0.01, 5), ("bert", 0.005, 8)],
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
    again, _ = finetune.evaluate(plan.output, plan.task, tasks.load(plan.data, tasks.VALIDATION))
    assert again == scores
    texts = tasks.load(plan.data, tasks.TEST).texts
    found = Predictor(plan.output, plan.task.type, MAX_LENGTH).predict(texts)
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
    again, _ = finetune.evaluate(plan.output, plan.task, tasks.load(plan.data, tasks.VALIDATION))
    assert again == scores


def test_exported_tokenizer_cuts_where_training_did(tmp_path: Path) -> None:
    plan, _ = trained(tmp_path, "llama", "classification", epochs=1)
    loaded = AutoTokenizer.from_pretrained(plan.output)
    assert loaded.model_max_length == MAX_LENGTH


def test_predictions_do_not_depend_on_the_company_of_a_text(tmp_path: Path) -> None:
    plan, _ = trained(tmp_path, "gpt2", "classification", epochs=1)
    predictor = Predictor(plan.output, plan.task.type, MAX_LENGTH)
    texts = [" ".join(WORDS[start : start + 1 + start % 11]) for start in range(70)]
    together = predictor.predict(texts)
    alone = [predictor.predict([text])[0] for text in texts]
    assert [one.label for one in together] == [other.label for other in alone]
    assert [one.score for one in together] == pytest.approx([a.score for a in alone], abs=1e-5)


def test_predicting_uses_no_dropout(tmp_path: Path) -> None:
    plan, _ = trained(tmp_path, "bert", "classification", epochs=1, dropout=0.5)
    predictor = Predictor(plan.output, plan.task.type, MAX_LENGTH)
    torch.manual_seed(0)
    first = predictor.predict(["some text"])
    assert predictor.predict(["some text"]) == first
