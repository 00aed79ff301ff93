"""Rows and texts out of files, one at a time, whatever the format."""

import codecs
import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from trainers.config import SourceConfig
from trainers.errors import DataError
from trainers.task_config import TaskDataConfig

Row = dict[str, Any]

_UNLIMITED_FIELD = 2**31 - 1
_CHUNK_BYTES = 1 << 16


def expand(path: str, base: Path) -> list[Path]:
    """The files a `path` of the pipeline file stands for, sorted.

    Raises:
        DataError: there is none.
    """
    full = str(base / path)
    # Not Path.glob: `path` may be absolute, or a folder that a `datasets` source names.
    found = sorted(Path(match) for match in glob.glob(full, recursive=True))  # noqa: PTH207
    if not found:
        raise DataError(f"{full}: no such file; a path is relative to the pipeline file")
    return found


def texts(source: SourceConfig, path: Path) -> Iterator[str]:
    """The documents of one file, without empty ones.

    Raises:
        DataError: names the file and the line.
    """
    match source.format:
        case "lines":
            found: Iterator[str] = (line for _, line in _lines(path, source.encoding))
        case "text":
            found = iter([_whole(path, source.encoding)])
        case _:
            found = _column(path, source.format, source.text, source.encoding)
    return (text for text in map(str.strip, found) if text)


def rows(data: TaskDataConfig, path: Path) -> Iterator[Row]:
    """Labelled rows of a task: `{"text": ..., "label": ...}`.

    For `conll` and other word-level data both values are lists of equal length.

    Raises:
        DataError: names the file, the row and what is missing.
    """
    if data.format == "conll":
        return _sentences(path, data.encoding)
    raw = _records(path, data.format, data.encoding)
    return (
        {
            "text": _field(row, data.text, path, number),
            "label": _field(row, data.label, path, number),
        }
        for number, row in raw
    )


def columns(path: Path, source_format: str, encoding: str) -> list[str] | None:
    """Names of the first row's columns, read without reading the rest; None where there are none.

    Raises:
        DataError: the file cannot be read.
    """
    if source_format == "parquet":
        return list(_parquet_file(path).schema_arrow.names)
    if source_format not in {"csv", "jsonl"}:
        return None
    first = next(_records(path, source_format, encoding), None)
    return list(first[1]) if first else []


def codec(encoding: str) -> str:
    """The codec that reads an encoding: a byte-order mark before UTF-8 is no part of the text.

    Spreadsheets write one; it would stand in the first column's name.

    Raises:
        LookupError: there is no such encoding.
    """
    return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding


def _column(path: Path, source_format: str, column: str, encoding: str) -> Iterator[str]:
    for number, row in _records(path, source_format, encoding):
        yield str(_field(row, column, path, number))


def _field(row: Row, column: str, path: Path, number: int) -> Any:
    if column not in row:
        raise DataError(
            f"{path}, row {number}: no column {column!r}; it has {', '.join(map(repr, row))}"
        )
    if row[column] is None:
        raise DataError(f"{path}, row {number}: column {column!r} is empty")
    return row[column]


def _records(path: Path, source_format: str, encoding: str) -> Iterator[tuple[int, Row]]:
    """Rows with their numbers, counted from 1 as a person would in that format."""
    match source_format:
        case "jsonl":
            return _json_lines(path, encoding)
        case "csv":
            return _csv_rows(path, encoding)
        case "parquet":
            return _parquet_rows(path)
        case "dataset":
            return _dataset_rows(path)
    raise AssertionError(source_format)


def _json_lines(path: Path, encoding: str) -> Iterator[tuple[int, Row]]:
    for number, line in _lines(path, encoding):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object")
        yield number, row


def _csv_rows(path: Path, encoding: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(_UNLIMITED_FIELD)
    reader = csv.DictReader(line for _, line in _lines(path, encoding))
    try:
        for row in reader:
            if None in row:
                raise DataError(f"{path}, line {reader.line_num}: more fields than the header has")
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _parquet_file(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa

    number = 0
    try:
        for batch in _parquet_file(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read after row {number}: {error}") from error


def _dataset_rows(path: Path) -> Iterator[tuple[int, Row]]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, OSError, ValueError) as error:
        raise DataError(f"{path}: not written by datasets.save_to_disk: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        raise DataError(f"{path}: holds several splits; name one, for example {path}/train")
    for number, row in enumerate(loaded, start=1):
        yield number, cast("Row", row)


def _sentences(path: Path, encoding: str) -> Iterator[Row]:
    words: list[str] = []
    labels: list[str] = []
    for number, line in _lines(path, encoding):
        if not line.strip():
            if words:
                yield {"text": words, "label": labels}
            words, labels = [], []
            continue
        parts = line.rstrip("\r\n").split("\t")
        if len(parts) < 2 or not parts[0] or not parts[-1]:
            raise DataError(f"{path}, line {number}: expected word, tab, label; found {line!r}")
        words.append(parts[0])
        labels.append(parts[-1])
    if words:
        yield {"text": words, "label": labels}


def _whole(path: Path, encoding: str) -> str:
    return "".join(line for _, line in _lines(path, encoding))


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends; a byte that is no text is an error with its line."""
    number = 0
    try:
        with _opened(path) as binary:
            # `newline=""` keeps line ends inside quoted CSV fields as they are.
            for line in io.TextIOWrapper(binary, encoding=codec(encoding), newline=""):
                number += 1
                yield number, line
    except UnicodeDecodeError as error:
        # The decoder reads ahead in chunks: the line is found again by counting its bytes.
        line_number = _line_of_bad_byte(path, encoding)
        raise DataError(
            f"{path}, line {line_number}: not {encoding}: {error.reason}; "
            "set encoding to the file's own, for example encoding: latin-1"
        ) from error
    except LookupError as error:
        raise DataError(f"{path}: unknown encoding {encoding!r}") from error
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: cannot be read after line {number}: {error}") from error


def _line_of_bad_byte(path: Path, encoding: str) -> int:
    with _opened(path) as binary:
        for number, line in enumerate(binary, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return 0


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return cast("IO[bytes]", io.BufferedReader(_ZstdFile(path)))
    return path.open("rb")


class _ZstdFile(io.RawIOBase):
    """A Zstandard file of one or more frames; zstandard's own reader takes a cut one for whole."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            compressed = self._frame.unused_data if self._frame.eof else b""
            compressed = compressed or self._file.read(_CHUNK_BYTES)
            if not compressed and self._frame.eof:
                return 0
            if not compressed:
                raise EOFError("the compressed data end too early")
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._plain = self._frame.decompress(compressed)
        count = min(len(buffer), len(self._plain))
        buffer[:count], self._plain = self._plain[:count], self._plain[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
