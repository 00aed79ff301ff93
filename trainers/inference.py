"""Label the rows of files with a saved model, in memory that does not grow with them."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet

from trainers import documents, tables
from trainers.errors import DataError
from trainers.examples import Examples
from trainers.pieces import Shard
from trainers.predict import Predictor
from trainers.task_config import TaskConfig
from trainers.task_types.base import Prediction

Row = dict[str, Any]

PREDICTION, SCORE = "prediction", "score"
"""Columns that a row gets beside its own."""

_ROWS_TOGETHER = 2048
_CHARACTERS_TOGETHER = 1 << 22
"""Limits of what is read, sorted by length and labelled at a time."""


def label(predictor: Predictor, shard: Shard, output: IO[bytes], output_format: str) -> int:
    """Write a shard's rows, in their order, with what a model says of each; how many there are.

    A row gets the columns `prediction` and, where the task has one, `score`. Of a text that is
    missing or empty nothing is said: they are null.

    Args:
        predictor: the model. Texts are in the columns that its task's `data` names.
        shard: what is read; of `lines`, the model must take one text.
        output: a new file.
        output_format: `jsonl` or `parquet`.

    Raises:
        DataError: names the file and the row that cannot be read or written.
    """
    chunks = _labelled(predictor, documents.records(shard))
    if output_format == "parquet":
        return _write_parquet(chunks, predictor.kind.task, shard, output)
    rows = 0
    for chunk in chunks:
        output.write(b"".join(_line(row, shard) for row in chunk))
        rows += len(chunk)
    return rows


def _line(row: Row, shard: Shard) -> bytes:
    """A row as JSON; what is no number there is null, dates are texts."""
    try:
        try:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain).encode()
        except ValueError:  # a number that is none, or half of a surrogate pair
            text = json.dumps(_finite(row), allow_nan=False, default=_plain).encode()
        return text + b"\n"
    except TypeError as error:
        raise DataError(f"{shard.spans[0].file}: {error}; write .parquet") from error


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        raise TypeError("there is a column of bytes, which JSON cannot hold")
    return str(value)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {name: _finite(one) for name, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
    return value


def columns_of(task: TaskConfig) -> dict[str, pa.DataType]:
    """The columns that are added to a task's rows."""
    match task.type:
        case "regression":
            return {PREDICTION: pa.float64()}
        case "question_answering" | "generation":
            return {PREDICTION: pa.string()}
    has_several = task.multi_label or task.type == "token_classification"
    label_type, score_type = pa.string(), pa.float64()
    if has_several:
        return {PREDICTION: pa.list_(label_type), SCORE: pa.list_(score_type)}
    return {PREDICTION: label_type, SCORE: score_type}


def _labelled(
    predictor: Predictor, rows: Iterable[tuple[Callable[[], str], Row]]
) -> Iterator[list[Row]]:
    task = predictor.kind.task
    added = columns_of(task)
    for chunk in _chunks(task, rows, added):
        asked = [texts for _, texts in chunk if texts is not None]
        pairs = [pair for _, pair in asked] if task.data.text_pair is not None else None
        answers = iter(predictor.answer(Examples([text for text, _ in asked], [], pairs)))
        yield [
            {**row, **_told(None if texts is None else next(answers), added)}
            for row, texts in chunk
        ]


def _told(found: Prediction | None, added: Iterable[str]) -> Row:
    values = {} if found is None else {PREDICTION: found.label, SCORE: found.score}
    return {name: values.get(name) for name in added}


def _chunks(
    task: TaskConfig, rows: Iterable[tuple[Callable[[], str], Row]], added: Iterable[str]
) -> Iterator[list[tuple[Row, tuple[Any, Any] | None]]]:
    """Rows with their texts, some thousand together; None where there is nothing to label."""
    held: list[tuple[Row, tuple[Any, Any] | None]] = []
    characters = 0
    for place, row in rows:
        if taken := sorted(row.keys() & set(added)):
            raise DataError(f"{place()}: there is a column {taken[0]!r} already; rename it")
        texts = _texts(task, row, place)
        held.append((row, texts))
        characters += sum(map(len, texts or ()))
        if len(held) == _ROWS_TOGETHER or characters >= _CHARACTERS_TOGETHER:
            yield held
            held, characters = [], 0
    if held:
        yield held


def _texts(
    task: TaskConfig, row: Mapping[str, Any], place: Callable[[], str]
) -> tuple[Any, Any] | None:
    text = _text(row, task.data.text, place, of_words=task.type == "token_classification")
    if task.data.text_pair is None:
        return None if text is None else (text, "")
    pair = _text(row, task.data.text_pair, place, of_words=False)
    return None if text is None or pair is None else (text, pair)


def _text(
    row: Mapping[str, Any], column: str, place: Callable[[], str], *, of_words: bool
) -> Any | None:
    """A text, or its words; None where it is empty."""
    if column not in row:
        there = ", ".join(map(repr, row)) or "none"
        raise DataError(f"{place()}: no column {column!r}, which the model reads; it has {there}")
    value = row[column]
    if value is None:
        return None
    is_list = of_words and isinstance(value, list) and all(isinstance(one, str) for one in value)
    if is_list or isinstance(value, str):
        if not tables.is_unicode("".join(value)):
            raise DataError(f"{place()}: column {column!r} has half of a surrogate pair, no text")
        found = value.split() if of_words and isinstance(value, str) else value
        return found if "".join(value).strip() else None
    wanted = "words" if of_words else "text"
    raise DataError(
        f"{place()}: column {column!r} holds no {wanted} but a value of type {type(value).__name__}"
    )


def _write_parquet(
    chunks: Iterator[list[Row]], task: TaskConfig, shard: Shard, output: IO[bytes]
) -> int:
    first, rows = next(chunks, []), 0
    try:
        schema = _schema(first, task, shard)
        with pyarrow.parquet.ParquetWriter(output, schema) as writer:
            for chunk in chain([first], chunks):
                _require_columns(chunk, schema)
                writer.write_table(pa.Table.from_pylist(chunk, schema))
                rows += len(chunk)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise DataError(
            f"{shard.spans[0].file}: rows differ in their types, which a Parquet file cannot hold: "
            f"{error}; write .jsonl"
        ) from error
    return rows


def _require_columns(rows: list[Row], schema: pa.Schema) -> None:
    """Refuse what Arrow would leave out without a word."""
    whole = pa.struct(list(schema))
    for row in rows:
        if (strange := _unknown_key(row, whole)) is not None:
            raise pa.ArrowInvalid(f"the first {_ROWS_TOGETHER} have no {strange!r}")


def _unknown_key(value: Any, of_type: pa.DataType) -> str | None:
    """A key of a value, or below it, that its type has not."""
    if isinstance(value, dict) and pa.types.is_struct(of_type):
        parts = [(key, one, of_type.get_field_index(key)) for key, one in value.items()]
        unknown = [key for key, _, place in parts if place < 0]
        known = (_unknown_key(one, of_type.field(place).type) for _, one, place in parts)
        return unknown[0] if unknown else next(filter(None, known), None)
    if isinstance(value, list) and (pa.types.is_list(of_type) or pa.types.is_large_list(of_type)):
        return next(filter(None, (_unknown_key(one, of_type.value_type) for one in value)), None)
    return None


def _schema(rows: list[Row], task: TaskConfig, shard: Shard) -> pa.Schema:
    """Of the input and what is added; of a format without types, what the first rows show."""
    added = columns_of(task)
    if shard.source.format == "parquet":
        schema = pa.unify_schemas([_schema_of(span.file) for span in shard.spans])
    else:
        names = [name for name in dict.fromkeys(chain(*rows)) if name not in added]
        shown = pa.table({name: [row.get(name) for row in rows] for name in names}).schema
        schema = pa.schema(
            [(one.name, pa.string() if pa.types.is_null(one.type) else one.type) for one in shown]
        )
    for name, of_type in added.items():
        schema = schema.append(pa.field(name, of_type))
    return schema


def _schema_of(file: str) -> pa.Schema:
    with tables.parquet(file) as opened:
        return opened.schema_arrow.remove_metadata()
