"""Rows and texts out of files, one at a time, whatever the format."""

import csv
import glob
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from trainers import files, tables
from trainers.config import SourceConfig
from trainers.errors import DataError
from trainers.files import MARKED, Lines, Tell
from trainers.files import codec as codec
from trainers.pieces import END, Shard, Span
from trainers.task_config import TaskDataConfig

Row = dict[str, Any]
_Where = Callable[[], str]

_UNLIMITED_FIELD = 2**31 - 1
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def expand(path: str, base: Path, source_format: str = "") -> list[str]:
    """The files a `path` of the pipeline file stands for, sorted: absolute paths or URLs.

    A `dataset` is a folder, or a name on the Hugging Face hub where no such folder exists.

    Raises:
        DataError: there is none, or the client of an object store is missing.
    """
    is_data_set = source_format == "dataset"
    if files.scheme_of(path):
        return list(remote(path, source_format))
    full = base / path
    # Not Path.glob: `path` may be absolute, or a folder that a `datasets` source names.
    matches = [path] if full.exists() else glob.glob(path, root_dir=base, recursive=True)  # noqa: PTH207
    places = [base / match for match in matches]
    found = sorted(str(place) for place in places if is_data_set or not place.is_dir())
    if found:
        return found
    if is_data_set and _HUB_NAME.fullmatch(path):
        return [path]
    if full.is_dir():
        raise DataError(f"{full}: is a folder; name its files, for example {path}/*.txt")
    raise DataError(f"{full}: no such file; a path is relative to the pipeline file")


def remote(url: str, source_format: str) -> dict[str, Mapping[str, Any]]:
    """The files a URL, possibly a glob, stands for, sorted, with what their store says of them.

    Raises:
        DataError: as `expand`.
    """
    if source_format == "dataset":
        raise DataError(
            f"{url}: a data set is a local folder or a name on the Hugging Face hub; "
            "for files behind a URL take their format, for example format: parquet"
        )
    found = files.find(url)
    if not found:
        raise DataError(f"{url}: no file there; for those of a folder give a glob, as in /*")
    return found


def read(shard: Shard, on_malformed: Tell | None = None) -> Iterator[str]:
    """The documents of a shard, stripped, without empty ones.

    Args:
        shard: what to read.
        on_malformed: told once of each line, row or file that cannot be read and is left out; None
            raises instead.

    Raises:
        DataError: names the file and the line. With `on_malformed` as well where it does not lie
            in the data: a missing file, a network that fails, an unknown encoding.
    """
    for span in shard.spans:
        for text in _texts(shard.source, span, on_malformed or _refuse):
            if stripped := text.strip():
                yield stripped


def parts(text: str, limit: int = 1 << 20) -> Iterator[str]:
    """A text in parts of at most `limit` characters, cut before a space where there is one."""
    start = 0
    while len(text) - start > limit:
        space = text.rfind(" ", start + 1, start + limit + 1)
        stop = space if space > start else start + limit
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def rows(data: TaskDataConfig, place: str) -> Iterator[Row]:
    """Labelled rows of a task: `{"text": ..., "label": ...}`, and `"pair"` where it has one.

    For `conll` both values are lists of equal length.

    Raises:
        DataError: names the file, the row and what is missing.
    """
    if data.format == "conll":
        return _sentences(place, data.encoding)
    raw = _records(Span(place, 0, END), data.format, data.encoding)
    return (
        {name: _field(row, column, place, where) for name, column in data.columns.items()}
        for where, row in raw
    )


def columns(place: str, source_format: str, encoding: str) -> list[str] | None:
    """Names of the first row's columns, read without reading the rest; None where there are none.

    Raises:
        DataError: the file cannot be read.
    """
    if source_format == "parquet":
        with tables.parquet(place) as file:
            return list(file.schema_arrow.names)
    if source_format not in {"csv", "jsonl"}:
        return None
    first = next(_records(Span(place, 0, END), source_format, encoding), None)
    return list(first[1]) if first else []


def _refuse(message: str) -> NoReturn:
    raise DataError(message)


def _texts(source: SourceConfig, span: Span, tell: Tell) -> Iterator[str]:
    place, start, stop = span.file, span.start, span.stop
    match source.format:
        case "lines":
            return _lines(Lines(place, source.encoding, tell, start), stop)
        case "paragraphs":
            return _paragraphs(Lines(place, source.encoding, tell, start), start, stop)
        case "text":
            return _whole(place, source.encoding, tell)
        case "jsonl":
            lines = Lines(place, source.encoding, tell, start)
            return _column(source, place, _json_rows(lines, stop, tell), tell)
        case "csv":
            records = _csv_rows(place, source.encoding, tell, needed=source.text)
            return _column(source, place, records, tell)
        case "parquet":
            return tables.parquet_texts(place, source.text, start, stop, tell)
        case "dataset" if tables.is_saved(place):
            return tables.saved_texts(place, source.text, start, stop, tell)
        case "dataset":
            return tables.streamed_texts(source, place, start, stop, tell)


def _lines(lines: Lines, stop: int) -> Iterator[str]:
    """The lines that begin before `stop` and are text throughout."""
    for line in lines:
        if lines.position >= stop:
            return
        if lines.is_sound(line):
            yield line


def _paragraphs(lines: Lines, start: int, stop: int) -> Iterator[str]:
    """The texts between empty lines, from behind the first empty line of a span to behind that of
    the next; a line that is no text is left out of its document.
    """
    is_searching = start > 0
    held: list[str] = []
    for line in lines:
        is_behind = lines.position >= stop
        if not line.strip():
            if held:
                yield "".join(held)
            held, is_searching = [], False
            if is_behind:
                return
        elif is_searching and is_behind:
            return
        elif not is_searching and lines.is_sound(line):
            held.append(line)
    if held:
        yield "".join(held)


def _whole(place: str, encoding: str, tell: Tell) -> Iterator[str]:
    """A file as one document; nothing of it where a part is no text."""
    files.check_encoding(place, encoding)
    try:
        with files.plain(place) as file:
            content = file.read()
    except files.DAMAGE as error:
        tell(f"{place}: cannot be read: {error}")
        return
    try:
        text = content.decode(codec(encoding))
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, "ignore").count("\n") + 1
        tell(f"{place}, line {line}: {files.not_in(encoding)}")
        return
    if not text.strip():
        tell(f"{place}: there is no text in it")
    yield text


def _column(
    source: SourceConfig, place: str, records: Iterator[tuple[_Where, Row]], tell: Tell
) -> Iterator[str]:
    for where, row in records:
        text = tables.text_of(row, source.text, place, where, tell)
        if text is not None:
            yield text


def _field(row: Row, column: str, place: str, where: _Where) -> Any:
    if column not in row:
        raise DataError(
            f"{place}, {where()}: no column {column!r}; it has {', '.join(map(repr, row))}"
        )
    if row[column] is None:
        raise DataError(f"{place}, {where()}: column {column!r} is empty")
    return row[column]


def records(shard: Shard) -> Iterator[tuple[Callable[[], str], Row]]:
    """Whole rows of a shard, each with what tells its file and place until the next is asked for.

    Of `lines` each is a row with the column that `source.text` names.

    Raises:
        DataError: names the file and the place of what cannot be read.
    """
    source = shard.source
    for span in shard.spans:
        for where, row in _records(span, source.format, source.encoding, line_as=source.text):
            yield partial(_placed, span.file, where), row


def _placed(file: str, where: _Where) -> str:
    return f"{file}, {where()}"


def _records(
    span: Span, source_format: str, encoding: str, *, line_as: str = "text"
) -> Iterator[tuple[_Where, Row]]:
    """Whole rows with their places, counted from 1 as a person would in that format."""
    match source_format:
        case "jsonl":
            lines = Lines(span.file, encoding, _refuse, span.start)
            return _json_rows(lines, span.stop, _refuse)
        case "lines":
            lines = Lines(span.file, encoding, _refuse, span.start)
            return (
                (lines.where, {line_as: line.strip()})
                for line in _lines(lines, span.stop)
                if not line.isspace()
            )
        case "csv":
            return _csv_rows(span.file, encoding, _refuse)
        case "parquet":
            return _parquet_rows(span)
        case "dataset":
            return _saved_rows(span.file)
    raise AssertionError(source_format)


def _json_rows(lines: Lines, stop: int, tell: Tell) -> Iterator[tuple[_Where, Row]]:
    for line in _lines(lines, stop):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            # Python refuses numbers of thousands of digits and nesting of thousands of levels.
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            tell(f"{lines.place}, {lines.where()}: not JSON: {reason}")
            continue
        if isinstance(row, dict):
            yield lines.where, row
        else:
            tell(f"{lines.place}, {lines.where()}: not a JSON object")


def _csv_rows(
    place: str, encoding: str, tell: Tell, needed: str | None = None
) -> Iterator[tuple[_Where, Row]]:
    """Rows by the names in the first; none where that lacks the column that is needed."""
    csv.field_size_limit(_UNLIMITED_FIELD)
    files.check_encoding(place, encoding)
    header: list[str] | None = None
    reader: Any = None

    def where() -> str:
        return f"line {reader.line_num if reader else 0}"

    try:
        with files.plain(place) as file:
            # `newline=""` keeps line ends inside quoted fields as they are.
            reader = csv.reader(io.TextIOWrapper(file, codec(encoding), files.MARK, newline=""))
            for row in _csv_fields(reader, place, tell):
                if any(MARKED in field for field in row):
                    tell(f"{place}, {where()}: {files.not_in(encoding)}")
                    if header is None:
                        return
                elif header is None:
                    header = row
                    if trouble := _trouble_of_header(header, place, needed):
                        tell(trouble)
                        return
                elif len(row) > len(header):
                    tell(f"{place}, {where()}: more fields than the header has")
                else:
                    missing = [None] * (len(header) - len(row))
                    yield where, dict(zip(header, [*row, *missing], strict=True))
    except files.DAMAGE as error:
        tell(f"{place}: cannot be read after {where()}: {error}")
        return
    if header is None:
        tell(f"{place}: there is no text in it")


def _trouble_of_header(header: Sequence[str], place: str, needed: str | None) -> str | None:
    """Why rows cannot be read by these names; of a column that nobody needs nobody cares."""
    if needed is not None and needed not in header:
        return tables.lacks(needed, header, place)
    for name in header if needed is None else [needed]:
        if name and header.count(name) > 1:
            return f"{place}: {name!r} stands in the header twice; rename one of these columns"
    return None


def _csv_fields(reader: Any, place: str, tell: Tell) -> Iterator[list[str]]:
    """Rows that are not blank; the reader goes on behind one that is no CSV."""
    while True:
        try:
            for row in reader:
                if row:
                    yield row
        except csv.Error as error:
            tell(f"{place}, line {reader.line_num}: not CSV: {error}")
        else:
            return


def _parquet_rows(span: Span) -> Iterator[tuple[_Where, Row]]:
    """Rows of the row groups of a span."""
    place, number = span.file, 0

    def where() -> str:
        return f"row {number}"

    try:
        with tables.parquet(place) as file:
            groups = range(span.start, min(span.stop, file.num_row_groups))
            number = sum(file.metadata.row_group(n).num_rows for n in range(span.start))
            for batch in file.iter_batches(batch_size=1024, row_groups=list(groups)):
                for row in batch.to_pylist():
                    number += 1
                    yield where, row
    except tables.DAMAGE as error:
        raise DataError(f"{place}: cannot be read after {where()}: {error}") from error


def _saved_rows(place: str) -> Iterator[tuple[_Where, Row]]:
    for number, row in enumerate(tables.saved_rows(place), start=1):
        yield partial("row {}".format, number), row


def _sentences(place: str, encoding: str) -> Iterator[Row]:
    words: list[str] = []
    labels: list[str] = []
    lines = Lines(place, encoding, _refuse)
    for line in _lines(lines, END):
        if not line.strip():
            if words:
                yield {"text": words, "label": labels}
            words, labels = [], []
            continue
        fields = line.rstrip("\r\n").split("\t")
        if len(fields) < 2 or not fields[0] or not fields[-1]:
            raise DataError(f"{place}, {lines.where()}: expected word, tab, label; found {line!r}")
        words.append(fields[0])
        labels.append(fields[-1])
    if words:
        yield {"text": words, "label": labels}
