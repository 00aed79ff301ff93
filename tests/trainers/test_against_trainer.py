"""A fine-tuning script as anybody would write it around Hugging Face's Trainer scores the same."""

import random
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from conftest import WORDS
from test_predict import MAX_LENGTH, config_of, random_base
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from trainers import retraining, task_data
from trainers.examples import Examples
from trainers.retraining import SavedModel, Training
from trainers.task_config import Hyperparameters, TaskConfig
from trainers.task_inputs import TrialExecution
from trainers.task_types import class_of

ONE = TrialExecution(threads=1, use_gpu=False)

SEEDS = range(4)
POINT = Hyperparameters(
    learning_rate=0.003, epochs=3, batch_size=16, weight_decay=0.01, warmup=0.1, dropout=0.0
)


def write_hard_rows(path: Path, rows: int = 1200) -> None:
    """Rows of two kinds of words; the majority tells the label, and one label in ten is wrong."""
    generator = random.Random(0)
    lines = ["text,label"]
    for number in range(rows):
        marks = generator.choices(["wonderful", "terrible"], k=3)
        is_good = (marks.count("wonderful") >= 2) != (generator.random() < 0.1)
        words = [*generator.choices(WORDS, k=5), *marks]
        generator.shuffle(words)
        lines.append(f"{' '.join(words)} {number},{'good' if is_good else 'bad'}")
    path.write_text("\n".join(lines), encoding="utf-8")


def by_trainer(base: Path, data: Path, seed: int, folder: Path) -> float:
    """Test accuracy of the peer's script."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    splits = {name: task_data.load(data, name) for name in task_data.SPLITS}
    names = sorted(set(splits["train"].labels))

    def encoded(rows: Examples) -> list[dict[str, object]]:
        ids = tokenizer(rows.texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        numbers = map(names.index, rows.labels)
        return [
            {"input_ids": row, "labels": number} for row, number in zip(ids, numbers, strict=True)
        ]

    torch.manual_seed(seed)
    network = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(names), attention_dropout=0.0
    )
    network.config.pad_token_id = tokenizer.pad_token_id
    trainer = Trainer(
        network,
        TrainingArguments(
            output_dir=str(folder),
            learning_rate=POINT.learning_rate,
            num_train_epochs=POINT.epochs,
            per_device_train_batch_size=POINT.batch_size,
            weight_decay=POINT.weight_decay,
            warmup_steps=POINT.warmup,
            adam_beta2=0.98,
            seed=seed,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=encoded(splits["train"]),  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    answers = trainer.predict(encoded(splits["test"])).predictions.argmax(-1)  # type: ignore[arg-type]
    return float(
        np.mean([names[n] == t for n, t in zip(answers, splits["test"].labels, strict=True)])
    )


@pytest.mark.slow
def test_same_base_data_and_hyperparameters_score_the_same(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    write_hard_rows(tmp_path / "rows.csv")
    task = TaskConfig(
        type="classification",
        data=config_of(tmp_path / "rows.csv"),
        metric="accuracy",
        max_length=MAX_LENGTH,
    )
    base, data = random_base(tmp_path / "base", "llama"), tmp_path / "data"
    data.mkdir()
    task_data.prepare(task.data, class_of(task.type, multi_label=False), tmp_path, data)
    ours, theirs = [], []
    for seed in SEEDS:
        plan = Training(
            task=task,
            base=base,
            data=data,
            hyperparameters=POINT.model_copy(update={"seed": seed}),
            from_scratch=False,
            output=tmp_path / f"model{seed}",
            execution=ONE,
        )
        retraining.train_and_export(plan)
        tested = SavedModel(plan.output, task, data, ONE)
        ours.append(retraining.test(tested)[0]["accuracy"])
        theirs.append(by_trainer(base, data, seed, tmp_path / f"trainer{seed}"))
    print(f"ours {ours}, Trainer's {theirs}")
    assert fmean(theirs) > 0.75  # of 0.9 that can be had: the task was learnt
    one_row = 1 / task_data.count(data, task_data.TEST)
    assert abs(fmean(ours) - fmean(theirs)) <= stdev(ours) + stdev(theirs) + one_row
