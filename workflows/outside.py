"""Data from outside the pipeline: found, looked at and digested before anything is written."""

import codecs
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers import documents, manifest
from trainers.config import SourceConfig
from trainers.errors import DataError
from trainers.task_config import TaskDataConfig
from workflows import custom
from workflows.config import ConfigError, CustomConfig, PipelineConfig
from workflows.digests import DigestCache, Finding

# Raise when a file that was found fine before might not be found so now, or with other columns.
_CHECKS_VERSION = 1
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
    custom: Mapping[str, Mapping[str, tuple[str, str]]]
    """Path and SHA-256 of what each of the user's own steps reads, by the name it uses."""


def inspect(config: PipelineConfig, base: Path) -> OutsideData:
    """Find, check and digest all files the pipeline names.

    Reads every byte once, for digests are part of the steps' identities; a file that did not
    change since an earlier plan is not opened.

    Raises:
        ConfigError: a file is missing, empty, unreadable, wrongly encoded, or lacks a column.
    """
    try:
        with DigestCache() as cache:
            corpus = [
                _source(source, base, cache) for source in config.corpus.sources if not source.step
            ]
            return OutsideData(
                corpus={path: digest for digests in corpus for path, digest in digests.items()},
                tokenizer=_folder(config.tokenizer.from_, "tokenizer.json", base, cache),
                model=_folder(config.model.from_, "config.json", base, cache),
                tasks={name: _task(task.data, base, cache) for name, task in config.tasks.items()},
                custom={
                    name: _custom(name, step, base, cache) for name, step in config.steps.items()
                },
            )
    except DataError as error:
        raise ConfigError(str(error)) from error


def _source(source: SourceConfig, base: Path, cache: DigestCache) -> Digests:
    files = documents.expand(source.path, base)
    if source.format == "dataset":
        return {str(folder): _digest_of_folder(folder, cache) for folder in files}
    digests = {}
    for file in files:
        finding = _finding(file, source.format, source.encoding, cache)
        if finding.columns is not None:
            _require_column(source.text, finding.columns, file, "text")
        digests[str(file)] = finding.sha256
    return digests


def _task(data: TaskDataConfig, base: Path, cache: DigestCache) -> Digests:
    files = documents.expand(data.path, base)
    if len(files) != 1:
        raise DataError(f"{base / data.path}: {len(files)} files match; a task's data is one file")
    file = files[0]
    finding = _finding(file, data.format, data.encoding, cache)
    if finding.columns is not None:
        _require_column(data.text, finding.columns, file, "text")
        _require_column(data.label, finding.columns, file, "label")
    return {str(file): finding.sha256}


def _custom(
    name: str, step: CustomConfig, base: Path, cache: DigestCache
) -> Mapping[str, tuple[str, str]]:
    problem = custom.problem(step.uses, base)
    if problem:
        raise DataError(f"steps.{name}.uses: {problem}")
    found = {}
    for key, path in step.files.items():
        place = (base / path).absolute()
        if not place.exists():
            raise DataError(f"steps.{name}.files.{key}: {place}: no such file or folder")
        digest = (
            _digest_of_folder(place, cache)
            if place.is_dir()
            else _finding(place, "dataset", "utf-8", cache).sha256
        )
        found[key] = (str(place), digest)
    return found


def _folder(path: str | None, marker: str, base: Path, cache: DigestCache) -> Digests:
    if path is None:
        return {}
    folder = base / path
    if not (folder / marker).is_file():
        raise DataError(f"{folder}: no {marker} there; give a folder saved by save_pretrained")
    return {str(folder): _digest_of_folder(folder, cache)}


def _require_column(column: str, found: Sequence[str], file: Path, key: str) -> None:
    if column not in found:
        raise DataError(
            f"{file}: no column {column!r}; set {key} to one of {', '.join(map(repr, found))}"
        )


def _finding(file: Path, data_format: str, encoding: str, cache: DigestCache) -> Finding:
    """What is in a file, from the cache or by reading it."""

    def look() -> Finding:
        sha256 = _checked(file, data_format, encoding)
        columns = documents.columns(file, data_format, encoding)
        return Finding(sha256, None if columns is None else tuple(columns))

    question = f"{_CHECKS_VERSION} {data_format} {encoding}"
    return cache.finding(file, question, look)


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
        decoder = codecs.getincrementaldecoder(documents.codec(encoding))()
    except LookupError as error:
        raise DataError(f"{file}: unknown encoding {encoding!r}") from error
    digest, line, is_empty = hashlib.sha256(), 1, True
    for chunk in _chunks(file):
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            # `error.object` may begin with bytes kept from the chunk before, never a newline.
            line += error.object[: error.start].count(b"\n")
            raise DataError(
                f"{file}, line {line}: not {encoding}: {error.reason}; "
                "set encoding to the file's own, for example encoding: latin-1"
            ) from error
        digest.update(chunk)
        line += chunk.count(b"\n")
        is_empty = is_empty and not text.strip()
    if is_empty:
        raise DataError(f"{file}: there is no text in it")
    return digest.hexdigest()


def _chunks(file: Path) -> Iterator[bytes]:
    """A file's bytes; the last chunk is empty."""
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            yield chunk
    yield b""


def _digest_of_folder(folder: Path, cache: DigestCache) -> str:
    """One SHA-256 over the names and digests of a folder's files."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder")
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            found = _finding(path, "dataset", "utf-8", cache)
            digest.update(f"{name}\0{found.sha256}\0".encode())
    return digest.hexdigest()
