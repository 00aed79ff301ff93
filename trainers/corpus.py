"""Documents in shards, each text once, with a validation part chosen by hash."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from trainers import documents
from trainers.config import CorpusConfig
from trainers.errors import DataError

TRAIN, VALIDATION = "train", "validation"

_SCHEMA = pa.schema([("text", pa.string())])
_HASH_SPACE = 2**64


@dataclass(frozen=True)
class CorpusFacts:
    """What was read and what was kept, in documents."""

    train: int
    validation: int
    duplicates: int
    held_out: int


def build(
    config: CorpusConfig, files: Sequence[Sequence[Path]], held_out: Iterable[str], directory: Path
) -> CorpusFacts:
    """Write the corpus as Parquet shards `{train,validation}-00000.parquet` with a column `text`.

    Args:
        config: the user's sources.
        files: the files of each source, in the sources' order.
        held_out: texts that must not be learnt from: the tasks' test splits.
        directory: where to write.

    Raises:
        DataError: a file cannot be read, or nothing is left to train on.
    """
    seen: set[bytes] = set()
    barred = {_digest(text) for text in held_out}
    counts = {TRAIN: 0, VALIDATION: 0, "duplicates": 0, "held_out": 0}
    writers = {name: _ShardWriter(directory, name, config.shard_documents) for name in _PARTS}
    for text in _all_texts(config, files):
        digest = _digest(text)
        if digest in barred:
            counts["held_out"] += 1
        elif digest in seen:
            counts["duplicates"] += 1
        else:
            seen.add(digest)
            part = _part(digest, config.validation_fraction)
            counts[part] += 1
            writers[part].add(text)
    for writer in writers.values():
        writer.flush()
    if not counts[TRAIN]:
        raise DataError(
            f"the corpus is empty: {sum(counts.values())} documents were read from "
            f"{', '.join(source.path for source in config.sources)} and none was left for training"
        )
    return CorpusFacts(**counts)


def shards(directory: Path, part: str) -> list[Path]:
    """The shard files of `train` or `validation`, in order."""
    return sorted(directory.glob(f"{part}-*.parquet"))


def read(shard: Path) -> Iterator[str]:
    """The documents of one shard."""
    for batch in pyarrow.parquet.ParquetFile(shard).iter_batches(columns=["text"]):
        yield from batch.column("text").to_pylist()


def text_key(text: str) -> str:
    """What makes two texts duplicates: their words, case and spacing aside."""
    return " ".join(text.lower().split())


_PARTS = (TRAIN, VALIDATION)


def _all_texts(config: CorpusConfig, files: Sequence[Sequence[Path]]) -> Iterator[str]:
    for source, paths in zip(config.sources, files, strict=True):
        for path in paths:
            yield from documents.texts(source, path)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text_key(text).encode()).digest()


def _part(digest: bytes, validation_fraction: float) -> str:
    position = int.from_bytes(digest[:8], "big") / _HASH_SPACE
    return VALIDATION if position < validation_fraction else TRAIN


class _ShardWriter:
    """Collects texts and writes a file whenever a shard is full."""

    def __init__(self, directory: Path, part: str, shard_documents: int) -> None:
        self._directory, self._part, self._limit = directory, part, shard_documents
        self._texts: list[str] = []
        self._written = 0

    def add(self, text: str) -> None:
        self._texts.append(text)
        if len(self._texts) == self._limit:
            self.flush()

    def flush(self) -> None:
        if not self._texts:
            return
        path = self._directory / f"{self._part}-{self._written:05d}.parquet"
        table: Any = pa.table({"text": self._texts}, schema=_SCHEMA)
        pyarrow.parquet.write_table(table, path, compression="zstd")
        self._texts = []
        self._written += 1
