"""Rows of files, labelled by small models of random weights."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import WORDS, save_classifier

from trainers import inference
from trainers.config import SourceConfig
from trainers.errors import DataError
from trainers.examples import Examples
from trainers.pieces import END, Shard, Span
from trainers.predict import Predictor
from trainers.task_config import TaskConfig
from trainers.task_types.base import Prediction

LABELS = ("bad", "good")
ROWS: list[dict[str, Any]] = [
    {"id": number, "text": " ".join(WORDS[number : number + 1 + number % 9])}
    for number in range(60)
]


def task(**section: Any) -> TaskConfig:
    data = {"path": "rows.csv", "split": {"test": 0.2, "validation": 0.2}}
    data |= section.pop("data", {})
    given = {"type": "classification", "metric": "accuracy", "max_length": 64, **section}
    return TaskConfig.model_validate({**given, "data": data})


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(save_classifier(tmp_path_factory.mktemp("model"), LABELS), task())


def written(folder: Path, rows: list[dict[str, Any]], name: str) -> Shard:
    """A shard of a whole new file."""
    path = folder / name
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
        case ".txt":
            path.write_text("".join(row["text"] + "\n" for row in rows), encoding="utf-8")
    config = SourceConfig.model_validate({"path": name})
    return Shard(config, 0, (Span(str(path), 0, END),))


def labelled(predictor: Predictor, shard: Shard, output_format: str = "jsonl") -> list[Any]:
    """The rows that come out."""
    output = io.BytesIO()
    number = inference.label(predictor, shard, output, output_format)
    if output_format == "parquet":
        rows: list[Any] = pyarrow.parquet.read_table(io.BytesIO(output.getvalue())).to_pylist()
    else:
        rows = [json.loads(line) for line in output.getvalue().splitlines()]
    assert number == len(rows)
    return rows


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.txt"])
@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
def test_every_row_keeps_its_place_and_columns_and_gets_what_the_model_says_of_it_alone(
    predictor: Predictor, tmp_path: Path, name: str, output_format: str
) -> None:
    found = labelled(predictor, written(tmp_path, ROWS, name), output_format)
    alone = [predictor.predict([row["text"]])[0] for row in ROWS]
    assert {one.label for one in alone} == set(LABELS)
    assert [row["text"] for row in found] == [row["text"] for row in ROWS]
    assert [row["prediction"] for row in found] == [one.label for one in alone]
    assert [row["score"] for row in found] == pytest.approx([one.score for one in alone], abs=1e-5)
    if name != "rows.txt":
        assert [int(row["id"]) for row in found] == [row["id"] for row in ROWS]


def test_parts_of_a_file_together_have_its_rows(predictor: Predictor, tmp_path: Path) -> None:
    shard = written(tmp_path, ROWS, "rows.parquet")
    (span,) = shard.spans
    parts = [Shard(shard.source, 0, (Span(span.file, *ends),)) for ends in ((0, 4), (4, 9))]
    found = [row for part in parts for row in labelled(predictor, part, "parquet")]
    assert [row["id"] for row in found] == [row["id"] for row in ROWS]


def test_memory_holds_so_many_rows_at_a_time(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    answer = predictor.answer

    def counted(examples: Examples) -> list[Prediction]:
        asked.append(len(examples))
        return answer(examples)

    monkeypatch.setattr(predictor, "answer", counted)
    monkeypatch.setattr(inference, "_ROWS_TOGETHER", 25)
    labelled(predictor, written(tmp_path, ROWS, "rows.jsonl"))
    assert asked == [25, 25, 10]
    asked.clear()
    monkeypatch.setattr(inference, "_CHARACTERS_TOGETHER", 1)
    labelled(predictor, written(tmp_path, ROWS[:3], "rows.jsonl"))
    assert asked == [1, 1, 1]


@pytest.mark.parametrize("output_format", ["jsonl", "parquet"])
def test_of_no_text_nothing_is_said(
    predictor: Predictor, tmp_path: Path, output_format: str
) -> None:
    rows = [{"text": "one"}, {"text": None}, {"text": " \t"}, {"text": "two"}]
    found = labelled(predictor, written(tmp_path, rows, "rows.jsonl"), output_format)
    assert [row["prediction"] is None for row in found] == [False, True, True, False]
    assert [row["score"] is None for row in found] == [False, True, True, False]
    nothing = labelled(predictor, written(tmp_path, rows[1:3], "rows.jsonl"), output_format)
    assert [row["prediction"] for row in nothing] == [None, None]


@pytest.mark.parametrize("value", ["we met in Rome", ["we", "met", "in", "Rome"]])
def test_words_are_a_list_or_what_white_space_parts(tmp_path: Path, value: Any) -> None:
    folder = save_classifier(tmp_path / "model", ("B-place", "O"), of_words=True)
    words = Predictor(folder, task(type="token_classification", metric="entity_f1"))
    shard = written(tmp_path, [{"text": value}, {"text": []}], "rows.jsonl")
    first, second = labelled(words, shard, "parquet" if isinstance(value, list) else "jsonl")
    (alone,) = words.predict([["we", "met", "in", "Rome"]])
    assert first["text"] == value
    assert first["prediction"] == alone.label
    assert first["score"] == pytest.approx(alone.score, abs=1e-5)
    assert (second["prediction"], second["score"]) == (None, None)


def test_pairs_stand_in_two_columns(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model", LABELS)
    compares = Predictor(folder, task(data={"text": "first", "text_pair": "second"}))
    rows = [{"first": f"one {n}", "second": f"two {n * n}"} for n in range(9)]
    found = labelled(compares, written(tmp_path, [*rows, {"first": "a", "second": ""}], "r.jsonl"))
    alone = [compares.predict([row["first"]], [row["second"]])[0].label for row in rows]
    assert [row["prediction"] for row in found] == [*alone, None]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"body": "text"},
            "rows.jsonl, line 2: no column 'text', which the model reads; it has",
        ),
        ({"text": 3}, "rows.jsonl, line 2: column 'text' holds no text but a value of type int"),
        ({"text": ["a"]}, "column 'text' holds no text but a value of type list"),
        ({"text": "a", "score": 1}, "line 2: there is a column 'score' already; rename it"),
    ],
)
def test_a_row_that_cannot_be_labelled_is_named(
    predictor: Predictor, tmp_path: Path, row: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        labelled(predictor, written(tmp_path, [{"text": "fine"}, row], "rows.jsonl"))


def test_rows_that_no_parquet_file_can_hold_are_refused(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "_ROWS_TOGETHER", 1)
    shard = written(tmp_path, [{"text": "a", "id": 1}, {"text": "b", "id": "two"}], "rows.jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl: rows differ in their types.*write \.jsonl"):
        labelled(predictor, shard, "parquet")
    assert [row["id"] for row in labelled(predictor, shard)] == [1, "two"]


def test_columns_that_some_rows_have_are_kept_or_refused(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": "a"}, {"text": "b", "id": 7}, {"text": "c", "new": True}]
    found = labelled(predictor, written(tmp_path, rows, "rows.jsonl"), "parquet")
    assert [(row["id"], row["new"]) for row in found] == [(None, None), (7, None), (None, True)]
    monkeypatch.setattr(inference, "_ROWS_TOGETHER", 2)
    with pytest.raises(DataError, match=r"the first 2 have no 'new'; write \.jsonl"):
        labelled(predictor, written(tmp_path, rows, "rows.jsonl"), "parquet")


@pytest.mark.parametrize("deep", [{"a": 1, "b": 2}, [{"a": 1}, {"a": 1, "b": 2}]])
def test_keys_below_a_column_are_not_lost_either(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deep: Any
) -> None:
    plain = {"a": 1} if isinstance(deep, dict) else [{"a": 1}]
    rows = [{"text": "a", "meta": plain}, {"text": "b", "meta": deep}]
    found = labelled(predictor, written(tmp_path, rows, "rows.jsonl"), "parquet")
    assert "2" in str(found[1]["meta"])
    monkeypatch.setattr(inference, "_ROWS_TOGETHER", 1)
    with pytest.raises(DataError, match="the first 1 have no 'b'"):
        labelled(predictor, written(tmp_path, rows, "rows.jsonl"), "parquet")


def test_parquet_files_with_other_columns_are_put_together(
    predictor: Predictor, tmp_path: Path
) -> None:
    one = written(tmp_path, [{"text": "a"}], "a.parquet")
    other = written(tmp_path, [{"text": "b", "id": 7}], "b.parquet")
    both = Shard(one.source, 0, (*one.spans, *other.spans))
    assert [row["id"] for row in labelled(predictor, both, "parquet")] == [None, 7]
    clash = written(tmp_path, [{"text": "b", "id": "x"}], "c.parquet")
    wrong = Shard(one.source, 0, (*other.spans, *clash.spans))
    with pytest.raises(DataError, match="rows differ in their types"):
        labelled(predictor, wrong, "parquet")


def test_what_json_cannot_hold_is_null_or_refused(predictor: Predictor, tmp_path: Path) -> None:
    strange = {"text": "a", "number": float("nan"), "list": [float("inf"), 1.0]}
    (row,) = labelled(predictor, written(tmp_path, [strange], "rows.parquet"))
    assert (row["number"], row["list"]) == (None, [None, 1.0])
    for raw in ({"raw": b"x"}, {"number": float("nan"), "raw": b"x"}):
        shard = written(tmp_path, [{"text": "a", **raw}], "rows.parquet")
        with pytest.raises(DataError, match="a column of bytes, which JSON cannot hold; write"):
            labelled(predictor, shard)


def test_half_of_a_surrogate_pair_is_no_text(predictor: Predictor, tmp_path: Path) -> None:
    rows = [{"text": "fine", "note": "\ud83d"}]
    assert labelled(predictor, written(tmp_path, rows, "rows.jsonl"))[0]["note"] == "\ud83d"
    with pytest.raises(DataError, match="rows differ in their types"):
        labelled(predictor, written(tmp_path, rows, "rows.jsonl"), "parquet")
    with pytest.raises(DataError, match="line 1: column 'text' has half of a surrogate pair"):
        labelled(predictor, written(tmp_path, [{"text": "\ud83d"}], "rows.jsonl"))
