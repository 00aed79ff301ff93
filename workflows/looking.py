"""What a user's files hold, by some of their rows: for a first pipeline about them."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from trainers import documents, files, pieces
from trainers.config import SourceConfig, format_of
from trainers.errors import DataError
from trainers.task_config import SplitConfig, TaskDataConfig

LOOKED_AT = 5_000
"""Rows of a task at most, and first documents of a corpus."""
_READ = 200_000
"""Rows of a task at most, of which those are chosen."""

_TEXTS = ("text", "sentence", "content", "body", "document", "tweet", "review", "context")
_LABELS = (
    *("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "stars"),
    *("score", "rating", "answers", "answer", "summary", "tags", "ner_tags", "y"),
)
_PAIRS = ("text_pair", "sentence2", "text2", "second", "hypothesis", "question", "question2")
_CONLL = {".conll", ".bio", ".iob", ".tsv"}
_MOST_CLASSES = 200
_Row = TypeVar("_Row")
_WORDS_OF_PROSE = 4.0


@dataclass(frozen=True)
class Columns:
    """Which columns of a file mean what; None where that is to be found out."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class TaskLook:
    """What the rows of a task are."""

    path: str
    format: str
    columns: Columns
    type: str
    multi_label: bool = False
    rows: int = 0
    """That were looked at."""
    of_rows: int = 0
    """That the file has; if it has more than `_READ`, so many."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """How often each was seen, of types whose labels are names."""
    words: tuple[int, ...] = ()
    """Of the texts, ascending."""
    answer_words: tuple[int, ...] = ()
    """Of answers, ascending."""


@dataclass(frozen=True)
class CorpusLook:
    """What the documents of a corpus are."""

    path: str
    format: str
    text: str
    files: int
    size_bytes: int
    """Of the files as they are stored."""
    words: tuple[int, ...]
    """Of the documents that were looked at, ascending."""
    characters_per_word: float


def look_at_task(path: str, base: Path, columns: Columns) -> TaskLook:
    """Find out what a file of labelled rows holds.

    Args:
        path: as it will stand in the pipeline file.
        base: folder of that file.
        columns: those that the user has named.

    Raises:
        DataError: there is no such file, or nobody could tell what is what.
    """
    (place, *others) = documents.expand(path, base)
    if others:
        raise DataError(f"{path}: {1 + len(others)} files match; name one")
    kind = format_of(path) or ("conll" if Path(path).suffix in _CONLL else None)
    if kind == "lines":
        kind = "conll"
    if kind not in {"csv", "jsonl", "parquet", "conll"}:
        raise DataError(f"{path}: expected a csv, jsonl, parquet or conll file")
    if kind == "conll":
        return _of_words(path, place)
    rows, read = _spread(_rows(place, kind))
    if not rows:
        raise DataError(f"{path}: there are no rows")
    found = _columns(path, rows, columns)
    return replace(_task(path, kind, rows, found), of_rows=read)


def look_at_corpus(path: str, base: Path, text: str | None) -> CorpusLook:
    """Find out what the documents of a corpus are.

    Raises:
        DataError: there is no such file, or none of its columns holds texts.
    """
    places = documents.expand(path, base)
    kind = format_of(path) or format_of(places[0])
    if kind is None:
        raise DataError(f"{path}: expected files of .txt, .jsonl, .csv or .parquet")
    if kind in {"jsonl", "csv", "parquet"}:
        rows = list(itertools.islice(_rows(places[0], kind), 100))
        text = text or (_longest_text(rows) if rows else None)
        if text is None:
            raise DataError(f"{path}: no column holds texts; name it by --corpus-text")
    source = SourceConfig(path=path, format=kind, text=text or "text")
    shards = pieces.cut(source, 0, places, 1 << 40)
    texts = list(itertools.islice(documents.read(shards[0]), LOOKED_AT))
    if not texts:
        raise DataError(f"{path}: there is no text in it")
    sizes = [files.local_size(place) for place in places if not files.scheme_of(place)]
    remote = [place for place in places if files.scheme_of(place)]
    sizes += [size or 0 for size in (files.sizes(remote) if remote else [])]
    words = sorted(len(one.split()) for one in texts)
    characters = sum(map(len, texts)) / sum(words)
    return CorpusLook(path, kind, source.text, len(places), sum(sizes), tuple(words), characters)


def quantile(values: Sequence[int], share: float) -> int:
    """Of ascending values; 0 of none."""
    return values[min(len(values) - 1, math.floor(share * len(values)))] if values else 0


def _rows(place: str, kind: str) -> Iterator[Mapping[str, Any]]:
    source = SourceConfig(path=place, format=kind)  # type: ignore[arg-type]
    span = pieces.Span(place, 0, pieces.END)
    for _, row in documents.records(pieces.Shard(source, 0, (span,))):
        yield row


def _spread(rows: Iterable[_Row]) -> tuple[list[_Row], int]:
    """Rows at equal distances, since files are sorted by label, and how many there are."""
    kept: list[_Row] = []
    every, read = 1, 0
    for row in itertools.islice(rows, _READ):
        if read % every == 0:
            kept.append(row)
        read += 1
        if len(kept) > LOOKED_AT:
            kept, every = kept[::2], 2 * every
    return kept, read


def _of_words(path: str, place: str) -> TaskLook:
    split = SplitConfig(test=0.2, validation=0.1)
    data = TaskDataConfig(path=place, format="conll", split=split)
    rows, read = _spread(documents.rows(data, place))
    counts = Counter(str(label) for row in rows for label in row["label"])
    words = tuple(sorted(len(row["text"]) for row in rows))
    kind = "token_classification"
    look = TaskLook(path, "conll", Columns(), kind, rows=len(rows), of_rows=read)
    return replace(look, labels=counts, words=words)


def _columns(path: str, rows: Sequence[Mapping[str, Any]], named: Columns) -> Columns:
    """The user's columns, and by name or content those that he left open."""
    names = list(rows[0])
    for name in (named.text, named.text_pair, named.label):
        if name is not None and name not in names:
            raise DataError(f"{path}: no column {name!r}; it has {', '.join(map(repr, names))}")
    taken = {named.text, named.text_pair, named.label}
    free = [name for name in names if name not in taken]
    label = named.label or _by_name(free, _LABELS) or _fewest_values(rows, free)
    free = [name for name in free if name != label]
    text = named.text or _by_name(free, _TEXTS) or _longest_text(rows, free)
    pair = named.text_pair or _by_name([name for name in free if name != text], _PAIRS)
    for what, found in (("text", text), ("label", label)):
        if found is None:
            raise DataError(
                f"{path}: which column is the {what}? It has {', '.join(map(repr, names))}; "
                f"name it by --column TASK.{what}=COLUMN"
            )
    return Columns(text, pair, label)


def _by_name(names: Sequence[str], known: Sequence[str]) -> str | None:
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in known if name in by_lower), None)


def _fewest_values(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str | None:
    """The column with the fewest different values, where they come again and again."""
    counts = {name: len({str(row.get(name)) for row in rows}) for name in names}
    fewest = min(counts, key=counts.__getitem__, default=None)
    is_repeated = fewest is not None and counts[fewest] * 5 <= len(rows)
    return fewest if is_repeated else None


def _longest_text(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None
) -> str | None:
    lengths = {
        name: sum(len(str(row[name])) for row in rows)
        for name in (list(rows[0]) if names is None else names)
        if all(isinstance(row.get(name), str | list) for row in rows)
    }
    return max(lengths, key=lengths.__getitem__, default=None)


def _task(path: str, kind: str, rows: Sequence[Mapping[str, Any]], columns: Columns) -> TaskLook:
    assert columns.text is not None
    assert columns.label is not None
    labels = [row[columns.label] for row in rows if row.get(columns.label) is not None]
    if not labels:
        raise DataError(f"{path}: column {columns.label!r} is empty")
    texts = [row.get(columns.text) or "" for row in rows]
    words = [len(text) if isinstance(text, list) else len(str(text).split()) for text in texts]
    if columns.text_pair is not None:
        pairs = [len(str(row.get(columns.text_pair) or "").split()) for row in rows]
        words = [one + other for one, other in zip(words, pairs, strict=True)]
    look = TaskLook(
        path, kind, columns, "classification", rows=len(rows), words=tuple(sorted(words))
    )
    return _typed(look, labels, has_words=isinstance(texts[0], list))


def _typed(look: TaskLook, labels: Sequence[Any], *, has_words: bool) -> TaskLook:
    """The type of task that the labels speak of."""
    first = labels[0]
    if isinstance(first, dict):
        answers = [text for label in labels for text in label.get("text", ())]
        return _with(look, "question_answering", answers=answers)
    if isinstance(first, list):
        counts = Counter(str(name) for label in labels for name in label)
        if has_words:
            return _with(look, "token_classification", counts)
        if look.columns.text_pair is not None:
            answers = [str(name) for label in labels for name in label]
            return _with(look, "question_answering", answers=answers)
        return _with(look, "classification", counts, multi_label=True)
    counts = Counter(map(str, labels))
    if _are_measures(counts):
        return _with(look, "regression")
    are_prose = sum(len(str(label).split()) for label in labels) > _WORDS_OF_PROSE * len(labels)
    if are_prose or len(counts) > _MOST_CLASSES or 2 * len(counts) > len(labels):
        kind = "generation" if look.columns.text_pair is None else "question_answering"
        return _with(look, kind, answers=[str(label) for label in labels])
    return _with(look, "classification", counts)


def _are_measures(counts: Mapping[str, int]) -> bool:
    """Numbers with fractions, or more of them than anybody gives names to."""
    try:
        numbers = [float(value) for value in counts]
    except ValueError:
        return False
    return len(numbers) > 20 or any(not number.is_integer() for number in numbers)


def _with(
    look: TaskLook,
    kind: str,
    counts: Mapping[str, int] | None = None,
    *,
    answers: Sequence[str] = (),
    multi_label: bool = False,
) -> TaskLook:
    words = tuple(sorted(len(answer.split()) for answer in answers))
    return replace(
        look, type=kind, multi_label=multi_label, labels=counts or {}, answer_words=words
    )
