"""Data from outside the pipeline: found, looked at and digested before anything is written."""

import codecs
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainers import documents, manifest
from trainers.config import SourceConfig, TaskDataConfig
from trainers.errors import DataError
from workflows.config import ConfigError, PipelineConfig

_CHUNK_BYTES = 1 << 20
_COMPRESSED = {".gz", ".zst"}
_BINARY_FORMATS = {"parquet", "dataset"}

Digests = Mapping[str, str]
"""SHA-256 by absolute path."""


@dataclass(frozen=True)
class OutsideData:
    """The digests of everything a pipeline reads, by the part of the pipeline that reads it."""

    corpus: Digests
    tokenizer: Digests
    model: Digests
    tasks: Mapping[str, Digests]


def inspect(config: PipelineConfig, base: Path) -> OutsideData:
    """Find, check and digest all files the pipeline names.

    Reads every byte once: digests are part of the steps' identities.

    Raises:
        ConfigError: a file is missing, empty, unreadable, wrongly encoded, or lacks a column.
    """
    try:
        corpus = [_source(source, base) for source in config.corpus.sources]
        return OutsideData(
            corpus={path: digest for digests in corpus for path, digest in digests.items()},
            tokenizer=_folder(config.tokenizer.from_, "tokenizer.json", base),
            model=_folder(config.model.from_, "config.json", base),
            tasks={name: _task(task.data, base) for name, task in config.tasks.items()},
        )
    except DataError as error:
        raise ConfigError(str(error)) from error


def _source(source: SourceConfig, base: Path) -> Digests:
    files = documents.expand(source.path, base)
    if source.format == "dataset":
        return {str(folder): _digest_of_folder(folder) for folder in files}
    digests = {str(file): _checked(file, source.format, source.encoding) for file in files}
    for file in files:
        found = documents.columns(file, source.format, source.encoding)
        if found is not None:
            _require_column(source.text, found, file, "text")
    return digests


def _task(data: TaskDataConfig, base: Path) -> Digests:
    files = documents.expand(data.path, base)
    if len(files) != 1:
        raise DataError(f"{base / data.path}: {len(files)} files match; a task's data is one file")
    file = files[0]
    digest = _checked(file, data.format, data.encoding)
    found = documents.columns(file, data.format, data.encoding)
    if found is not None:
        _require_column(data.text, found, file, "text")
        _require_column(data.label, found, file, "label")
    return {str(file): digest}


def _folder(path: str | None, marker: str, base: Path) -> Digests:
    if path is None:
        return {}
    folder = base / path
    if not (folder / marker).is_file():
        raise DataError(f"{folder}: no {marker} there; give a folder saved by save_pretrained")
    return {str(folder): _digest_of_folder(folder)}


def _require_column(column: str, found: Iterable[str], file: Path, key: str) -> None:
    names = list(found)
    if column not in names:
        raise DataError(
            f"{file}: no column {column!r}; set {key} to one of {', '.join(map(repr, names))}"
        )


def _checked(file: Path, data_format: str, encoding: str) -> str:
    """The digest of a file whose bytes are text where they should be."""
    try:
        if data_format in _BINARY_FORMATS or file.suffix in _COMPRESSED:
            return manifest.digest_of(file)
        return _text_digest(file, encoding)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error


def _text_digest(file: Path, encoding: str) -> str:
    """SHA-256 of a text file, decoded on the way so that a wrong encoding is found now."""
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError as error:
        raise DataError(f"{file}: unknown encoding {encoding!r}") from error
    digest, line, is_empty = hashlib.sha256(), 1, True
    for chunk in _chunks(file):
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            # `error.object` may begin with bytes kept from the chunk before, never a newline.
            line += error.object[: error.start].count(b"\n")
            raise DataError(
                f"{file}, line {line}: not {encoding}: {error.reason}; "
                "set encoding to the file's own, for example encoding: latin-1"
            ) from error
        digest.update(chunk)
        line += chunk.count(b"\n")
        is_empty = is_empty and not chunk.strip()
    if is_empty:
        raise DataError(f"{file}: there is no text in it")
    return digest.hexdigest()


def _chunks(file: Path) -> Iterator[bytes]:
    """A file's bytes; the last chunk is empty."""
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            yield chunk
    yield b""


def _digest_of_folder(folder: Path) -> str:
    """One SHA-256 over the names and digests of a folder's files."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder")
    digest = hashlib.sha256()
    for name, facts in manifest.describe(folder).items():
        digest.update(f"{name}\0{facts['sha256']}\0".encode())
    return digest.hexdigest()
