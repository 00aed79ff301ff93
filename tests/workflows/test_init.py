"""`pretune init`: what it makes of files, and that what it writes is a pipeline."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_classification, write_corpus, write_entities, write_pairs
from typer.testing import CliRunner, Result

from workflows import cli, proposal
from workflows.config import PipelineConfig, load_config
from workflows.looking import CorpusLook
from workflows.proposal import Machine, training


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus.txt")


def init(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["init", *arguments])


def made(*arguments: str) -> PipelineConfig:
    answer = init("--corpus", "corpus.txt", *arguments)
    assert answer.exit_code == 0, answer.output
    return load_config(Path("pipeline.yaml"))


def write_jsonl(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def write_csv(name: str, rows: list[dict[str, Any]]) -> None:
    with Path(name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_pipeline_of_texts_and_labels_is_valid(tmp_path: Path) -> None:
    write_classification(tmp_path / "tone.csv")
    write_entities(tmp_path / "places.txt")
    write_pairs(tmp_path / "pairs.csv")
    config = made(
        *("--task", "tone.csv", "--task", "where=places.txt", "--task", "alike=pairs.csv"),
        *("--column", "alike.label=label", "--name", "mine", "--minutes", "2"),
    )
    assert config.name == "mine"
    assert config.pretraining is not None
    assert config.pretraining.corpus.held_out == ["tone", "where", "alike"]
    found = {name: (task.type, task.metric) for name, task in config.tasks.items()}
    assert found == {
        "tone": ("classification", "accuracy"),
        "where": ("token_classification", "entity_f1"),
        "alike": ("classification", "accuracy"),
    }
    alike = config.tasks["alike"].data
    assert (alike.text, alike.text_pair, alike.label) == ("first", "second", "label")
    assert config.tasks["tone"].data.split.stratify
    text = Path("pipeline.yaml").read_text(encoding="utf-8")
    assert "labels: bad 125, good 115" in text
    answer = CliRunner().invoke(cli.app, ["validate", "pipeline.yaml"])
    assert answer.exit_code == 0, answer.output


WORDS = ["one", "two", "three", "four", "five", "six", "seven"]
ANSWERS = [{"text": ["Rome"], "answer_start": [10]}]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [{"id": n, "Body": f"text {n} and more", "Mood": "ab"[n % 2]} for n in range(99)],
            {"type": "classification", "data.text": "Body", "data.label": "Mood"},
        ),
        (
            [{"text": f"text {n}", "label": ["a"] * (n % 3) + ["b"]} for n in range(60)],
            {"type": "classification", "multi_label": True, "metric": "micro_f1"},
        ),
        (
            [{"text": f"text {n}", "score": n / 7} for n in range(60)],
            {"type": "regression", "metric": "pearson", "data.label": "score"},
        ),
        (
            [{"text": f"text {n}", "label": "rare" if n % 9 == 0 else "usual"} for n in range(90)],
            {"type": "classification", "metric": "macro_f1"},
        ),
        (
            [{"words": WORDS, "tags": ["B-x", "I-x", *"OOOOO"], "n": n} for n in range(30)],
            {"type": "token_classification", "metric": "entity_f1", "data.text": "words"},
        ),
        (
            [
                {"context": f"We met in Rome {n}", "question": "where", "answers": ANSWERS[0]}
                for n in range(40)
            ],
            {"type": "question_answering", "data.text_pair": "question", "data.text": "context"},
        ),
        (
            [
                {"text": f"a long text {n} " * 9, "summary": f"what it says is {n} and no more"}
                for n in range(40)
            ],
            {"type": "generation", "metric": "rouge_l", "data.label": "summary"},
        ),
    ],
    ids=["names", "multi-label", "regression", "imbalanced", "words", "questions", "generation"],
)
def test_what_rows_are_is_read_off_them(
    rows: list[dict[str, Any]], expected: dict[str, Any]
) -> None:
    write_jsonl("rows.jsonl", rows)
    task = made("--task", "rows.jsonl").tasks["rows"]
    found = {
        key: getattr(task.data if key.startswith("data.") else task, key.removeprefix("data."))
        for key in expected
    }
    assert found == expected


def test_rows_sorted_by_label_are_seen_to_their_end() -> None:
    rows = [{"text": f"text {n}", "label": "ab"[n // 15_000]} for n in range(30_000)]
    write_csv("rows.csv", rows)
    task = made("--task", "rows.csv").tasks["rows"]
    assert (task.type, task.metric) == ("classification", "accuracy")
    seen = Path("pipeline.yaml").read_text(encoding="utf-8")
    assert "looked at 3,750 of 30,000 rows" in seen
    assert "labels: a 1,875, b 1,875" in seen


def test_a_given_base_is_tuned_alone(tmp_path: Path) -> None:
    write_classification(tmp_path / "tone.csv")
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    answer = init("--base", "base", "--task", "tone.csv")
    assert answer.exit_code == 0, answer.output
    config = load_config(Path("pipeline.yaml"))
    assert config.base is not None
    assert config.base.from_ == "base"
    assert config.pretraining is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give --corpus or --base, and at least one --task"),
        (("--corpus", "corpus.txt"), "at least one --task"),
        (("--corpus", "none.txt", "--task", "tone.csv"), "none.txt: no such file"),
        (("--corpus", "corpus.txt", "--task", "none.csv"), "none.csv: no such file"),
        (("--corpus", "corpus.txt", "--task", "a=tone.csv", "--task", "a=tone.csv"), "NAME=PATH"),
        (
            ("--corpus", "corpus.txt", "--task", "tone.csv", "--column", "tone.text=nothing"),
            "no column 'nothing'; it has 'text', 'label'",
        ),
        (
            ("--corpus", "corpus.txt", "--task", "tone.csv", "--column", "tone.size=x"),
            "expected one of tone.text, tone.label, and =COLUMN",
        ),
        (("--corpus", "corpus.txt", "--task", "odd.csv"), "which column is the label?"),
        (("--corpus", "corpus.txt", "--task", "bare.jsonl"), "column 'label' is empty"),
    ],
)
def test_what_cannot_be_told_is_asked_for_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    write_classification(tmp_path / "tone.csv")
    write_csv("odd.csv", [{"one": f"{n} words", "two": f"{n} others"} for n in range(30)])
    write_jsonl("bare.jsonl", [{"text": "words", "label": None}] * 9)
    answer = init(*arguments)
    assert answer.exit_code == 2, answer.output
    assert told in answer.output
    assert not Path("pipeline.yaml").exists()


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    Path("pipeline.yaml").write_text("mine")
    answer = init("--corpus", "corpus.txt", "--task", "tone.csv")
    assert answer.exit_code == 2
    assert Path("pipeline.yaml").read_text() == "mine"


def corpus(size_bytes: int) -> CorpusLook:
    return CorpusLook("c.txt", "lines", "text", 1, size_bytes, (100,) * 50, 6.0)


def test_more_time_and_more_text_make_larger_models() -> None:
    slow, fast = Machine(1e10, 2, 0), Machine(1e15, 8, 8)
    small = training(corpus(10**6), fast, 60)
    large = training(corpus(10**11), fast, 60)
    short = training(corpus(10**11), slow, 1)
    assert small.network.width < large.network.width > short.network.width
    for one in (small, large, short):
        parameters = one.network.parameters(one.vocab_size)
        assert one.tokens <= 21 * parameters + one.batch_tokens * 20
        assert one.batch_tokens % one.sequence_length == 0
        assert one.tokens % one.batch_tokens == 0
    parameters = large.network.parameters(large.vocab_size)
    assert 6 * parameters * large.tokens <= 1e15 * 3600
    assert proposal.tokens_of(corpus(10**6)) == 250_000
