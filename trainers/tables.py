"""One column of text out of Parquet files and data sets, in small batches."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from trainers import files
from trainers.config import SourceConfig
from trainers.errors import DataError
from trainers.files import Tell

DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises that reads a damaged file; `files.opened` raises DataError instead."""

_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20

_UNDECODABLE = object()


class UnreadableError(DataError):
    """What is in a file or folder is damaged: it may be left out, unlike one that is missing."""


@contextmanager
def parquet(place: str) -> Iterator[Any]:
    """A Parquet file, local or remote, as pyarrow reads it.

    Raises:
        DataError: it cannot be opened.
        UnreadableError: it is no whole Parquet file.
    """
    with files.opened(place) as stored:
        try:
            # With a buffer a column is read page by page, else a whole row group at a time.
            file = pyarrow.parquet.ParquetFile(stored, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        except DAMAGE as error:
            raise UnreadableError(f"{place}: not a readable Parquet file: {error}") from error
        yield file


def row_group_bytes(place: str) -> list[int] | None:
    """Compressed bytes of each row group of a Parquet file; None where it cannot be read.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        with parquet(place) as file:
            groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
            return [
                sum(group.column(c).total_compressed_size for c in range(group.num_columns))
                for group in groups
            ]
    except UnreadableError:
        return None


def parquet_texts(place: str, column: str, start: int, stop: int, tell: Tell) -> Iterator[str]:
    """The texts of a column in row groups `start` to `stop`, in memory that does not grow.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        with parquet(place) as file:
            if not _has_texts(file.schema_arrow, place, column, tell):
                return
            number = 0
            for group in range(min(stop, file.num_row_groups)):
                if group >= start:
                    yield from _group_texts(file, group, number, (place, column), tell)
                number += file.metadata.row_group(group).num_rows
    except UnreadableError as error:
        tell(str(error))


def _group_texts(
    file: Any, group: int, rows_before: int, name: tuple[str, str], tell: Tell
) -> Iterator[str]:
    place, column = name
    number = rows_before
    metadata = file.metadata.row_group(group)
    batches = file.iter_batches(
        _batch_rows(metadata.num_rows, metadata.total_byte_size),
        row_groups=[group],
        columns=[column],
        use_threads=False,
    )
    try:
        for batch in batches:
            yield from _texts(batch.column(0), number, name, tell)
            number += batch.num_rows
    except DAMAGE as error:
        tell(f"{place}: cannot be read after row {number}: {error}")


def is_saved(place: str) -> bool:
    """Whether a place is a folder that `datasets.save_to_disk` wrote."""
    folder = Path(place)
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def num_rows(folder: str) -> int | None:
    """Rows of a folder that `datasets.save_to_disk` wrote; None where it cannot be read.

    Raises:
        DataError: it holds several splits.
    """
    try:
        return len(_saved(folder))
    except UnreadableError:
        return None


def saved_texts(folder: str, column: str, start: int, stop: int, tell: Tell) -> Iterator[str]:
    """The texts of a column in rows `start` to `stop` of what `datasets.save_to_disk` wrote.

    Raises:
        DataError: it holds several splits.
    """
    try:
        saved = _saved(folder)
    except UnreadableError as error:
        tell(str(error))
        return
    if not _has_texts(saved.data.schema, folder, column, tell):
        return
    saved = saved.select_columns([column]).with_format("arrow")
    number = start
    size_bytes = sum(path.stat().st_size for path in Path(folder).glob("*.arrow"))
    batch_rows = _batch_rows(len(saved), size_bytes)
    try:
        for table in saved.select(range(start, min(stop, len(saved)))).iter(batch_rows):
            for chunk in table.column(column).chunks:
                yield from _texts(chunk, number, (folder, column), tell)
                number += len(chunk)
    except DAMAGE as error:
        tell(f"{folder}: cannot be read after row {number}: {error}")


def saved_columns(folder: Path) -> list[str]:
    """Names of the columns of what `datasets.save_to_disk` wrote, read without that library.

    Raises:
        DataError: it wrote no single data set there.
    """
    if (folder / "dataset_dict.json").is_file():
        raise DataError(f"{folder}: holds several splits; name one, for example {folder}/train")
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        return list(info["features"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not written by datasets.save_to_disk: {error}") from error


def saved_rows(folder: str) -> Iterator[dict[str, Any]]:
    """The rows of what `datasets.save_to_disk` wrote, classes by their names.

    Raises:
        DataError: it cannot be read, or holds several splits.
    """
    try:
        saved = _saved(folder)
        for row in saved:
            yield {name: _named(saved.features[name], value) for name, value in row.items()}
    except (UnreadableError, *DAMAGE) as error:
        raise DataError(f"{folder}: cannot be read: {error}") from error


def _named(feature: Any, value: Any) -> Any:
    """A value whose classes are numbers with the names of the classes; -1 is a class not known."""
    import datasets

    if isinstance(value, list) and hasattr(feature, "feature"):
        return [_named(feature.feature, one) for one in value]
    if not isinstance(feature, datasets.ClassLabel) or value is None:
        return value
    return feature.int2str(value) if value >= 0 else None


def _saved(folder: str) -> Any:
    import datasets

    try:
        loaded = datasets.load_from_disk(folder)
    except (*DAMAGE, ValueError, KeyError, TypeError) as error:
        raise UnreadableError(f"{folder}: not written by datasets.save_to_disk: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        raise DataError(f"{folder}: holds several splits; name one, for example {folder}/train")
    return loaded


def num_streams(source: SourceConfig, place: str) -> int:
    """Shards of a data set of the hub, or of a folder of files that `datasets` reads.

    Raises:
        DataError: there is none, or it cannot be reached.
    """
    return int(_stream(source, place).num_shards)


def streamed_texts(
    source: SourceConfig, place: str, start: int, stop: int, tell: Tell
) -> Iterator[str]:
    """The texts of shards `start` to `stop` of a data set that is not copied to this machine.

    Raises:
        DataError: there is none, or it cannot be reached.
    """
    stream = _stream(source, place)
    count = stream.num_shards
    for index in range(start, min(stop, count)):
        number = 0
        where = f"{place}, shard {index} of {count}"
        rows = _told_rows(stream.shard(num_shards=count, index=index), where, tell)
        for number, row in enumerate(rows, start=1):
            text = text_of(row, source.text, where, f"row {number}", tell)
            if text is not None:
                yield text


def _told_rows(stream: Any, where: str, tell: Tell) -> Iterator[dict[str, Any]]:
    """Rows up to the first that `datasets` cannot read; what the network does is an error."""
    import datasets

    number = 0
    rows = iter(stream)
    while True:
        try:
            row = next(rows, None)
        except (pa.ArrowException, ValueError, datasets.exceptions.DatasetsError) as error:
            tell(f"{where}: cannot be read after row {number}: {error}")
            return
        except OSError as error:
            raise DataError(f"{where}: cannot be read after row {number}: {error}") from error
        if row is None:
            return
        number += 1
        yield row


def _stream(source: SourceConfig, place: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            place,
            source.subset,
            split=source.split or "train",
            revision=source.revision,
            streaming=True,
        )
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise DataError(
            f"{place}: not written by datasets.save_to_disk, and datasets cannot load it: {error}; "
            "check path, subset, split and revision, and whether the hub can be reached"
        ) from error


def text_of(
    row: dict[str, Any], column: str, place: str, where: str | Callable[[], str], tell: Tell
) -> str | None:
    """A row's text; None, after telling, where there is none that can be used.

    Args:
        row: values by column.
        column: the one with the text.
        place: file or data set.
        where: the row in it; a function where that takes work.
        tell: told of what is wrong.
    """
    value = row.get(column)
    if isinstance(value, str) and is_unicode(value):
        return value
    if isinstance(value, str):
        problem = f"column {column!r} has half of a surrogate pair, which is no text"
    elif column not in row:
        problem = f"no column {column!r}; it has {', '.join(map(repr, row)) or 'none'}"
    elif value is None:
        problem = f"column {column!r} is empty"
    else:
        problem = f"column {column!r} holds no text but a value of type {type(value).__name__}"
    tell(f"{place}, {where if isinstance(where, str) else where()}: {problem}")
    return None


def lacks(column: str, names: Sequence[str], place: str) -> str:
    """What to say of a file that lacks a column."""
    found = ", ".join(map(repr, names)) or "none"
    return f"{place}: no column {column!r}; it has {found}; set text to one of them"


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which no file can hold."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _has_texts(schema: Any, place: str, column: str, tell: Tell) -> bool:
    if column not in schema.names:
        tell(lacks(column, schema.names, place))
        return False
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if any(is_kind(kind) for is_kind in _TEXT_KINDS):
        return True
    tell(f"{place}: column {column!r} holds no text but {kind}; set text to one that does")
    return False


_TEXT_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def _batch_rows(rows: int, size_bytes: int) -> int:
    """Rows that take about `_BATCH_BYTES`."""
    return max(1, min(_BATCH_ROWS, rows * _BATCH_BYTES // max(1, size_bytes)))


def _texts(values: Any, rows_before: int, name: tuple[str, str], tell: Tell) -> Iterator[str]:
    place, column = name
    try:
        texts = values.to_pylist()
    except UnicodeDecodeError:
        texts = [_decoded(value) for value in values]
    for number, text in enumerate(texts, start=rows_before + 1):
        if text is _UNDECODABLE:
            tell(f"{place}, row {number}: column {column!r} is not utf-8")
        elif text is None:
            tell(f"{place}, row {number}: column {column!r} is empty")
        else:
            yield text


def _decoded(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return _UNDECODABLE
