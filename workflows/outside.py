"""Data from outside the pipeline: found, looked at and digested before anything is written."""

import codecs
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers import documents, files, manifest, tables
from trainers.config import BaseConfig, CorpusConfig, ModelConfig, SourceConfig, TokenizerConfig
from trainers.errors import DataError
from trainers.task_config import TaskDataConfig
from workflows import custom
from workflows.config import ConfigError, CustomConfig, PipelineConfig
from workflows.digests import DigestCache, Finding
from workflows.models import ModelStore
from workflows.storage import Storage

# Raise when a file that was found fine before might not be found so now, or with other columns.
_CHECKS_VERSION = 1
_CHUNK_BYTES = 1 << 20
_COMPRESSED = {".gz", ".zst"}
_BINARY_FORMATS = {"parquet", "dataset"}
_HUB_TIMEOUT_S = 30.0

# What stores say of a file, the strongest first: digests of its content, names of its version,
# and when it was written.
_TAGS = (
    *("sha256", "blob_id", "md5Hash", "content_md5", "Content-MD5", "Digest"),
    *("ETag", "etag", "crc32c"),
    *("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created"),
)

Digests = Mapping[str, str]
"""SHA-256 by absolute path or URL; of a hub data set its commit."""


TaskFiles = Mapping[str, tuple[str, str]]
"""Path and SHA-256 of a task's files, by the split whose rows they hold."""


@dataclass(frozen=True)
class OutsideData:
    """The digests of everything a pipeline reads, by the part of the pipeline that reads it."""

    corpus: Digests
    sources: tuple[str, ...]
    """Of each source of the corpus one digest over its files in their order; empty where a step of
    the user's own makes it."""
    tokenizer: Digests
    model: Digests
    """Of the model that is fine-tuned, or that pretraining goes on from."""
    base: BaseConfig | None
    """As the pipeline file says it, with the version that the store has now."""
    tasks: Mapping[str, TaskFiles]
    custom: Mapping[str, Mapping[str, tuple[str, str]]]
    """Path and SHA-256 of what each of the user's own steps reads, by the name it uses."""


def inspect(config: PipelineConfig, base: Path) -> OutsideData:
    """Find, check and digest all files the pipeline names.

    Reads every byte once, for digests are part of the steps' identities; a file that did not
    change since an earlier plan is not opened. Of a file behind a URL only the store is asked, and
    of a task's the names of its columns are read.

    Raises:
        ConfigError: a file is missing, empty, unreadable, wrongly encoded, or lacks a column;
            where `malformed` is `skip` only what is missing is told of in the corpus.
    """
    try:
        with DigestCache() as cache:
            corpus = list(_corpus(config.corpus, base, cache)) if config.corpus else []
            chosen = _resolved(config)
            return OutsideData(
                corpus={path: digest for digests in corpus for path, digest in digests.items()},
                sources=tuple(_in_order(digests) for digests in corpus),
                tokenizer=_folder(config.tokenizer, "tokenizer.json", base, cache),
                model=(
                    _version(chosen.store, config.storage)
                    if chosen and chosen.store
                    else _folder(chosen or config.model, "config.json", base, cache)
                ),
                base=chosen,
                tasks={name: _task(task.data, base, cache) for name, task in config.tasks.items()},
                custom={
                    name: _custom(name, step, base, cache) for name, step in config.steps.items()
                },
            )
    except DataError as error:
        raise ConfigError(str(error)) from error


def _corpus(config: CorpusConfig, base: Path, cache: DigestCache) -> Iterator[Digests]:
    is_checked = config.malformed == "refuse"
    for source in config.sources:
        yield {} if source.step else _source(source, base, cache, is_checked=is_checked)


def _resolved(config: PipelineConfig) -> BaseConfig | None:
    """The base, an alias of the store as the version it means now."""
    if config.base is None or config.base.store is None:
        return config.base
    version = ModelStore(Storage.at(config.storage)).resolve(config.base.store)
    return BaseConfig(store=str(version))


def _version(reference: str, storage: str) -> Digests:
    store = ModelStore(Storage.at(storage))
    files = store.facts(store.resolve(reference))["files"]
    return {reference: hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()}


def _in_order(digests: Digests) -> str:
    """One digest over those of files in the order in which they are read."""
    return hashlib.sha256("\n".join(digests.values()).encode()).hexdigest() if digests else ""


def pinned(source: SourceConfig, digests: Digests) -> SourceConfig:
    """A source with the revision its plan saw: a branch of the hub may have moved on since."""
    commit = digests.get(_hub_key(source)) if source.format == "dataset" else None
    return source.model_copy(update={"revision": commit}) if commit else source


def _source(source: SourceConfig, base: Path, cache: DigestCache, *, is_checked: bool) -> Digests:
    if files.scheme_of(source.path):
        files.check_encoding(source.path, source.encoding)
        found = documents.remote(source.path, source.format)
        return {url: identity(url, facts) for url, facts in found.items()}
    places = documents.expand(source.path, base, source.format)
    if source.format == "dataset":
        if not Path(places[0]).exists():
            return {_hub_key(source): _commit(source)}
        return {folder: _digest_of_folder(Path(folder), cache) for folder in places}
    files.check_encoding(source.path, source.encoding)
    return {place: _local(Path(place), source, cache, is_checked=is_checked) for place in places}


def _local(file: Path, source: SourceConfig, cache: DigestCache, *, is_checked: bool) -> str:
    if not is_checked:
        return _finding(file, "dataset", "utf-8", cache).sha256
    finding = _finding(file, source.format, source.encoding, cache)
    if finding.columns is not None:
        _require_column(source.text, finding.columns, str(file), "text")
    return finding.sha256


def identity(url: str, facts: Mapping[str, Any]) -> str:
    """SHA-256 over what a store says of a file, which is not read: its size and a tag.

    Raises:
        DataError: it says nothing that changes when the file does.
    """
    tag = _tag(facts) or _tag(facts := files.info(url))
    if tag is None:
        raise DataError(
            f"{url}: its server gives no ETag, digest or time of change, so nobody could tell when "
            "it changes; download it and name the copy"
        )
    return hashlib.sha256(json.dumps([facts.get("size"), *tag]).encode()).hexdigest()


def _tag(facts: Mapping[str, Any]) -> tuple[str, str] | None:
    return next(((name, str(facts[name])) for name in _TAGS if facts.get(name)), None)


def _hub_key(source: SourceConfig) -> str:
    return f"{source.path}@{source.revision}" if source.revision else source.path


def _commit(source: SourceConfig) -> str:
    """The commit that a hub data set's revision is now."""
    import huggingface_hub

    try:
        found = huggingface_hub.HfApi().dataset_info(
            source.path, revision=source.revision, timeout=_HUB_TIMEOUT_S
        )
    except Exception as error:  # the hub's client raises types of its own for its network
        raise DataError(
            f"{source.path}: no such folder, and the Hugging Face hub does not tell of such a data "
            f"set: {error}; check the name, HF_TOKEN and the network, or download it with "
            f"hf download --repo-type dataset {source.path} --local-dir FOLDER and name the folder"
        ) from error
    if not found.sha:
        raise DataError(f"{source.path}: the Hugging Face hub names no commit of it")
    return found.sha


def _task(data: TaskDataConfig, base: Path, cache: DigestCache) -> TaskFiles:
    return {split: _task_file(path, data, base, cache) for split, path in data.paths.items()}


def _task_file(path: str, data: TaskDataConfig, base: Path, cache: DigestCache) -> tuple[str, str]:
    is_remote = files.scheme_of(path) is not None
    found = documents.remote(path, data.format) if is_remote else {}
    places = list(found) or documents.expand(path, base, data.format)
    if len(places) != 1:
        named = path if is_remote else base / path
        raise DataError(f"{named}: {len(places)} files match; each of a task's paths is one")
    (place,), file = places, Path(places[0])
    columns: Sequence[str] | None
    if is_remote:
        sha256 = identity(place, found[place])
        columns = documents.columns(place, data.format, data.encoding)
    elif data.format == "dataset":
        if not file.is_dir():
            raise DataError(f"{base / path}: no such folder; a task's data set is a local one")
        sha256, columns = _digest_of_folder(file, cache), tables.saved_columns(file)
    else:
        finding = _finding(file, data.format, data.encoding, cache)
        sha256, columns = finding.sha256, finding.columns
    if columns is not None:
        keys = {"text": "text", "pair": "text_pair", "label": "label", "slice": "slice_by"}
        for name, column in data.columns.items():
            _require_column(column, columns, place, keys[name])
    return place, sha256


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


def _folder(
    section: TokenizerConfig | ModelConfig | BaseConfig | None,
    marker: str,
    base: Path,
    cache: DigestCache,
) -> Digests:
    if section is None or section.from_ is None:
        return {}
    folder = base / section.from_
    if not (folder / marker).is_file():
        raise DataError(f"{folder}: no {marker} there; give a folder saved by save_pretrained")
    return {str(folder): _digest_of_folder(folder, cache)}


def _require_column(column: str, found: Sequence[str], place: str, key: str) -> None:
    if column not in found:
        raise DataError(
            f"{place}: no column {column!r}; set {key} to one of {', '.join(map(repr, found))}"
        )


def _finding(file: Path, data_format: str, encoding: str, cache: DigestCache) -> Finding:
    """What is in a file, from the cache or by reading it."""

    def look() -> Finding:
        sha256 = _checked(file, data_format, encoding)
        columns = documents.columns(str(file), data_format, encoding)
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
        decoder = codecs.getincrementaldecoder(files.codec(encoding))()
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
